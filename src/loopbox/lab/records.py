"""A lab as values: boxes, links, routers and the sessions between them.

Owns: the frozen records that every part of a lab speaks in (renderer, prediction, drawing, export,
runner). `lab.topology.parse` is the one way to get them from text.

Must never: make anything real, keep state, hold an unresolved value (every link has addresses,
every router an ID and a reason, every session two ends).

Example::

    lab.link("r1-r2").end("r1").address(4) == IPv4Address("10.254.0.0")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Literal

from loopbox.rules.routing import RouterIdChoice, Timers

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Source = Literal["loopback", "link"]

MAX_BOXES = 4096
"""More than one machine can hold as routers (about 20 MiB each); past it the file is a mistake."""


@dataclass(frozen=True, slots=True)
class Ospf:
    """How a box takes part in OSPF; seconds."""

    area: str = "0"
    """Area of links that name none, and of the loopbacks."""
    hello: float = 10
    dead: float = 40
    passive: tuple[str, ...] = ()
    """Links whose network is told but on which no neighbour is looked for."""


@dataclass(frozen=True, slots=True)
class Bgp:
    """How a box takes part in BGP. Its neighbours are in `Lab.sessions`."""

    asn: int
    reflector: bool = False
    advertise: tuple[Network, ...] = ()
    next_hop_self: bool = True
    """On iBGP sessions of a router that has eBGP sessions too (RFC 4271 section 5.1.3)."""
    keepalive: int = 60
    hold: int = 180


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a static route leads: an address, an interface, or both."""

    address: Address | None
    interface: str | None


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A route written by hand."""

    to: Network
    via: tuple[NextHop, ...]
    """Several: packets are spread over them. Empty: a black hole."""
    through: str | None = None
    """The box named in `via`, if it was a name."""


@dataclass(frozen=True, slots=True)
class Anycast:
    """A loopback address that several boxes have, there while the check succeeds."""

    address: Interface
    check: str | None = None
    """Shell command run inside the box; exit 0 keeps the address. None: always there."""
    every: float = 1.0
    """Seconds between two checks."""


@dataclass(frozen=True, slots=True)
class Service:
    """A program of a box."""

    name: str
    run: str
    ready: int | None = None
    """TCP port that listens when the service is ready."""


@dataclass(frozen=True, slots=True)
class LabBox:
    """One device of a lab."""

    name: str
    loopback: tuple[Interface, ...] = ()
    """On lo besides 127.0.0.1/8 and ::1/128, in the order written."""
    anycast: tuple[Anycast, ...] = ()
    virtual: tuple[Interface, ...] = ()
    """On lo too, but never told to a routing protocol nor answered by ARP (LVS direct routing)."""
    quiet_arp: bool = False
    router_id: RouterIdChoice | None = None
    """None: the box runs no routing protocol."""
    router_id_written: bool = True
    """False (`router_id = "auto"`): left to the daemon, to watch its own rule at work."""
    ospf: Ospf | None = None
    bgp: Bgp | None = None
    bfd: bool = False
    static: tuple[StaticRoute, ...] = ()
    services: tuple[Service, ...] = ()
    config: Path | None = None
    """The user's own frr.conf, taken instead of a rendered one."""

    @property
    def is_router(self) -> bool:
        """Whether FRR runs in this box."""
        return self.ospf is not None or self.bgp is not None or self.config is not None

    def source_address(self) -> IPv4Address | None:
        """The address sessions of this router start from: its router ID if it has that on lo."""
        mine = [item.ip for item in self.loopback if isinstance(item, IPv4Interface)]
        if self.router_id is not None and self.router_id.value in mine:
            return self.router_id.value
        return mine[0] if mine else None


@dataclass(frozen=True, slots=True)
class End:
    """One box's side of a link."""

    box: str
    interface: str
    """Name of the device in the box; at most 15 bytes (IFNAMSIZ)."""
    addresses: tuple[Interface, ...]
    cost: int = 10
    """OSPF cost of leaving the box through here."""

    def address(self, version: int) -> Address | None:
        """The first address of IP `version` (4 or 6) here, or None."""
        return next((item.ip for item in self.addresses if item.version == version), None)


@dataclass(frozen=True, slots=True)
class Link:
    """A wire between two boxes, or a bridge between more."""

    name: str
    ends: tuple[End, ...]
    mtu: int = 1500
    area: str | None = None
    ospf: bool = True
    """Whether OSPF may run here; by default not between two autonomous systems."""
    unnumbered: bool = False
    loss: float = 0.0
    """Per cent of packets dropped, in each direction."""
    delay: float = 0.0
    """Milliseconds added, in each direction."""
    rate: int = 0
    """Bits per second; 0: as fast as the kernel."""

    @property
    def is_bridge(self) -> bool:
        """Whether more than two ends share it."""
        return len(self.ends) > 2

    def end(self, box: str) -> End:
        """The side of `box`; KeyError when it has none."""
        for end in self.ends:
            if end.box == box:
                return end
        raise KeyError(box)


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """One side of a BGP session."""

    box: str
    address: Address | None
    """None: an unnumbered session, found by link-local address."""
    interface: str | None = None
    """The link's device, for sessions that depend on one link."""


@dataclass(frozen=True, slots=True)
class Session:
    """A BGP session as it should be."""

    left: SessionEnd
    right: SessionEnd
    source: Source
    external: bool
    link: str | None = None
    """The link it lives and dies with; None for loopback sessions."""
    multihop: int | None = None
    """TTL of an external session between loopbacks."""

    @property
    def name(self) -> str:
        """`r1-r2`, or `r1-r2 on LINK` for a session on link addresses."""
        plain = f"{self.left.box}-{self.right.box}"
        return plain if self.link is None else f"{plain} on {self.link}"

    def ends(self) -> tuple[tuple[SessionEnd, SessionEnd], tuple[SessionEnd, SessionEnd]]:
        """(own, peer) from each side."""
        return (self.left, self.right), (self.right, self.left)


@dataclass(frozen=True)
class Lab:
    """Everything a lab file says, resolved."""

    name: str
    path: Path
    timers: Timers
    boxes: tuple[LabBox, ...]
    links: tuple[Link, ...]
    sessions: tuple[Session, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    """What will work less well than the writer may think; for stderr."""

    @cached_property
    def _boxes(self) -> Mapping[str, LabBox]:
        return {box.name: box for box in self.boxes}

    @cached_property
    def _links(self) -> Mapping[str, Link]:
        return {link.name: link for link in self.links}

    @cached_property
    def _ends(self) -> Mapping[str, tuple[tuple[Link, End], ...]]:
        found: dict[str, list[tuple[Link, End]]] = {box.name: [] for box in self.boxes}
        for link in self.links:
            for end in link.ends:
                found[end.box].append((link, end))
        return {name: tuple(ends) for name, ends in found.items()}

    @cached_property
    def _by_box(self) -> Mapping[str, tuple[Link, ...]]:
        return {name: tuple(link for link, _end in ends) for name, ends in self._ends.items()}

    @cached_property
    def _sessions(self) -> Mapping[str, tuple[Session, ...]]:
        found: dict[str, list[Session]] = {box.name: [] for box in self.boxes}
        for session in self.sessions:
            found[session.left.box].append(session)
            found[session.right.box].append(session)
        return {name: tuple(sessions) for name, sessions in found.items()}

    def box(self, name: str) -> LabBox:
        """The box called `name`; KeyError otherwise."""
        return self._boxes[name]

    def link(self, name: str) -> Link:
        """The link called `name`; KeyError otherwise."""
        return self._links[name]

    def links_of(self, box: str) -> tuple[Link, ...]:
        """The links of `box`, in the order of the file."""
        return self._by_box[box]

    def ends_of(self, box: str) -> tuple[tuple[Link, End], ...]:
        """The links of `box`, each with its end there, in the order of the file."""
        return self._ends[box]

    def links_between(self, left: str, right: str) -> tuple[Link, ...]:
        """The links that join two boxes, bridges included, in the order of the file."""
        others = {link.name for link in self._by_box[right]}
        return tuple(link for link in self._by_box[left] if link.name in others)

    def sessions_of(self, box: str) -> tuple[Session, ...]:
        """The BGP sessions that end in `box`."""
        return self._sessions[box]

    def ospf_area(self, link: Link, box: LabBox) -> str | None:
        """The area `box` runs on `link`, or None when OSPF is not there."""
        if box.ospf is None or not link.ospf:
            return None
        return link.area if link.area is not None else box.ospf.area
