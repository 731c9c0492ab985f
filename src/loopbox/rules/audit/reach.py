"""From where a listener can be reached: packets sent, in thought, through filter and addresses.

Owns: the verdict levels of the contract. For every way into the device a sample packet is walked
through ingress, prerouting, local delivery, input and (TCP) the reply's output; samples are taken
from every range of sources and ports that the rules tell apart, so the answer is exact for rules
that compare. What hangs on a rule nobody can evaluate is `unknown`.

Must never: call `unknown` safe; look at programs (tools.py) or severities (findings.py).

Example::

    Reachability(View(network, ruleset)).judge(listener).level      # "blocked"
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from loopbox.rules.addressing import is_loopback, is_unspecified, text_of, unwrapped
from loopbox.rules.audit.hooks import doubt, steering
from loopbox.rules.audit.inside import NUMBERS, bound, from_inside, versions
from loopbox.rules.audit.paths import CLIENT_PORT, LEVELS, Way, Ways, first_packet
from loopbox.rules.audit.samples import samples, sources_for, translated_here
from loopbox.rules.audit.view import Verdict, View
from loopbox.rules.firewall.evaluate import outcomes
from loopbox.rules.firewall.model import Outcome, Packet
from loopbox.rules.network import Address, Link, ListeningSocket

__all__ = ["Reachability", "Verdict", "View"]

_MOST_PORTS = 256
_FOREIGN: dict[int, Address] = {
    4: IPv4Address("198.51.100.77"), 6: IPv6Address("2001:db8:77::77")
}  # fmt: skip
"""Nobody's addresses: a neighbour may take this device for its gateway."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Where a packet ends up."""

    accepted: bool
    target: Address
    port: int
    sure: bool
    because: str
    translated: bool = False
    top: int | None = None
    """The last of several ports it may end up at."""
    anywhere: bool = False
    """It may end up at any address and port."""


class Reachability:
    """Judges listeners of one namespace; results of the same packet are kept."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._ways = Ways(view.network, is_box=view.is_box)
        self._kept: dict[tuple[object, ...], tuple[_Arrival, ...]] = {}
        told = samples(view.ruleset)
        self._borders, self._sources, self._sports = told.borders, told.sources, told.sports
        self._targets = {
            version: tuple(
                dict.fromkeys(
                    (
                        *self._ways.local_targets(version),
                        *(a for a in told.targets[version] if self._ways.kind_of(a) == "local"),
                    )
                )
            )
            for version in (4, 6)
        }
        moved = translated_here(view.ruleset, lambda one: self._ways.kind_of(one) == "local")
        self._frames = next(
            (
                f"cannot evaluate what chain {chain.table} {chain.name} does to a bridge's frames"
                for chain in view.ruleset.chains
                if chain.family == "bridge"
                and chain.hook
                and (chain.rules or chain.policy == "drop")
            ),
            None,
        )
        self._moves = moved is not None
        self._moved_ports = moved.ports[:_MOST_PORTS] if moved else ()
        self._too_many = moved is not None and len(moved.ports) > _MOST_PORTS
        self._foreign = {
            version: tuple(a for a in (*moved.targets, _FOREIGN[version]) if a.version == version)
            if moved
            else ()
            for version in (4, 6)
        }
        self._all_ways: dict[tuple[object, ...], tuple[Way, ...]] = {}
        self._named: dict[tuple[int, int, int], tuple[Address, ...]] = {}
        self._moved: dict[tuple[object, ...], tuple[_Arrival, ...]] = {}

    def judge(self, listener: ListeningSocket, *, filters: Sequence[str] = ()) -> Verdict:
        """Who can connect to `listener`.

        `filters` are doubts about programs that filter its own packets (cgroup BPF): they can only
        drop, so what is shut without them stays shut.
        """
        address = unwrapped(listener.address)
        steered = steering(self._view.hooks, self._ways.outside)
        steered = steered if listener.protocol in NUMBERS else None
        special = self._special(listener, address)
        if special is not None:
            if special.level == "unreachable" and steered:
                return Verdict("unknown", "rule", (*special.evidence, steered))
            return special
        opens, doubts, shut = self._try_all(listener)
        if self._too_many and listener.protocol in NUMBERS:
            doubts.append(("internet", "more ports are translated than can be looked at"))
        if steered:
            doubts.append(("internet", steered))
        wide = (bound(listener), *self._unseen())
        if opens:
            level, cause, why = max(opens, key=lambda entry: LEVELS.index(entry[0]))
            if filters:
                return Verdict("unknown", "rule", (*wide, *filters, f"but for that: {why}"))
            # Nearby peers surely get in. Is that all? What is doubtful further out counts more.
            wider = [text for far, text in doubts if far != "same-host"]
            if not (wider and level == "same-host"):
                others = tuple(dict.fromkeys(text for _, _, text in opens if text != why))[:3]
                return Verdict(level, cause, (*wide, why, *others))
        if doubts:
            texts = tuple(dict.fromkeys(text for _, text in doubts))[:4]
            return Verdict("unknown", "rule", (*wide, *texts))
        if shut:
            return Verdict("blocked", "filter", (*wide, *tuple(dict.fromkeys(shut))[:4]))
        return from_inside(self._view, self._ways, listener)

    def reaches(self, listener: ListeningSocket, source: Address) -> str:
        """open, closed or unknown: can exactly this peer connect to one of our addresses?"""
        found = set()
        for version in versions(listener):
            if source.version != version:
                continue
            for way in self._ways.into(version, (source,)):
                if way.source == source:
                    found |= {
                        ("open" if arrival.sure else "unknown")
                        for arrival in self._deliveries(listener, way)
                        if arrival.accepted
                    }
        return "open" if "open" in found else "unknown" if found else "closed"

    # -- parts of judge ---------------------------------------------------------------------------

    def _special(self, listener: ListeningSocket, address: Address) -> Verdict | None:
        """Verdicts that need no packets: groups, and addresses this device does not have."""
        if is_unspecified(address):
            return None
        kind = self._ways.kind_of(address)
        where = text_of(listener.address)
        if kind in ("multicast", "broadcast") and not is_loopback(address):
            level = "link" if self._ways.outside else "loopback"
            return Verdict(level, kind, (f"{where} is a {kind} address of the link",))
        if kind == "unicast" and not self._ways.may_be_local(address):
            return Verdict(
                "unreachable", "not-local", (f"{where} is not an address of this device now",)
            )
        return None

    def _try_all(
        self, listener: ListeningSocket
    ) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]], list[str]]:
        """(open ways as (level, cause, why), doubts as (level, text), reasons for drops)."""
        opens: list[tuple[str, str, str]] = []
        doubts: list[tuple[str, str]] = []
        shut: list[str] = []
        for version in versions(listener):
            for way in self._ways_to(version, listener):
                for arrival in self._deliveries(listener, way):
                    if not arrival.accepted:
                        shut.append(f"{_who(way)} {arrival.because or 'dropped'}")
                    elif arrival.sure:
                        opens.append((way.level, _cause(listener, way, arrival), way.why))
                    else:
                        why = arrival.because or "a rule that cannot be evaluated"
                        doubts.append((way.level, why))
        return opens, doubts, shut

    def _ways_to(self, version: int, listener: ListeningSocket) -> tuple[Way, ...]:
        """Every way in, also to an address that only this listener makes interesting."""
        known, address = self._targets[version], unwrapped(listener.address)
        extra = None if is_unspecified(address) or address in known else address
        sources = self._sources[version]
        if not self._moves:  # else a packet may meet rules about other ports too
            protocol = NUMBERS.get(listener.protocol, listener.port)
            port = listener.port if listener.protocol in NUMBERS else 0
            sources = self._sources_of(version, protocol, port)
        found = self._all_ways.get((version, extra, sources))
        if found is None:
            targets = (*known, *(() if extra is None else (extra,)), *self._foreign[version])
            found = tuple(self._ways.into(version, sources, targets))
            self._all_ways[version, extra, sources] = found
        return found

    def _sources_of(self, version: int, protocol: int, port: int) -> tuple[Address, ...]:
        key = (version, protocol, bisect_right(self._borders, port))
        known = self._named.get(key)
        if known is None:
            known = sources_for(self._view.ruleset, version, protocol, port)
            self._named[key] = known
        return known

    def _deliveries(self, listener: ListeningSocket, way: Way) -> Iterator[_Arrival]:
        """What becomes of packets on this way that are, or could become, meant for `listener`."""
        protocol = NUMBERS.get(listener.protocol, listener.port)
        port = listener.port if listener.protocol in NUMBERS else 0
        moved = self._moved_on(way, protocol) if listener.protocol in NUMBERS else ()
        for arrival in (*self._arrivals(way, protocol, port), *moved):
            if self._takes(listener, arrival, way.link):
                yield arrival

    def _moved_on(self, way: Way, protocol: int) -> tuple[_Arrival, ...]:
        """Packets to other ports that the rules translate on their way."""
        if not self._moves:
            return ()
        key = (way.link.index, way.target, way.source, way.back, protocol)
        known = self._moved.get(key)
        if known is None:
            known = self._moved[key] = tuple(
                arrival
                for port in self._moved_ports
                for arrival in self._arrivals(way, protocol, port)
                if arrival.accepted and (arrival.translated or arrival.port != port)
            )
        return known

    def _takes(self, listener: ListeningSocket, arrival: _Arrival, link: Link) -> bool:
        """Whether a packet that ends up there is this listener's, or may be."""
        if listener.interface not in (0, link.index, self._ways.domain(link)):
            return False
        address = unwrapped(listener.address)
        if arrival.anywhere:
            return not is_loopback(address) or (
                address.version == 4 and self._ways.route_localnet(link)
            )
        top = arrival.port if arrival.top is None else arrival.top
        if listener.protocol in NUMBERS and not arrival.port <= listener.port <= top:
            return False
        return is_unspecified(address) or address == arrival.target

    def _arrivals(self, way: Way, protocol: int, port: int) -> tuple[_Arrival, ...]:
        """The fate of one packet; ports between which no rule tells are walked once."""
        rank = bisect_right(self._borders, port)
        key = (way.link.index, way.target, way.source, way.back, protocol, rank)
        known = self._kept.get(key)
        if known is None:
            # -1 stands for "the port it was sent to", so that the whole class can be kept.
            known = tuple(
                dict.fromkeys(
                    replace(arrival, port=-1) if arrival.port == port else arrival
                    for arrival in self._doubted(way, protocol, self._walk(way, protocol, port))
                )
            )
            self._kept[key] = known
        return tuple(
            replace(arrival, port=port) if arrival.port == -1 else arrival for arrival in known
        )

    def _doubted(self, way: Way, protocol: int, arrivals: Iterator[_Arrival]) -> Iterator[_Arrival]:
        """The arrivals, unsure where a program that is no rule sees the packets or the answers.

        On the way in it may also rewrite what the rules would drop, so nothing is shut behind it.
        """
        entering = doubt(self._view.hooks, way.link, "ingress")
        if way.link.kind == "bridge":
            entering = entering or self._frames
        leaving = doubt(self._view.hooks, way.link, "egress") if protocol == 6 else None
        leaving = leaving or doubt(self._view.hooks, way.link, "filter")
        for arrival in arrivals:
            if entering:
                yield replace(arrival, accepted=True, sure=False, because=entering)
            elif leaving and arrival.accepted:
                yield replace(arrival, sure=False, because=leaving)
            else:
                yield arrival

    def _walk(self, way: Way, protocol: int, port: int) -> Iterator[_Arrival]:
        """Ingress, prerouting, local delivery, input, and the reply, from every source port."""
        rules, kind_of = self._view.ruleset, self._ways.kind_of
        for sport in self._sports if protocol in NUMBERS.values() else (CLIENT_PORT,):
            first = first_packet(way, protocol, port, sport)
            for entered in outcomes(rules, "ingress", first, kind_of):
                if entered.verdict != "accept":
                    yield _Arrival(False, way.target, port, entered.sure, entered.because)
                    continue
                for routed in outcomes(rules, "prerouting", entered.packet, kind_of):
                    sure = entered.sure and routed.sure
                    if routed.verdict != "accept":
                        yield _Arrival(False, way.target, port, sure, routed.because)
                        continue
                    yield from self._received(way, routed, sure=sure)

    def _received(self, way: Way, routed: Outcome, *, sure: bool) -> Iterator[_Arrival]:
        """Local delivery, input and the reply of a packet that came through prerouting."""
        packet = self._delivered(way, routed.packet)
        if packet is None:
            return
        target, port = packet.target, packet.dport
        if packet.proxy is not None:
            own = self._ways.first_address(way.link, packet.version)
            target, port = packet.proxy[0] or own or target, packet.proxy[1]
        because = routed.because
        if packet.proxy is None and self._ways.kind_of(packet.target) != "local":
            sure = False
            because = because or f"a routing table apart may deliver {packet.target} here"
        if packet.anywhere or packet.top is not None:
            # Rules of the input chain would see an address and port that nobody can tell.
            yield _Arrival(True, target, port, False, because, True, packet.top, packet.anywhere)
            return
        for put in outcomes(self._view.ruleset, "input", packet, self._ways.kind_of):
            accepted, why, certain = put.verdict == "accept", put.because, put.sure
            if accepted and packet.protocol == NUMBERS["tcp"]:
                accepted, why, certain = self._answers(packet, way, certain, why)
            yield _Arrival(
                accepted,
                target,
                port,
                sure and certain,
                because or why,
                packet.natted or packet.proxy is not None,
            )

    def _delivered(self, way: Way, packet: Packet) -> Packet | None:
        """The packet as local delivery sees it; None when it is forwarded or a martian."""
        if packet.redirected:
            own = self._ways.first_address(way.link, packet.version)
            return None if own is None else replace(packet, target=own)
        if packet.proxy is not None or packet.anywhere:
            return packet
        # Translated to loopback: IPv4 only, and only where 127/8 is ordinary on that link.
        moved = packet.target != way.target and is_loopback(packet.target)
        if moved and (packet.version == 6 or not self._ways.route_localnet(way.link)):
            return None
        here = self._ways.kind_of(packet.target) == "local"
        return packet if here or self._ways.may_be_local(packet.target) else None

    def _answers(
        self, packet: Packet, way: Way, certain: bool, because: str
    ) -> tuple[bool, str, bool]:
        """Whether the SYN's answer gets out and the peer's ACK in, as (accepted, why, sure)."""
        reply = Packet(
            version=packet.version,
            protocol=6,
            source=packet.target,
            target=packet.source,
            sport=packet.dport,
            dport=packet.sport,
            oif=way.back or way.link.name,
            state="established",
            flags=0x12,
            is_tracked=packet.is_tracked,
        )
        back = replace(packet, state="established", flags=0x10)
        for hook, later in (
            ("output", reply),
            ("postrouting", reply),
            ("egress", reply),
            ("input", back),
        ):
            ends = outcomes(self._view.ruleset, hook, later, self._ways.kind_of)
            passing = [end for end in ends if end.verdict == "accept"]
            if not passing:
                return False, ends[0].because, certain
            because = because or passing[0].because
            certain = certain and passing[0].sure
        return True, because, certain

    def _unseen(self) -> tuple[str, ...]:
        if self._view.is_firewall_seen:
            return ()
        return ("the packet filter was not read (it takes root): it may block this",)


def _who(way: Way) -> str:
    return f"from {way.source} on {way.link.name}:"


def _cause(listener: ListeningSocket, way: Way, arrival: _Arrival) -> str:
    """How it comes to be reachable, in one word."""
    if arrival.translated:
        return "nat"
    if is_loopback(way.target):
        return "route-localnet"
    if is_unspecified(listener.address):
        return "wildcard"
    return "alias" if "weak host model" in way.why else "address"
