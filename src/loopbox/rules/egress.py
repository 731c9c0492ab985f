"""Where a box may go: a destination in, a verdict with its rule and reason out.

Owns: the policies as tables of rules (the first rule that matches decides, no match denies), and
which addresses have to be judged for one destination (an IPv6 address can carry an IPv4 one).
Must never: ask the kernel or the clock. What the host's kernel says of an address comes in as
`Facts`, asked anew for each decision, because addresses come and go.

A policy is a row of POLICIES. `filter` will put a box's own rules before the open ones: rules are
values, so that is a longer tuple and not another branch.

Example::

    facts = Facts(kinds=("unicast",))
    judge(IPv4Address("93.184.216.34"), port=443, protocol="tcp", name=None, facts=facts).allow
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from loopbox.rules.addressing import (
    Address,
    embedded_ipv4,
    is_loopback,
    is_unspecified,
    unwrapped,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the host's kernel says, asked for this decision."""

    kinds: tuple[str, ...]
    """The route type (`local`, `unicast`, `broadcast`, ...) of each of `addresses_judged`."""


@dataclass(frozen=True, slots=True)
class Question:
    """One wish to leave the box."""

    addresses: tuple[Address, ...]
    """Every address the destination means."""
    port: int
    """0 for protocols without ports."""
    protocol: str
    """`tcp`, `udp` or `icmp`."""
    name: str | None
    """The name the box asked for when it was given this address, if it did."""
    facts: Facts


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and why."""

    allow: bool
    rule: str
    """The rule that decided: one word for logs and programs."""
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a policy."""

    name: str
    allow: bool
    matches: Callable[[Question], bool]
    reason: str


Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def _within(*texts: str) -> Callable[[Question], bool]:
    networks = _networks(*texts)
    return lambda question: any(
        address.version == network.version and address in network
        for address in question.addresses
        for network in networks
    )


def _any_address(test: Callable[[Address], bool]) -> Callable[[Question], bool]:
    return lambda question: any(test(address) for address in question.addresses)


def _any_kind(*kinds: str) -> Callable[[Question], bool]:
    return lambda question: any(kind in kinds for kind in question.facts.kinds)


def _always(question: Question) -> bool:
    return True


NEVER: Final[tuple[Rule, ...]] = (
    Rule("loopback", False, _any_address(is_loopback), "loopback belongs to the device itself"),
    Rule("unspecified", False, _any_address(is_unspecified), "it would be the host's loopback"),
    Rule(
        "metadata",
        False,
        _within(
            "169.254.169.254/32",
            "169.254.170.2/32",
            "100.100.100.200/32",
            "192.0.0.192/32",
            "fd00:ec2::254/128",
            "fd20:ce::254/128",
        ),
        "cloud metadata services give away the host's credentials",
    ),
    Rule(
        "link-local",
        False,
        _within("169.254.0.0/16", "fe80::/10"),
        "link-local addresses mean something else on the host's link",
    ),
    Rule(
        "multicast",
        False,
        _within("224.0.0.0/4", "ff00::/8"),
        "multicast does not leave a box",
    ),
    Rule(
        "broadcast",
        False,
        lambda question: (
            _within("255.255.255.255/32", "0.0.0.0/8")(question)
            or _any_kind("broadcast", "multicast", "anycast")(question)
        ),
        "broadcast does not leave a box",
    ),
    Rule(
        "inside",
        False,
        _within("198.18.0.1/32", "198.18.0.53/32", "fd6c:6f6f:7062::/48"),
        "it exists inside boxes only",
    ),
    Rule("host", False, _any_kind("local"), "it is the host itself"),
)
"""What no policy may allow."""

POLICIES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "open": (*NEVER, Rule("open", True, _always, "the policy is open")),
    "local": (*NEVER, Rule("local", False, _always, "the policy allows other boxes only")),
    "none": (Rule("none", False, _always, "the policy allows nothing"),),
}
"""Policy to its rules. A policy that is not here denies everything."""


def addresses_judged(destination: Address) -> tuple[Address, ...]:
    """The address itself, unwrapped, and the IPv4 address it carries, if any.

    A NAT64, 6to4 or Teredo relay would turn the carried address into a destination of its own.
    """
    bare = unwrapped(destination)
    inner = embedded_ipv4(bare) if isinstance(bare, IPv6Address) else None
    return (bare,) if inner is None else (bare, inner)


def judge(
    destination: Address,
    *,
    port: int,
    protocol: str,
    name: str | None,
    facts: Facts,
    policy: str = "open",
) -> Verdict:
    """Whether a box under this policy may go there.

    Raises ValueError when the facts are not about `addresses_judged(destination)`: an answer
    without them would not be a judgement.
    """
    addresses = addresses_judged(destination)
    if len(facts.kinds) != len(addresses):
        raise ValueError(f"{len(addresses)} addresses but {len(facts.kinds)} facts: {destination}")
    return _decide(Question(addresses, port, protocol, name, facts), policy)


@lru_cache(maxsize=4096)
def _decide(question: Question, policy: str) -> Verdict:
    """The first rule that matches. Remembered: the same question has the same answer."""
    for rule in POLICIES.get(policy, ()):
        if rule.matches(question):
            return Verdict(rule.allow, rule.name, rule.reason)
    return Verdict(False, "unknown", f"no rule of policy {policy!r} allows it")
