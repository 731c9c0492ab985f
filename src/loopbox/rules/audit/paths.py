"""The ways a packet from outside can take into a device, before any filter looks at it.

Owns: which interfaces lead outside and how far (same-host, link, lan, internet), which addresses
are local, which sources can be answered, and sample sources for every range a filter tells apart.

Must never: evaluate a filter (reach.py does), or know about listeners.

Example::

    for way in Ways(network, is_box=False).into(version=4): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from loopbox.rules.addressing import LOOPBACK4, LOOPBACK6
from loopbox.rules.firewall.model import Packet
from loopbox.rules.network import Address, Link, Network, Route, Subnet
from loopbox.rules.registry import registered

LEVELS = ("same-host", "link", "lan", "internet")
"""How far away a peer may be, nearest first."""

_LOCAL, _PLAIN = 255, (254, 253)
"""Routing tables: the kernel's own local addresses; main and default."""
_VIRTUAL_PORTS = frozenset({"veth", "tun", "tap"})
_FAR: dict[int, tuple[Address, ...]] = {
    4: tuple(map(IPv4Address, ("10.77.77.77", "172.29.77.77", "192.168.177.77", "9.9.9.9"))),
    6: (IPv6Address("fd77:77::77"), IPv6Address("2620:fe::fe")),
}
"""Sources beyond a gateway: private ones, then a public one."""


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of packet that can arrive: through `link`, to `target`, from `source`."""

    link: Link
    target: Address
    source: Address
    level: str
    """How far away such a sender may be."""
    why: str
    back: str = ""
    """The interface its answers leave by, where that is another one."""


CLIENT_PORT = 40077
"""An ephemeral port: what a client that does not choose its port sends from."""


def first_packet(way: Way, protocol: int, port: int, sport: int = CLIENT_PORT) -> Packet:
    """The packet that opens a connection to `port` on this way."""
    return Packet(
        version=way.target.version,
        protocol=protocol,
        source=way.source,
        target=way.target,
        sport=sport,
        dport=port,
        iif=way.link.name,
        is_straight=not way.back,
    )


class Ways:
    """The outside of one namespace."""

    def __init__(self, network: Network, *, is_box: bool) -> None:
        self._network = network
        self._is_box = is_box
        self._local = _ranges(network, lambda route: route.table == _LOCAL)
        self._elsewhere = _ranges(network, lambda route: route.table not in (_LOCAL, *_PLAIN))
        own = {entry.address for entry in network.addresses}
        self._own = own
        self._broadcast = {
            route.destination[0] for route in network.routes if route.type == "broadcast"
        }
        self._routes = {version: _by_table(network, version) for version in (4, 6)}
        self.outside = tuple(
            link
            for link in network.links
            if link.is_up and not link.is_loopback and not self._is_port(link)
        )
        self._has_hardware = any(
            not link.kind for link in network.links if link.is_up and not link.is_loopback
        )
        self._kinds: dict[Address, str] = {}

    def _is_port(self, link: Link) -> bool:
        """Whether its packets come out of the bridge or bond above it. A VRF's do not."""
        return bool(link.master) and self.domain(link) == 0

    def domain(self, link: Link) -> int:
        """The index of the VRF an interface belongs to; 0 for none."""
        above = self._network.link(link.master) if link.master else None
        return link.master if above is not None and above.kind == "vrf" else 0

    @property
    def inner(self) -> tuple[Link, ...]:
        """Links that lead to boxes and containers, and are not this namespace's own way out.

        Bridges with nothing but virtual ports, and veths whose other end is elsewhere; a link that
        bears a default route is a cable, whatever it is made of.
        """
        cables = {
            route.index for version in (4, 6) for route in self._network.default_routes(version)
        }
        return tuple(
            link
            for link in self.outside
            if link.index not in cables
            and link.carrier
            and (
                self._has_virtual_ports(link)
                if link.kind == "bridge"
                else link.kind == "veth" and link.elsewhere
            )
        )

    def neighbours(self, link: Link, version: int) -> tuple[Address, ...]:
        """Sample senders that are on `link` itself."""
        return tuple(
            dict.fromkeys(
                source
                for source, zone, back in self._sources(link, version, ())
                if zone == "onlink" and not back
            )
        )

    def kind_of(self, address: Address) -> str:
        """The route type of an address: local, broadcast, multicast or unicast."""
        known = self._kinds.get(address)
        if known is None:
            known = self._kinds[address] = self._look_up(address)
        return known

    def _look_up(self, address: Address) -> str:
        if address in self._own or _within(address, self._local):
            return "local"
        plain = self._best(address, _PLAIN)
        if plain is not None and plain.type == "local":
            return "local"
        if address in self._broadcast or address == IPv4Address("255.255.255.255"):
            return "broadcast"
        return "multicast" if registered(address).kind == "multicast" else "unicast"

    def may_be_local(self, address: Address) -> bool:
        """Whether a routing table apart delivers it here, for packets that its rules lead there.

        Transparent proxies make everything local that way.
        """
        return _within(address, self._elsewhere)

    def local_targets(self, version: int) -> tuple[Address, ...]:
        """Every local address: configured ones, and one of each range made local by a route."""
        found: dict[Address, None] = {
            entry.address: None for entry in self._network.addresses if _is(entry.address, version)
        }
        plain = _ranges(self._network, lambda route: route.table in _PLAIN)
        for low, high, family in (*self._local, *plain):
            # Of a whole local range (AnyIP, 127/8) the first host stands for all.
            if family == version and high - low > 1:
                found[IPv4Address(low + 1) if version == 4 else IPv6Address(low + 1)] = None
        return tuple(found)

    def first_address(self, link: Link, version: int) -> Address | None:
        """Where a redirect sends a packet that came in through `link`."""
        entries = (
            entry.address
            for entry in self._network.addresses_on(link)
            if _is(entry.address, version)
        )
        return next(entries, None)

    def link_towards(self, address: Address) -> Link | None:
        """Where a packet for `address` is carried on; None when no route says so."""
        route = self._best(address, tuple(self._routes[address.version]))
        if route is None or route.type != "unicast":
            return None
        return self._network.link(route.index)

    def _best(self, address: Address, tables: Iterable[int]) -> Route | None:
        """The route to an address in the first of these tables that has one."""
        for table in tables:
            for route in self._routes[address.version].get(table, ()):
                if address in route.destination:
                    return route
        return None

    def route_localnet(self, link: Link) -> bool:
        """Whether 127/8 is ordinary on this link (CVE-2020-8558): `all` or its own setting."""
        return "1" in {
            self._network.knob(f"ipv4/conf/{name}/route_localnet") for name in ("all", link.name)
        }

    def into(
        self,
        version: int,
        samples: Iterable[Address] = (),
        targets: Iterable[Address] | None = None,
    ) -> Iterator[Way]:
        """All ways in for one IP version, to `targets` (None: every local address).

        `samples` are further sources worth trying.
        """
        if targets is None:
            targets = self.local_targets(version)
        targets = tuple(targets)
        for link in self.outside:
            if version == 6 and self._network.knob(f"ipv6/conf/{link.name}/disable_ipv6") == "1":
                continue
            sources = tuple(self._sources(link, version, tuple(samples)))
            for target in targets:
                if not self._arrives(link, target):
                    continue
                for source, zone, back in sources:
                    level, why = self._level(link, target, source, zone)
                    yield Way(link, target, source, level, why, back)

    def _arrives(self, link: Link, target: Address) -> bool:
        """Whether the kernel takes a packet for `target` from this link (weak host model)."""
        if isinstance(target, IPv4Address):
            return target not in LOOPBACK4 or self.route_localnet(link)
        if target == LOOPBACK6:
            return False  # net/ipv6/ip6_input.c drops it, whatever the settings
        if target.is_link_local:
            return any(entry.address == target for entry in self._network.addresses_on(link))
        return True

    def _sources(
        self, link: Link, version: int, samples: tuple[Address, ...]
    ) -> Iterator[tuple[Address, str, str]]:
        """(source, onlink | lan | internet, other way back) of senders that can be answered."""
        candidates: dict[Address, None] = {}
        for table in self._routes[version].values():
            for route in table:
                if link.index in (route.index, *route.also) and route.type == "unicast":
                    candidates.update(dict.fromkeys(self.hosts(route.destination)))
        others = [*_FAR[version], *(sample for sample in samples if _is(sample, version))]
        candidates.update(dict.fromkeys(others))
        for source in candidates:
            if self.kind_of(source) != "unicast":
                continue
            route_back = self._route_to(source, link)
            if route_back is None:
                back = self._other_way(source, link)
                if back:
                    yield source, "onlink", back
            elif route_back.gateway is None and route_back.destination.prefixlen:
                yield source, "onlink", ""
            else:
                public = registered(source).kind == "public"
                yield source, "internet" if public else "lan", ""

    def _route_to(self, source: Address, link: Link) -> Route | None:
        """The route an answer to `source` takes, if one leaves by `link`.

        Which of several tables is asked depends on rules about marks and addresses; any may be. A
        link-local answer leaves by the link it came from.
        """
        for table in self._routes[source.version].values():
            for route in table:
                if source not in route.destination:
                    continue
                if link.index in (route.index, *route.also) and route.type == "unicast":
                    return route
                if not source.is_link_local:
                    break
        return None

    def _other_way(self, source: Address, link: Link) -> str:
        """The interface answers leave by when it is another one, and the kernel bears that.

        A neighbour with legs in two networks may send into the one and be answered in the other,
        unless rp_filter is strict. Boxes and containers have one leg.
        """
        knobs = (f"ipv4/conf/{name}/rp_filter" for name in ("all", link.name))
        if source.version == 4 and max(self._network.knob(knob) for knob in knobs) == "1":
            return ""
        if source.is_link_local or self._is_inside_machine(link):
            return ""
        onward = self.link_towards(source)
        return "" if onward is None or onward.is_loopback else onward.name

    def hosts(self, network: Subnet) -> list[Address]:
        """A few addresses of a network that are not our own."""
        if network.prefixlen == 0 or registered(network[0]).kind == "multicast":
            return []
        first = int(network[0])
        make = IPv4Address if isinstance(network, IPv4Network) else IPv6Address
        # Both ends of a point-to-point link are hosts (RFC 3021, RFC 6164); else the first and last
        # addresses are not.
        size = network.num_addresses
        offsets = range(size) if size <= 2 else (*range(1, min(size - 1, 6)), size - 2)
        hosts = [make(first + offset) for offset in offsets]
        return [host for host in hosts if self.kind_of(host) == "unicast"][:1]

    def _level(self, link: Link, target: Address, source: Address, zone: str) -> tuple[str, str]:
        """How far away such a sender may be, and why we say so."""
        name = _shown(link.name)
        if self._is_inside_machine(link):
            return "same-host", f"{target} answers containers and boxes on {name}"
        if isinstance(target, IPv4Address) and target in LOOPBACK4:
            return "link", f"route_localnet=1 lets neighbours on {name} reach {target}"
        if registered(target).kind == "link":
            return "link", f"{target} answers neighbours on {name}"
        if not self._is_on_outside(target):
            return "link", f"neighbours on {name} can route to {target} (weak host model)"
        if zone == "internet" and registered(target).kind == "public":
            return "internet", f"{target} on {name} is a public address with a default route"
        return "lan", f"{target} answers the network on {name}"

    def _is_on_outside(self, target: Address) -> bool:
        outside = {link.index for link in self.outside}
        return any(
            entry.address == target and entry.index in outside for entry in self._network.addresses
        )

    def _is_inside_machine(self, link: Link) -> bool:
        """Whether the link leads only to boxes and containers of this machine.

        A bridge whose ports are all virtual does. So does a veth whose other end is elsewhere on
        this machine, provided there is hardware besides: else it is this namespace's only cable.
        """
        if self._is_box:
            return True
        if link.kind == "bridge":
            return self._has_hardware and self._has_virtual_ports(link)
        return link.kind == "veth" and link.elsewhere and self._has_hardware

    def _has_virtual_ports(self, bridge: Link) -> bool:
        ports = [port for port in self._network.links if port.master == bridge.index]
        return all(port.kind in _VIRTUAL_PORTS for port in ports)


def forwards(network: Network, link: Link, version: int) -> bool:
    """Whether packets that came in by `link` may be carried on (net/ipv4/route.c)."""
    if version == 6:
        return network.knob("ipv6/conf/all/forwarding") == "1"
    knobs = ("ipv4/ip_forward", f"ipv4/conf/{link.name}/forwarding")
    return "1" in {network.knob(knob) for knob in knobs}


def _is(address: Address, version: int) -> bool:
    return address.version == version


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _within(address: Address, ranges: Iterable[tuple[int, int, int]]) -> bool:
    number, family = int(address), address.version
    return any(family == version and low <= number <= high for low, high, version in ranges)


def _ranges(network: Network, wanted: Callable[[Route], bool]) -> tuple[tuple[int, int, int], ...]:
    """(first, last, IP version) of each network that routes make local."""
    return tuple(
        (int(route.destination[0]), int(route.destination[-1]), route.destination.version)
        for route in network.routes
        if route.type == "local" and wanted(route)
    )


def _by_table(network: Network, version: int) -> dict[int, list[Route]]:
    """Routes by table, the most specific first; the ordinary tables before the others."""
    tables: dict[int, list[Route]] = {}
    for route in network.routes:
        if route.destination.version == version and route.table != _LOCAL:
            tables.setdefault(route.table, []).append(route)
    return {
        table: sorted(tables[table], key=lambda route: (-route.destination.prefixlen, route.metric))
        for table in sorted(tables, key=lambda table: (table not in _PLAIN, -table))
    }
