"""Whether one match holds for one packet.

Owns: how each field is read off a packet, and what cannot be told; leaving out the rules of a
ruleset that a packet of given ports and interfaces can never meet.

Must never: walk chains (evaluate.py does).

Example::

    is_true(Match("dport", (Range(22, 22),)), packet, kinds)      # True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from loopbox.rules.firewall.model import (
    FREE_FLAGS,
    LIMITED,
    UNKNOWN,
    Address,
    Chain,
    Match,
    Packet,
    Range,
    Ruleset,
    Value,
)

AddressKind = Callable[[Address], str]
"""The route type of an address in this namespace: local, broadcast, multicast or unicast."""


def is_true(match: Match, packet: Packet, kind_of: AddressKind) -> bool | str | None:
    """Whether a match holds; LIMITED where it holds and does not; None when that cannot be told."""
    if match.field == LIMITED:
        return LIMITED
    if match.field in _OWN_WAYS:
        return _OWN_WAYS[match.field](match, packet)
    if match.field not in _FIELDS:
        return None
    actual = _FIELDS[match.field](packet, kind_of)
    if actual is None:
        return None
    if isinstance(actual, int) and match.field == "mark":
        actual &= match.mask
    truths = [holds(value, actual, packet.version) for value in match.values]
    if match.field in ("saddr", "daddr") and all(truth is None for truth in truths) and truths:
        return False  # a rule of the other family: it does not see this packet at all
    return any(truths) != match.negated


def _flags(match: Match, packet: Packet) -> bool | str | None:
    """TCP flags. A sender may add some to its SYN that change nothing (ECN, push, urgent)."""
    wanted = {value.low for value in match.values if isinstance(value, Range)}
    free = FREE_FLAGS & match.mask
    ends = {
        ((packet.flags & ~FREE_FLAGS | added) & match.mask in wanted) != match.negated
        for added in range(256)
        if added & ~free == 0
    }
    return LIMITED if len(ends) > 1 else ends.pop()


def _next_header(match: Match, packet: Packet) -> bool | str:
    """`ip6 nexthdr` sees the first header only, and a sender may put others before its TCP."""
    ends = {
        any(holds(value, number, 6) for value in match.values) != match.negated
        for number in (packet.protocol, _OPTIONS_HEADER)
    }
    return LIMITED if len(ends) > 1 else ends.pop()


def _interface_type(match: Match, packet: Packet) -> bool | None:
    """Only loopback is known for certain."""
    if packet.iif == "lo" or set(match.values) == {"loopback"}:
        kind = "loopback" if packet.iif == "lo" else ""
        return (kind in match.values) != match.negated
    return None


_OPTIONS_HEADER = 60  # IPPROTO_DSTOPTS
_TCP = 6
_OWN_WAYS: dict[str, Callable[[Match, Packet], bool | str | None]] = {
    "flags": _flags,
    "next_header": _next_header,
    "iif_type": _interface_type,
}
"""Fields that are not one value of the packet."""


def holds(value: Value, actual: int | str, version: int) -> bool | None:
    if isinstance(value, Range):
        if value.version not in (0, version):
            return None
        return isinstance(actual, int) and value.low <= actual <= value.high
    if not isinstance(actual, str):
        return False
    return actual.startswith(value[:-1]) if value.endswith("*") else actual == value


def _packet_type(packet: Packet, kind_of: AddressKind) -> str | None:
    """How the frame was addressed. TCP takes none but its own; a datagram may come in any."""
    kind = kind_of(packet.target)
    if kind in ("broadcast", "multicast"):
        return kind
    return "host" if packet.protocol == _TCP else None


_FIELDS: dict[str, Callable[[Packet, AddressKind], int | str | None]] = {
    "iif": lambda packet, _: packet.iif,
    "oif": lambda packet, _: packet.oif,
    "saddr": lambda packet, _: int(packet.source),
    "daddr": lambda packet, _: int(packet.target),
    "sport": lambda packet, _: packet.sport,
    "dport": lambda packet, _: packet.dport,
    "protocol": lambda packet, _: packet.protocol,
    "version": lambda packet, _: packet.version,
    "state": lambda packet, _: packet.state,
    "status": lambda packet, _: "dnat" if packet.natted else "none",
    "mark": lambda packet, _: packet.mark,
    "saddr_type": lambda packet, kind_of: kind_of(packet.source),
    "daddr_type": lambda packet, kind_of: kind_of(packet.target),
    "packet_type": _packet_type,
    "way_back": lambda packet, _: "straight" if packet.is_straight else "missing",
}
"""Field to how it is read off a packet."""


Facts = tuple[int, int, int | None, int | None, str | None, str | None]
"""What stays the same on a packet's way through a hook: version, protocol, dport, sport, iif, oif;
None for what is left open."""
_FACTS = ("version", "protocol", "dport", "sport", "iif", "oif")


def narrowed(ruleset: Ruleset, facts: Facts) -> Mapping[tuple[str, str, str], Chain]:
    """The chains by key, without rules that no packet of these `facts` meets.

    Kept with the ruleset: packets by the thousand share their facts.
    """
    found = ruleset.memo.get(facts)
    if found is None:
        known = {name: fact for name, fact in zip(_FACTS, facts, strict=True) if fact is not None}
        found = ruleset.memo[facts] = {
            chain.key: replace(
                chain,
                rules=tuple(
                    rule
                    for rule in chain.rules
                    if not any(_never(match, known, facts[0]) for match in rule.matches)
                ),
            )
            for chain in ruleset.chains
        }
    return found


def _never(match: Match, known: Mapping[str, int | str], version: int) -> bool:
    actual = known.get(match.field)
    if actual is None or match.field == UNKNOWN:
        return False
    return any(holds(value, actual, version) for value in match.values) == match.negated
