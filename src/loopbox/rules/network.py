"""One network namespace as values: what addressing, audit and doctor decide upon.

Owns: the records of links, addresses, routes, neighbours, knobs and listening sockets, and the
questions that need no kernel ("which link is the loopback?").

Must never: read anything (kernel/facts does on Linux, kernel/foreign elsewhere), judge.

Example::

    network.loopback.name        # "lo", or whatever somebody renamed it to
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_LOWER_UP = 0x10000

SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
"""rtnetlink(7) scope numbers."""


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    index: int
    name: str
    flags: int
    """IFF_* bits of netdevice(7)."""
    kind: str = ""
    """IFLA_INFO_KIND: veth, bridge, tun, dummy ...; empty for hardware and lo."""
    operstate: str = "unknown"
    """RFC 2863 word of /sys/class/net/IF/operstate."""
    carrier: bool = True
    mtu: int = 0
    master: int = 0
    """Index of the bridge or bond it belongs to, 0 for none."""
    elsewhere: bool = False
    """Its peer end (veth) lives in another network namespace of this machine."""

    @property
    def is_up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)

    @property
    def is_loopback(self) -> bool:
        """By flag, never by name: lo can be renamed while it is up."""
        return bool(self.flags & IFF_LOOPBACK)


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address on one interface."""

    index: int
    address: Address
    prefix: int
    scope: str = "global"
    secondary: bool = False
    tentative: bool = False
    """IPv6 duplicate detection has not ended (or has failed): not usable yet."""

    @property
    def network(self) -> Subnet:
        """The prefix it stands in."""
        kind = IPv4Network if isinstance(self.address, IPv4Address) else IPv6Network
        return kind((int(self.address), self.prefix), strict=False)


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `destination` of the default route has prefix length 0."""

    destination: Subnet
    table: int
    type: str
    """unicast, local, broadcast, unreachable, prohibit, blackhole, throw ..."""
    index: int = 0
    gateway: Address | None = None
    source: Address | None = None
    metric: int = 0
    also: tuple[int, ...] = ()
    """Of a multipath route: the interfaces of its further ways."""
    dead: bool = False
    """RTNH_F_DEAD or RTNH_F_LINKDOWN: the kernel knows it leads nowhere now."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One ARP or ND entry."""

    index: int
    address: Address
    state: str
    """reachable, stale, delay, probe, incomplete, failed, permanent, noarp or none."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """One kernel socket that waits for peers: TCP in LISTEN, or UDP and raw without a peer."""

    protocol: str
    """tcp, udp or raw."""
    family: str
    """The IP versions it serves: ipv4, ipv6, or dual (an IPv6 wildcard without V6ONLY). A socket
    bound to an IPv4-mapped address says ipv4, though its address is an IPv6Address."""
    address: IPv4Address | IPv6Address
    port: int
    """For raw the IP protocol number (IPPROTO_ICMP is 1), since raw sockets have no port."""
    interface: int
    """Interface index of SO_BINDTODEVICE (or of a link-local zone); 0 for none."""
    inode: int
    uid: int
    """Of its maker, as seen from the diag socket's user namespace (65534 if unmapped there)."""


@dataclass(frozen=True, slots=True)
class Network:
    """Everything read of one network namespace at one moment."""

    links: tuple[Link, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    knobs: Mapping[str, str] = field(default_factory=dict)
    """Kernel settings by their path below /proc/sys/net, as text without the line end."""

    @property
    def loopback(self) -> Link | None:
        """The loopback interface: the lowest index with the LOOPBACK flag."""
        return next((link for link in self.links if link.is_loopback), None)

    def link(self, index: int) -> Link | None:
        """The interface with this index."""
        return next((link for link in self.links if link.index == index), None)

    def addresses_on(self, link: Link) -> tuple[InterfaceAddress, ...]:
        """What is configured on `link`."""
        return tuple(entry for entry in self.addresses if entry.index == link.index)

    def knob(self, path: str, default: str = "") -> str:
        """A kernel setting, or `default` where the kernel has none such."""
        return self.knobs.get(path, default)

    def default_routes(self, version: int) -> tuple[Route, ...]:
        """Default routes of IP `version`, best metric first, of every type.

        Where there is none, those that make one together: VPNs cut the default in two halves, and
        2000::/3 is all there is of the public IPv6.
        """
        ours = [route for route in self.routes if route.destination.version == version]
        found = [route for route in ours if route.destination.prefixlen == 0]
        if not any(route.type == "unicast" for route in found):
            halves = {route.destination for route in ours if route.destination.prefixlen == 1}
            found += [
                route
                for route in ours
                if (route.destination.prefixlen == 1 and len(halves) == 2)
                or route.destination == _PUBLIC6
            ]
        return tuple(sorted(found, key=lambda route: route.metric))


_PUBLIC6 = IPv6Network("2000::/3")
