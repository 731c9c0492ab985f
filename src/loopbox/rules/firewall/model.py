"""Chains, rules, matches and packets as values.

Owns: the shapes both notations are read into. A `Match` compares one field of a packet with
values; a field or value nobody understands is `UNKNOWN` and may be true or false.

Must never: evaluate (evaluate.py), parse (nftables.py, iptables.py).

Example::

    Rule((Match("dport", (Range(22, 22),)),), Action("accept"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included: ports, addresses, protocol numbers, marks."""

    low: int
    high: int
    version: int = 0
    """4 or 6 for addresses, so that equal numbers of two families differ."""


Value = Range | str
"""A range, or a word (an interface name, with `*` at its end for any; a state; a type)."""

UNKNOWN = "?"
"""The field of a match that cannot be evaluated."""
LIMITED = "limit"
"""The field of a match that is true now and then, or as the sender likes: a rate limit, a TTL, a
routing header. Both happen."""
FREE_FLAGS = 0xE8
"""TCP flags a sender may add to a SYN as it likes: PSH, URG, ECE, CWR."""


@dataclass(frozen=True, slots=True)
class Match:
    """One condition. True when the field's value is among `values` (or is not, if negated)."""

    field: str
    """iif, oif, saddr, daddr, sport, dport, protocol, next_header, version, state, status,
    daddr_type, saddr_type, iif_type, packet_type, way_back, mark, flags, limit, or ? for what is
    not understood."""
    values: tuple[Value, ...] = ()
    negated: bool = False
    mask: int = 0xFFFFFFFF
    """For marks and flags: which bits are compared."""
    text: str = ""
    """As a person would find it in the rules; for evidence."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule does when all its matches are true."""

    kind: str
    """accept, drop, reject, return, continue, jump, goto, dnat, redirect, tproxy, rewrite, mark,
    notrack, vmap, or ? for what is not understood."""
    chain: str = ""
    address: Address | None = None
    port: Range | None = None
    field: str = ""
    """Of a vmap: which field decides."""
    ways: tuple[tuple[tuple[Value, ...], Action], ...] = ()
    """Of a vmap: values and what follows."""
    has_rest: bool = False
    """Of a vmap: its last way is for everything that is none of the values."""
    choices: tuple[tuple[Address | None, Range | None], ...] = ()
    """Of a translation that looks its result up in a map: all the results there are."""
    is_open: bool = False
    """Of a translation: its result may be anything (a random number, a map not to be read)."""
    named: tuple[Range, ...] = ()
    """Of such a map: the ports it is looked up by."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches and one action."""

    matches: tuple[Match, ...]
    action: Action
    text: str = ""
    """How to find it again: table, chain, and handle or number."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; a base chain has a hook."""

    family: str
    """ip, ip6, inet, netdev."""
    table: str
    name: str
    rules: tuple[Rule, ...] = ()
    hook: str | None = None
    priority: int = 0
    policy: str = "accept"
    nat: bool = False
    device: str | None = None
    """Of an ingress or egress chain: the interface it hangs on, or ? when that was not told."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What a jump resolves."""
        return self.family, self.table, self.name

    def sees(self, version: int) -> bool:
        """Whether packets of this IP version pass through."""
        return self.family in {4: ("ip", "inet", "netdev"), 6: ("ip6", "inet", "netdev")}[version]


def _rewrites(action: Action) -> bool:
    return action.kind == "rewrite" or any(_rewrites(then) for _values, then in action.ways)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that was read."""

    chains: tuple[Chain, ...] = ()
    gaps: tuple[str, ...] = ()
    """What was there and could not be read at all; each makes every verdict unsure."""
    rewrites: bool = field(init=False, default=False)
    """Whether a rule assigns to a packet's ports or addresses."""
    memo: dict[Any, Any] = field(init=False, default_factory=dict, compare=False, repr=False)
    """For matching.narrowed alone: what it found before."""

    def __post_init__(self) -> None:
        rules = (rule for chain in self.chains for rule in chain.rules)
        found = any(_rewrites(rule.action) for rule in rules)
        object.__setattr__(self, "rewrites", found)

    def base(self, hook: str, version: int) -> tuple[Chain, ...]:
        """Base chains of a hook, in the order the kernel runs them."""
        found = [chain for chain in self.chains if chain.hook == hook and chain.sees(version)]
        return tuple(sorted(found, key=lambda chain: chain.priority))

    def hung_on(self, devices: Mapping[tuple[str, str, str], tuple[str, ...]]) -> Ruleset:
        """The same with chains of unknown interfaces on those that `devices` names, by key."""
        chains: list[Chain] = []
        for chain in self.chains:
            known = devices.get(chain.key, ()) if chain.device == UNKNOWN else ()
            chains += [replace(chain, device=name) for name in known] or [chain]
        return replace(self, chains=tuple(chains))

    def joined(self, other: Ruleset) -> Ruleset:
        """Both rulesets at once (nftables and iptables-legacy live side by side)."""
        return replace(self, chains=self.chains + other.chains, gaps=self.gaps + other.gaps)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection (or its reply), as the filter sees it."""

    version: int
    protocol: int
    source: Address
    target: Address
    sport: int
    dport: int
    iif: str = ""
    oif: str = ""
    state: str | None = "new"
    """Of connection tracking; None where that cannot be told."""
    flags: int = 0x02
    """TCP flags: a SYN, its answer (0x12), or what follows (0x10)."""
    mark: int | None = 0
    """None once a rule has set it to something not followed."""
    is_tracked: bool = True
    is_straight: bool = True
    """Its sender is answered through the interface it came in by."""
    natted: bool = False
    redirected: bool = False
    """Sent to the ingress interface's own address by a redirect."""
    proxy: tuple[Address | None, int] | None = None
    """The transparent socket tproxy gave it to (None: on the interface's own address). The packet
    itself keeps its address and port, and so later rules see it."""
    top: int | None = None
    """The last of several ports its translation may have chosen; `dport` is the first."""
    anywhere: bool = False
    """Translated to an address and port that nobody can tell."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that can happen to a packet at a hook."""

    verdict: str
    """accept, drop or reject."""
    packet: Packet
    sure: bool = True
    """False when it hangs on something that could not be evaluated."""
    because: str = ""
    """The rule or policy that decided a drop, or the match that made it unsure."""
