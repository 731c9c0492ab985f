"""Networks of boxes and containers that a neighbour reaches merely by adding a route.

Owns: finding them. A machine that forwards (ip_forward=1) carries on whatever arrives for a network
behind it, published or not, as far as its forward chain accepts; loopback-published and unpublished
ports of containers are open that way (moby/moby#45610). A sample of packets from on-link neighbours
is walked, in thought, through prerouting and forward, and its answer back.

Must never: take a machine with cards on both sides, a router, for a fault; look at translated
packets (published.py does).

Example::

    [found.title for found in routed(view, where="host")]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loopbox.rules.addressing import text_of
from loopbox.rules.audit.findings import Finding, finding
from loopbox.rules.audit.hooks import doubt
from loopbox.rules.audit.paths import CLIENT_PORT, Way, Ways, first_packet, forwards
from loopbox.rules.audit.samples import samples
from loopbox.rules.audit.view import Verdict, View
from loopbox.rules.firewall.evaluate import outcomes
from loopbox.rules.firewall.model import Outcome, Packet, Range, Rule
from loopbox.rules.network import Address, Link, ListeningSocket, Subnet

_PROTOCOLS = {6: "tcp", 17: "udp"}
_PLAIN_PORTS = (40078, 9, 3001, 61234)
"""Ports that rules seldom name: what is true of one of them is true of all that are not named."""
_WIDE = 30000
_MOST_HOSTS = 4
_MOST_PAIRS = 256
_MOST_PORTS_TOLD = 16


@dataclass(frozen=True, slots=True)
class _Passage:
    """One packet that gets through to the network, and back."""

    way: Way
    protocol: int
    port: int
    sure: bool
    because: str


def routed(view: View, *, where: str) -> list[Finding]:
    """A finding for each network behind this machine that a neighbour can route to.

    Where only single ports are let through, one for each of them.
    """
    if view.is_box:
        return []
    search = _Search(view)
    found: list[Finding] = []
    for link in search.ways.inner:
        for subnet in search.behind(link):
            best: dict[tuple[int, str, int] | None, _Passage] = {}
            for passage in search.passages(link, subnet):
                key = (passage.protocol, str(passage.way.target), passage.port)
                place = None if passage.port in search.plain else key
                if place not in best or (passage.sure and not best[place].sure):
                    best[place] = passage
            whole = best.get(None)
            if whole is not None and whole.sure:
                best = {None: whole}
            found += [
                _finding(view, link, subnet, passage, is_whole=place is None, where=where)
                for place, passage in list(best.items())[:_MOST_PORTS_TOLD]
            ]
    return found


class _Search:
    """Packets of neighbours, sent in thought to the networks behind one machine."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.ways = Ways(view.network, is_box=False)
        inner = {link.index for link in self.ways.inner}
        self._outer = [link for link in self.ways.outside if link.index not in inner]
        self._rules = [rule for chain in view.ruleset.chains for rule in chain.rules]
        self._sports = samples(view.ruleset).sports
        named = [value for rule in self._rules for value in _ranges(rule, "dport")]
        free = [port for port in _PLAIN_PORTS if not any(v.low <= port <= v.high for v in named)]
        self.plain = tuple(free[:1])
        """A port that no rule tells apart from the rest."""

    def behind(self, link: Link) -> list[Subnet]:
        """Networks that are reached through `link`."""
        return [
            route.destination
            for route in self._view.network.routes
            if route.index == link.index
            and route.type == "unicast"
            and route.table != 255
            and not route.dead
            and route.destination.prefixlen > 0
            and not route.destination.is_link_local
            and not route.destination.is_multicast
        ]

    def passages(self, inner: Link, subnet: Subnet) -> Iterator[_Passage]:
        """Sample packets that get through to `subnet`, and whose answers get back."""
        network, version = self._view.network, subnet.version
        for link in self._outer:
            if not (forwards(network, link, version) and forwards(network, inner, version)):
                continue
            why = f"neighbours on {link.name} can route to {subnet} behind {inner.name}"
            for source in self.ways.neighbours(link, version):
                for target, port in self._samples(inner, subnet):
                    way = Way(link, target, source, "link", why)
                    for protocol in _PROTOCOLS:
                        passage = self._carried(way, inner, protocol, port)
                        if passage is not None:
                            yield passage

    def _samples(self, link: Link, subnet: Subnet) -> Iterator[tuple[Address, int]]:
        """(target, port) worth trying: ordinary ones first, then what rules name together."""
        low, high = int(subnet[0]), int(subnet[-1])
        hosts = [
            entry.address
            for entry in self._view.network.neighbours
            if entry.index == link.index and entry.address in subnet
        ][:_MOST_HOSTS] + self.ways.hosts(subnet)
        pairs = {(host, port): None for host in hosts for port in self.plain}
        for rule in self._rules:
            named = [
                subnet[value.low - low]
                for value in _ranges(rule, "daddr")
                if value.version == subnet.version and low <= value.low <= high
            ]
            ports = [value.low for value in _ranges(rule, "dport")]
            if named or ports:
                found = [(host, port) for host in named or hosts for port in ports or self.plain]
                pairs.update(dict.fromkeys(found))
        for host, port in list(pairs)[:_MOST_PAIRS]:
            if self.ways.kind_of(host) == "unicast":
                yield host, port

    def _carried(self, way: Way, inner: Link, protocol: int, port: int) -> _Passage | None:
        """What becomes of one packet; None when it or its answer is dropped, or translated."""
        rules, kind_of = self._view.ruleset, self.ways.kind_of
        going = [
            Outcome("accept", first_packet(way, protocol, port, sport)) for sport in self._sports
        ]
        for hook in ("ingress", "prerouting", "forward"):
            going = [
                replace(
                    after,
                    sure=before.sure and after.sure,
                    because=after.because or before.because,
                )
                for before in going
                for after in outcomes(rules, hook, _leaving(before.packet, hook, inner), kind_of)
                if after.verdict == "accept" and not after.packet.natted
            ]
        answer = Packet(
            version=way.target.version,
            protocol=protocol,
            source=way.target,
            target=way.source,
            sport=port,
            dport=CLIENT_PORT,
            iif=inner.name,
            oif=way.link.name,
            state="established",
            flags=0x12,
        )
        ends = outcomes(rules, "forward", answer, kind_of)
        back = [end for end in ends if end.verdict == "accept"]
        if not going or not back:
            return None
        out = max(going, key=lambda end: end.sure)
        home = max(back, key=lambda end: end.sure)
        doubts = [
            text
            for link in (way.link, inner)
            for direction in ("ingress", "egress")
            if (text := doubt(self._view.hooks, link, direction))
        ]
        sure = out.sure and home.sure and not doubts
        because = "; ".join(dict.fromkeys(filter(None, [out.because, home.because, *doubts])))
        return _Passage(way, protocol, port, sure, because)


def _ranges(rule: Rule, field: str) -> list[Range]:
    """What a rule compares a field with; ranges that cover most ports say nothing of one."""
    return [
        value
        for match in rule.matches
        if match.field == field
        for value in match.values
        if isinstance(value, Range) and (field != "dport" or value.high - value.low < _WIDE)
    ]


def _leaving(packet: Packet, hook: str, inner: Link) -> Packet:
    return replace(packet, oif=inner.name) if hook == "forward" else packet


def _finding(
    view: View, link: Link, subnet: Subnet, passage: _Passage, *, is_whole: bool, where: str
) -> Finding:
    """The contract's finding; a whole network stands as its first address and port 0."""
    way, version = passage.way, subnet.version
    own = next(
        (
            text_of(entry.address)
            for entry in view.network.addresses_on(way.link)
            if entry.address.version == version
        ),
        "THIS-MACHINE",
    )
    knob = "net.ipv4.ip_forward=1" if version == 4 else "net.ipv6.conf.all.forwarding=1"
    evidence = [
        f"{way.why}: ip route add {subnet} via {own}",
        f"{knob}, and the forward chain accepts packets from {way.source} on {way.link.name}",
        "moby/moby#45610: so are ports reached that are not published, or on loopback only",
    ]
    if passage.because:
        evidence.append(passage.because)
    elif not view.is_firewall_seen:
        evidence.append("the packet filter was not read (it takes root): it may block this")
    listener = ListeningSocket(
        protocol=_PROTOCOLS[passage.protocol],
        family="ipv4" if version == 4 else "ipv6",
        address=subnet[0] if is_whole else way.target,
        port=0 if is_whole else passage.port,
        interface=link.index,
        inode=0,
        uid=0,
    )
    verdict = Verdict("link" if passage.sure else "unknown", "routed", tuple(evidence))
    plain = finding(listener, verdict, (), where=where)
    who = "neighbours reach it" if passage.sure else "neighbours may reach it"
    port = f"{_PROTOCOLS[passage.protocol]} port {passage.port} of {text_of(way.target)}"
    return replace(
        plain,
        code="routed-subnet",
        title=f"{subnet if is_whole else port} behind {link.name}: {who} by adding a route",
        fix=_fix(view, way.link, link, version),
        subnet=str(subnet) if is_whole else None,
    )


def _fix(view: View, outer: Link, inner: Link, version: int) -> str:
    """One rule that spares answers and published ports."""
    tool = "iptables" if version == 4 else "ip6tables"
    family = "ip" if version == 4 else "ip6"
    names = {chain.name for chain in view.ruleset.chains if chain.family == family}
    chain = "DOCKER-USER" if "DOCKER-USER" in names else "FORWARD"
    states = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
    return f"sudo {tool} -I {chain} -i {outer.name} -o {inner.name} {states} -j DROP"
