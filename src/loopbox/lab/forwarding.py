"""Where packets go in a lab, with some of it failed: OSPF, static routes, BGP and the wires.

Owns: the state of a lab under failures: which links carry, what each router's table would hold,
whether a packet arrives, which sessions stand. Deterministic and complete: no time passes here,
only the state after everything has settled.

Must never: start anything; say what happens in between (`rules.routing` judges that).

Limits: IPv4; OSPF areas are taken as one (adjacencies need equal areas all the same); a box with
its own frr.conf is taken as what the lab file says of it.

Example::

    network = Network(lab)
    network.fail(["r1-r2"])
    assert network.arrives("r1", IPv4Address("10.255.0.2"))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from loopbox.lab.bgp import Chosen, Hop, Peering, Speaker, converge
from loopbox.lab.igp import INFINITE, Failure, Igp
from loopbox.lab.knowledge import (
    Key,
    Known,
    key_of,
    network_of,
    ospf_edges,
    prefix_lengths,
    told_by_ospf,
    without_protocol,
)
from loopbox.lab.records import Lab, LabBox, Link, Session, SessionEnd
from loopbox.rules.routing import FailureKind

MAX_HOPS = 255


@dataclass(frozen=True, slots=True)
class Step:
    """One way onwards from a router."""

    box: str
    carries: bool
    """False: the router believes in it, but what is sent there is lost (silent failure)."""


class Network:
    """A lab that can fail. Not for two threads at once."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.kind: FailureKind = "carrier"
        self.down: set[str] = set()
        """Names of links and boxes that have failed."""
        self._node = {box.name: index for index, box in enumerate(lab.boxes)}
        self._box_of = [box.name for box in lab.boxes]
        edges, self._edges_of = ospf_edges(lab, self._node)
        self.igp = Igp(len(lab.boxes), edges)
        self._failures: list[Failure] = []
        self._told = told_by_ospf(lab)
        self._known = {box.name: without_protocol(lab, box) for box in lab.boxes}
        self._lengths = prefix_lengths(lab, self._told, self._known.values())
        self._tables: dict[str, dict[IPv4Network, Chosen]] = {}
        self._is_settled = False
        self._standing: set[str] = set()
        self._memo: dict[tuple[str, IPv4Address], tuple[Step, ...] | None] = {}

    # --- failures --------------------------------------------------------------------------

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What the failures in force did to OSPF's distances."""
        return tuple(self._failures)

    def edges_of(self, name: str) -> list[int]:
        """OSPF's edges that go with a link or a box."""
        return self._edges_of.get(name, [])

    def fail(self, names: Iterable[str]) -> None:
        """Let links and boxes fail, besides those that have."""
        for name in names:
            self.down.add(name)
            self._failures.append(self.igp.fail(self.edges_of(name)))
        self._forget()

    def restore(self, count: int) -> None:
        """Take back the last `count` failures, given their names were all different."""
        for _ in range(count):
            self.igp.restore(self._failures.pop())
        self._forget()

    def mend(self, names: Iterable[str]) -> None:
        """Take back the failures of `names`, which must be the last ones."""
        names = list(names)
        self.down.difference_update(names)
        self.restore(len(names))

    def _forget(self) -> None:
        self._is_settled = False
        self._tables = {}
        self._memo = {}

    def is_up(self, link: Link) -> bool:
        """Whether a link carries packets."""
        return link.name not in self.down

    # --- forwarding ------------------------------------------------------------------------

    def node(self, box: str) -> int:
        """The number of a box in `igp`."""
        return self._node[box]

    def path_boxes(self, source: str, address: IPv4Address) -> set[tuple[str, str]]:
        """Each (box, next box) a packet from `source` to `address` may cross."""
        found: set[tuple[str, str]] = set()
        waiting = [source]
        while waiting:
            box = waiting.pop()
            if self.is_local(box, address):
                continue
            for step in self.steps(box, address) or ():
                if (box, step.box) not in found:
                    found.add((box, step.box))
                    waiting.append(step.box)
        return found

    def is_local(self, box: str, address: IPv4Address) -> bool:
        """Whether `address` is one of the box's own."""
        return address in self._known[box].local

    def steps(self, box: str, address: IPv4Address) -> tuple[Step, ...] | None:
        """Where `box` sends what is for `address`; None when it has no route."""
        self._settle()
        memo = (box, address)
        if memo not in self._memo:
            self._memo[memo] = self._look_up(box, address, with_bgp=True)
        return self._memo[memo]

    def _look_up(
        self, box: str, address: IPv4Address, *, with_bgp: bool
    ) -> tuple[Step, ...] | None:
        bits = int(address)
        for length in self._lengths:
            key = (length, bits >> (32 - length))
            for source in (self._connected, self._static_route):
                if (found := source(box, key, address)) is not None:
                    return found
            chosen = self._tables.get(box, {}).get(network_of(key)) if with_bgp else None
            if chosen is not None and chosen.best.external:
                return self._by_bgp(box, chosen)
            if (found := self._by_ospf(box, key)) is not None:
                return found
            if chosen is not None and chosen.hops:
                return self._by_bgp(box, chosen)
        return None

    def _connected(self, box: str, key: Key, address: IPv4Address) -> tuple[Step, ...] | None:
        for link, _ in self._known[box].connected.get(key, ()):
            if not self._is_believed(link) or link.unnumbered:
                continue
            for end in link.ends:
                if end.address(4) == address or any(i.ip == address for i in end.addresses):
                    return (Step(end.box, self._carries(link, end.box)),)
            return ()
        return None

    def _static_route(self, box: str, key: Key, address: IPv4Address) -> tuple[Step, ...] | None:
        steps: list[Step] = []
        for route in self._known[box].static.get(key, ()):
            if not route.via:
                return ()
            for hop in route.via:
                link = self._link_at(box, hop.interface)
                if not self._is_believed(link):
                    continue
                for end in link.ends:
                    if end.box == box:
                        continue
                    if hop.address is None or end.address(4) == hop.address:
                        steps.append(Step(end.box, self._carries(link, end.box)))
        return tuple(steps) or None

    def _link_at(self, box: str, interface: str | None) -> Link:
        return next(link for link in self.lab.links_of(box) if link.end(box).interface == interface)

    def _is_believed(self, link: Link) -> bool:
        """Whether routers next to it take the link for usable."""
        return self.is_up(link) or self.kind == "silent"

    def _carries(self, link: Link, box: str) -> bool:
        return self.is_up(link) and box not in self.down

    def _owners(self, box: str, key: Key) -> tuple[list[str], int]:
        """The nearest boxes that tell a prefix by OSPF, and how far they are."""
        nearest, best = [], INFINITE
        here = self._node[box]
        for owner, cost, link in self._told.get(key, ()):
            if owner == box or owner in self.down or link in self.down:
                continue
            distance = int(self.igp.distances[here, self._node[owner]]) + cost
            if distance < best:
                nearest, best = [owner], distance
            elif distance == best < INFINITE:
                nearest.append(owner)
        return nearest, best

    def _by_ospf(self, box: str, key: Key) -> tuple[Step, ...] | None:
        if self.lab.box(box).ospf is None:
            return None
        owners, _ = self._owners(box, key)
        here = self._node[box]
        nodes = {node for owner in owners for node in self.igp.next_hops(here, self._node[owner])}
        return tuple(Step(self._box_of[node], True) for node in sorted(nodes)) or None

    def _by_bgp(self, box: str, chosen: Chosen) -> tuple[Step, ...]:
        steps: set[Step] = set()
        for hop in chosen.hops:
            if isinstance(hop, tuple):
                link, peer = self.lab.link(hop[0]), hop[1]
                steps.add(Step(peer, self._carries(link, peer)))
            else:
                steps.update(self._look_up(box, hop, with_bgp=False) or ())
        return tuple(sorted(steps, key=lambda step: step.box))

    def hops(self, source: str, address: IPv4Address) -> int | None:
        """Most links a packet from `source` crosses to `address`; None when any way loses it.

        Equal paths must all arrive: which of them a packet takes is the routers' choice.
        """
        return self._walk(source, address, frozenset())

    def _walk(self, box: str, address: IPv4Address, above: frozenset[str]) -> int | None:
        if box in self.down or box in above or len(above) > MAX_HOPS:
            return None
        if self.is_local(box, address):
            return 0
        steps = self.steps(box, address)
        if not steps:
            return None
        longest = 0
        for step in steps:
            rest = self._walk(step.box, address, above | {box}) if step.carries else None
            if rest is None:
                return None
            longest = max(longest, rest + 1)
        return longest

    def arrives(self, source: str, address: IPv4Address, *, back_to: IPv4Address) -> bool:
        """Whether an echo request arrives, and the answer comes back to the address it bears."""
        if self.hops(source, address) is None:
            return False
        return all(
            self.hops(owner, back_to) is not None for owner in self._ends_of(source, address)
        )

    def _ends_of(self, source: str, address: IPv4Address) -> set[str]:
        """The boxes at which packets from `source` to `address` may arrive (anycast: several)."""
        found: set[str] = set()
        waiting, seen = [source], {source}
        while waiting:
            box = waiting.pop()
            if self.is_local(box, address):
                found.add(box)
                continue
            for step in self.steps(box, address) or ():
                if step.box not in seen:
                    seen.add(step.box)
                    waiting.append(step.box)
        return found

    # --- sessions --------------------------------------------------------------------------

    def standing(self) -> set[str]:
        """Names of the sessions that are up."""
        self._settle()
        return self._standing

    def _settle(self) -> None:
        """Sessions need routes and routes need sessions: go on until neither changes."""
        if self._is_settled:
            return
        self._is_settled = True
        for _ in range(len(self.lab.sessions) + 2):
            self._memo = {}
            standing = {item.name for item in self.lab.sessions if self._stands(item)}
            if not any(box.bgp and box.bgp.advertise for box in self.lab.boxes):
                self._standing = standing
                return
            tables = self._converged(standing)
            if standing == self._standing and tables == self._tables:
                break
            self._standing, self._tables = standing, tables
        self._memo = {}

    def _stands(self, session: Session) -> bool:
        if session.left.box in self.down or session.right.box in self.down:
            return False
        if session.link is not None:
            return self.is_up(self.lab.link(session.link))
        ways = [
            self.hops(own.box, peer.address)
            for own, peer in session.ends()
            if isinstance(peer.address, IPv4Address)
        ]
        limit = session.multihop or MAX_HOPS
        return all(way is not None and way <= limit for way in ways)

    def _converged(self, standing: set[str]) -> dict[str, dict[IPv4Network, Chosen]]:
        speakers, reflects = {}, set()
        for box in self.lab.boxes:
            if box.bgp is None or box.router_id is None or box.router_id.value is None:
                continue
            if box.bgp.reflector:
                reflects.add(box.name)
            speakers[box.name] = Speaker(
                box.name,
                box.bgp.asn,
                box.router_id.value,
                tuple(self._originated(box)),
                box.bgp.next_hop_self
                and any(item.external for item in self.lab.sessions_of(box.name)),
            )
        peerings = [
            Peering(
                own.box,
                peer.box,
                _hop_of(session, own),
                session.external,
                not session.external and own.box in reflects and peer.box not in reflects,
            )
            for session in self.lab.sessions
            if session.name in standing
            for own, peer in session.ends()
        ]
        return converge(speakers, peerings, resolve=self._metric)

    def _originated(self, box: LabBox) -> Iterator[IPv4Network]:
        """What a router advertises of what it has (`network` with import check)."""
        known = self._known[box.name]
        assert box.bgp is not None
        for network in box.bgp.advertise:
            if not isinstance(network, IPv4Network):
                continue
            key = key_of(network)
            is_own = network.prefixlen == 32 and network.network_address in known.local
            has_it = is_own or key in known.static or self._has_connected(known, key)
            if has_it or self._by_ospf(box.name, key) is not None:
                yield network

    def _has_connected(self, known: Known, key: Key) -> bool:
        return any(self._is_believed(link) for link, _ in known.connected.get(key, ()))

    def _metric(self, router: str, hop: Hop) -> int | None:
        """The IGP's distance to a BGP next hop."""
        if isinstance(hop, tuple):
            return 0 if self.is_up(self.lab.link(hop[0])) else None
        if self._look_up(router, hop, with_bgp=False) is None:
            return None
        bits = int(hop)
        for length in self._lengths:
            key = (length, bits >> (32 - length))
            known = self._known[router]
            if key in known.static or self._has_connected(known, key):
                return 0
            _, distance = self._owners(router, key)
            if distance < INFINITE:
                return distance
        return 0


def _hop_of(session: Session, own: SessionEnd) -> Hop:
    if isinstance(own.address, IPv4Address):
        return own.address
    return str(session.link), own.box
