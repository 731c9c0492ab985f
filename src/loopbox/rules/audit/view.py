"""What the audit knows of a namespace, and what it says of a listener.

Owns: the two records between which the audit judges. Must never: judge.

Example::

    View(network, ruleset, is_firewall_seen=False)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loopbox.rules.audit.hooks import Hook
from loopbox.rules.firewall.model import Ruleset
from loopbox.rules.network import Network


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one namespace."""

    network: Network
    ruleset: Ruleset = field(default_factory=Ruleset)
    is_firewall_seen: bool = True
    """False when the rules could not be read (no privilege)."""
    is_box: bool = False
    hooks: tuple[Hook, ...] = ()
    """XDP, tc and BPF programs, which nobody can evaluate."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far away a peer may be."""

    level: str
    """loopback, same-host, link, lan, internet, blocked, unreachable or unknown."""
    cause: str
    """A kebab-case word for how: wildcard, address, alias, route-localnet, nat, filter ..."""
    evidence: tuple[str, ...] = ()
