"""Ports of this device that a translation carries on to another one: published container ports.

Owns: finding them in the rules (no socket of ours need exist), and whether the packets get through
prerouting, routing and forward. Such packets never see the input chain, so rules there, and tools
that edit it, do not protect them (moby/moby#4737).

Must never: list a translation that ends here (reach.py judges those by their listener).

Example::

    [found.listener.port for found in published(view)]      # [8080]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loopbox.rules.addressing import text_of
from loopbox.rules.audit.paths import LEVELS, Way, Ways, first_packet, forwards
from loopbox.rules.audit.samples import Samples, leading_rules, named_ports, samples
from loopbox.rules.audit.view import Verdict, View
from loopbox.rules.firewall.evaluate import outcomes
from loopbox.rules.firewall.model import Packet, Range, Rule
from loopbox.rules.network import ListeningSocket

_PROTOCOLS = {6: "tcp", 17: "udp"}
_WIDEST = 16
"""Ports of one published range that are looked at."""
_ANY = 40079
"""From here on a port is looked for that no rule names: it stands for every port."""


@dataclass(frozen=True, slots=True)
class Published:
    """One port that leads elsewhere, in the shape of a listener."""

    listener: ListeningSocket
    verdict: Verdict


def published(view: View) -> list[Published]:
    """Every port from which packets of others are carried on to another device."""
    rules = leading_rules(view.ruleset, lambda action: action.kind == "dnat")
    if not rules:
        return []
    ways = Ways(view.network, is_box=view.is_box)
    told = samples(view.ruleset)
    best: dict[tuple[str, int, int], Published] = {}
    plain = _plain_port(rules)
    asked = [*_announced(rules), *((number, plain) for number in _PROTOCOLS)]
    for protocol, port in dict.fromkeys(asked):
        for version in (4, 6):
            local = [a for a in told.targets[version] if ways.kind_of(a) == "local"]
            places = (*ways.local_targets(version), *local)
            for way in ways.into(version, told.sources[version], places):
                found = _carried(view, ways, way, (protocol, port), told)
                if found is not None and port == plain:
                    found = _of_every_port(found)
                key = (_PROTOCOLS[protocol], port, version)
                if found is not None and _rank(found) > _rank(best.get(key)):
                    best[key] = found
    return list(best.values())


def _announced(rules: list[Rule]) -> Iterator[tuple[int, int]]:
    """(protocol number, port) that the translating rules name."""
    pairs = [(rule, value) for rule in rules for value in named_ports(rule)]
    for rule, value in pairs:
        protocols = [v for m in rule.matches if m.field == "protocol" for v in m.values]
        named = [p for p in protocols if isinstance(p, Range)]
        for port in range(value.low, min(value.high, value.low + _WIDEST - 1) + 1):
            for number in _PROTOCOLS:
                if not named or any(p.low <= number <= p.high for p in named):
                    yield number, port


def _plain_port(rules: list[Rule]) -> int:
    """A port that no translating rule names: what becomes of it becomes of every other."""
    ranges = [value for rule in rules for value in named_ports(rule)]
    ports = (port for port in range(_ANY, 1 << 16))
    return next((p for p in ports if not any(v.low <= p <= v.high for v in ranges)), _ANY)


def _of_every_port(found: Published) -> Published:
    """Told as port 0: the translation asks for no port."""
    listener = replace(found.listener, port=0)
    told = found.verdict.evidence[0].replace(
        f"port {found.listener.port} on to", "every port on to", 1
    )
    verdict = replace(found.verdict, evidence=(told, *found.verdict.evidence[1:]))
    return Published(listener, verdict)


def _carried(
    view: View, ways: Ways, way: Way, asked: tuple[int, int], told: Samples
) -> Published | None:
    """What becomes of one packet, if it is carried on: the surest way that is found."""
    found = None
    for sport in told.sports:
        one = _carried_from(view, ways, way, asked, sport)
        if one is not None and one.verdict.level != "unknown":
            return one
        found = found or one
    return found


def _carried_from(
    view: View, ways: Ways, way: Way, asked: tuple[int, int], sport: int
) -> Published | None:
    protocol, port = asked
    first = first_packet(way, protocol, port, sport)
    for routed in outcomes(view.ruleset, "prerouting", first, ways.kind_of):
        packet = routed.packet
        if routed.verdict != "accept" or not packet.natted or packet.redirected:
            continue
        if ways.kind_of(packet.target) != "unicast" or not forwards(
            view.network, way.link, way.target.version
        ):
            continue
        onward = ways.link_towards(packet.target)
        if onward is None or onward.index == way.link.index:
            continue  # no route, or back to where it came from: nobody new is reached
        leaving = replace(packet, oif=onward.name)
        for end in outcomes(view.ruleset, "forward", leaving, ways.kind_of):
            if end.verdict == "accept":
                sure = routed.sure and end.sure
                return _published(way, packet, port, sure=sure, because=end.because)
    return None


def _published(way: Way, packet: Packet, port: int, *, sure: bool, because: str) -> Published:
    target = text_of(packet.target)
    place = f"[{target}]:{packet.dport}" if ":" in target else f"{target}:{packet.dport}"
    evidence = [
        f"a translation carries port {port} on to {place}, past every rule of the input chain",
        way.why,
    ]
    if not sure:
        evidence.append(because)
    return Published(
        ListeningSocket(
            protocol=_PROTOCOLS[packet.protocol],
            family="ipv4" if packet.version == 4 else "ipv6",
            address=way.target,
            port=port,
            interface=0,
            inode=0,
            uid=0,
        ),
        Verdict(way.level if sure else "unknown", "published", tuple(evidence)),
    )


def _rank(found: Published | None) -> int:
    """How exposed; surely open above unknown, unknown above nothing."""
    if found is None:
        return -2
    return -1 if found.verdict.level == "unknown" else LEVELS.index(found.verdict.level)
