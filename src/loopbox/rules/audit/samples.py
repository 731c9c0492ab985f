"""What a ruleset tells apart, so that a few samples stand for all packets.

Owns: collecting every port, source and target the rules compare with. A filter that only compares
treats all packets between two such borders alike, so one sample from each range is exact.

Must never: evaluate a rule.

Example::

    samples(ruleset).sports     # (40077, 53)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from loopbox.rules.audit.paths import CLIENT_PORT
from loopbox.rules.firewall.matching import narrowed
from loopbox.rules.firewall.model import Action, Chain, Range, Rule, Ruleset
from loopbox.rules.network import Address
from loopbox.rules.registry import registered


@dataclass(frozen=True, slots=True)
class Samples:
    """What the rules tell apart."""

    borders: tuple[int, ...]
    """Ports at which something begins to be different."""
    sources: dict[int, tuple[Address, ...]]
    targets: dict[int, tuple[Address, ...]]
    sports: tuple[int, ...]
    """Ports worth sending from. A sender chooses its own."""


def samples(ruleset: Ruleset) -> Samples:
    """What the rules of all chains tell apart."""
    ports: set[int] = set()
    sports: set[int] = set()
    numbers: dict[str, dict[int, set[int]]] = {
        name: {4: set(), 6: set()} for name in ("saddr", "daddr")
    }
    for chain in ruleset.chains:
        for rule in chain.rules:
            for name, value in _compared_values(rule):
                if name in ("dport", "sport"):
                    ports |= {value.low, value.high + 1}
                    if name == "sport":
                        sports |= {value.low, value.high}
                elif value.version in (4, 6) and name in numbers:
                    edges = {value.low - 1, value.low, value.low + 1}
                    edges |= {value.high - 1, value.high, value.high + 1}
                    numbers[name][value.version] |= edges
    return Samples(
        tuple(sorted(ports)),
        _usable(numbers["saddr"]),
        _usable(numbers["daddr"]),
        (CLIENT_PORT, *sorted(port for port in sports if 0 < port < 1 << 16)),
    )


def sources_for(ruleset: Ruleset, version: int, protocol: int, port: int) -> tuple[Address, ...]:
    """Sample sources that rules tell apart for packets to one port."""
    chains = narrowed(ruleset, (version, protocol, port, None, None, None))
    return samples(Ruleset(tuple(chains.values()))).sources[version]


@dataclass(frozen=True, slots=True)
class Translated:
    """What may be sent on to a listener of this device."""

    ports: tuple[int, ...] = ()
    targets: tuple[Address, ...] = ()
    """Addresses that rules name; they need not be ours, neighbours route them here all the same."""


def translated_here(ruleset: Ruleset, is_local: Callable[[Address], bool]) -> Translated | None:
    """Ports and targets that rules may translate to this device itself; None: no rule does."""
    found = leading_rules(ruleset, lambda action: _translates_here(action, is_local))
    if not found:
        return None
    ports: set[int] = set()
    targets: set[Address] = set()
    for rule in found:
        for name, value in _compared_values(rule):
            if name == "dport":
                ports |= {value.low - 1, value.low, value.high, value.high + 1}
            elif name == "daddr" and value.version in (4, 6):
                kind = IPv4Address if value.version == 4 else IPv6Address
                targets |= {kind(value.low), kind(value.high)}
    usable = tuple(sorted(port for port in ports if 0 < port < 1 << 16))
    return Translated(usable, tuple(sorted(targets, key=lambda one: (one.version, int(one)))))


def leading_rules(ruleset: Ruleset, is_wanted: Callable[[Action], bool]) -> list[Rule]:
    """Rules whose action is wanted, and those that jump to where such a rule may be met."""
    leading: set[tuple[str, str, str]] = set()
    chains = [chain for chain in ruleset.chains if chain.hook not in _LATER]
    while True:
        before = len(leading)
        found: list[Rule] = []
        for chain in chains:
            hits = [rule for rule in chain.rules if _leads(chain, rule.action, leading, is_wanted)]
            if hits:
                leading.add(chain.key)
                found += hits
        if len(leading) == before:
            return found


_LATER = ("input", "forward", "output", "postrouting", "egress")


def _leads(
    chain: Chain,
    action: Action,
    leading: set[tuple[str, str, str]],
    is_wanted: Callable[[Action], bool],
) -> bool:
    """Whether an action is wanted, or may lead to one that is."""
    if action.kind in ("jump", "goto"):
        return (chain.family, chain.table, action.chain) in leading
    ways = (then for _values, then in action.ways)
    return is_wanted(action) or any(_leads(chain, then, leading, is_wanted) for then in ways)


def _translates_here(action: Action, is_local: Callable[[Address], bool]) -> bool:
    if action.kind in ("redirect", "tproxy") or action.is_open:
        return True
    if action.kind in ("dnat", "rewrite"):
        places = [address for address, _port in action.choices] or [action.address]
        return any(place is None or is_local(place) for place in places)
    return False


def named_ports(rule: Rule) -> Iterator[Range]:
    """The ports a rule compares with, in its matches and its maps."""
    return (value for name, value in _compared_values(rule) if name == "dport")


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


def _compared_values(rule: Rule) -> Iterator[tuple[str, Range]]:
    """(field, range) of everything a rule compares, in its matches and its verdict map."""
    pairs = [(match.field, value) for match in rule.matches for value in match.values]
    queue = [rule.action]
    while queue:
        action = queue.pop()
        pairs += [("dport", value) for value in action.named]
        for values, then in action.ways:
            pairs += [(action.field, value) for value in values]
            queue.append(then)
    for name, value in pairs:
        if isinstance(value, Range):
            yield name, value
