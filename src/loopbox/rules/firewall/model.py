"""Chains, rules, matches and packets as values.

Owns: the shapes both notations are read into. A `Match` compares one field of a packet with
values; a field or value nobody understands is `UNKNOWN` and may be true or false.

Must never: evaluate (evaluate.py), parse (nftables.py, iptables.py).

Example::

    Rule((Match("dport", (Range(22, 22),)),), Action("accept"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

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
"""The field of a rate limit: it matches now and then."""


@dataclass(frozen=True, slots=True)
class Match:
    """One condition. True when the field's value is among `values` (or is not, if negated)."""

    field: str
    """iif, oif, saddr, daddr, sport, dport, protocol, version, state, status, daddr_type,
    saddr_type, iif_type, mark, flags, limit, or ? for what is not understood."""
    values: tuple[Value, ...] = ()
    negated: bool = False
    mask: int = 0xFFFFFFFF
    """For marks: which bits are compared."""
    text: str = ""
    """As a person would find it in the rules; for evidence."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule does when all its matches are true."""

    kind: str
    """accept, drop, reject, return, continue, jump, goto, dnat, redirect, tproxy, mark, notrack,
    vmap, or ? for what is not understood."""
    chain: str = ""
    address: Address | None = None
    port: Range | None = None
    field: str = ""
    """Of a vmap: which field decides."""
    ways: tuple[tuple[tuple[Value, ...], Action], ...] = ()
    """Of a vmap: values and what follows."""
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


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that was read."""

    chains: tuple[Chain, ...] = ()
    gaps: tuple[str, ...] = ()
    """What was there and could not be read at all; each makes every verdict unsure."""

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
    state: str = "new"
    mark: int | None = 0
    """None once a rule has set it to something not followed."""
    natted: bool = False
    redirected: bool = False
    """Sent to the ingress interface's own address by a redirect."""
    proxied: bool = False
    """Given to a transparent socket by tproxy."""


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
