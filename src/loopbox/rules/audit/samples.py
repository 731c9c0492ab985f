"""What a ruleset tells apart, so that a few samples stand for all packets.

Owns: collecting every port, source and target the rules compare with. A filter that only compares
treats all packets between two such borders alike, so one sample from each range is exact.

Must never: evaluate a rule.

Example::

    ports, sources, targets, translates = constants(ruleset)
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from loopbox.rules.firewall.model import Action, Range, Rule, Ruleset
from loopbox.rules.network import Address
from loopbox.rules.registry import registered


def constants(
    ruleset: Ruleset,
) -> tuple[
    set[tuple[int, int]], dict[int, tuple[Address, ...]], dict[int, tuple[Address, ...]], bool
]:
    """What the rules tell apart: port ranges, sample sources, targets; and do they translate?"""
    ports: set[tuple[int, int]] = set()
    sources: dict[int, set[int]] = {4: set(), 6: set()}
    targets: dict[int, set[int]] = {4: set(), 6: set()}
    translates = False
    for chain in ruleset.chains:
        for rule in chain.rules:
            translates = translates or _is_translating(rule.action)
            for name, value in _compared_values(rule):
                if name in ("dport", "sport"):
                    ports.add((value.low, value.high))
                elif value.version in sources and name in ("saddr", "daddr"):
                    edges = (value.low - 1, value.low, value.low + 1, value.high, value.high + 1)
                    (sources if name == "saddr" else targets)[value.version].update(edges)
    return ports, _usable(sources), _usable(targets), translates


def _usable(numbers: dict[int, set[int]]) -> dict[int, tuple[Address, ...]]:
    """The numbers that can be somebody's address, as addresses."""
    found: dict[int, tuple[Address, ...]] = {
        4: tuple(IPv4Address(n) for n in sorted(numbers[4]) if 0 < n < 1 << 32),
        6: tuple(IPv6Address(n) for n in sorted(numbers[6]) if 0 < n < 1 << 128),
    }
    return {
        version: tuple(a for a in some if registered(a).kind not in ("multicast", "special"))
        for version, some in found.items()
    }


def _is_translating(action: Action) -> bool:
    if action.kind in ("dnat", "redirect", "tproxy", "?"):
        return True
    return any(_is_translating(then) for _values, then in action.ways)


def _compared_values(rule: Rule) -> Iterator[tuple[str, Range]]:
    """(field, range) of everything a rule compares, in its matches and its verdict map."""
    pairs = [(match.field, value) for match in rule.matches for value in match.values]
    queue = [rule.action]
    while queue:
        action = queue.pop()
        for values, then in action.ways:
            pairs += [(action.field, value) for value in values]
            queue.append(then)
    for name, value in pairs:
        if isinstance(value, Range):
            yield name, value
