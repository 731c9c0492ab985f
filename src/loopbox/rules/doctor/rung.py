"""One step of the ladder, as a value.

Owns: the contract's rung object. Must never: judge.

Example::

    failed("link", "The interface has a carrier", cause="no carrier on eth0", fix="plug it in")
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """What one rung found."""

    id: str
    title: str
    """What the rung proves when it passes, and no more."""
    state: str
    """pass, warn, fail or skip."""
    cause: str | None = None
    fix: str | None = None
    evidence: tuple[str, ...] = ()
    ms: float = 0.0

    def as_json(self) -> dict[str, object]:
        """The contract's object."""
        return {
            "id": self.id,
            "title": self.title,
            "state": self.state,
            "cause": self.cause,
            "fix": self.fix,
            "evidence": list(self.evidence),
            "ms": self.ms,
        }


TITLES = {
    "loopback-interface": "the loopback interface is there and up",
    "loopback-ipv4": "127.0.0.1 is delivered here and answers TCP and UDP",
    "loopback-ipv6": "::1 is delivered here and answers TCP and UDP",
    "localhost-name": "localhost means the loopback, and nothing else",
    "own-address": "this device has an address of its own and answers on it",
    "link": "the interface has a carrier",
    "gateway": "the gateway is there",
    "remote": "a host beyond the gateway answers",
    "dns": "the resolver in use answers, and truthfully",
    "boxes": "this user can make boxes on this machine",
}


def passed(name: str, evidence: Iterable[str] = ()) -> Rung:
    """The rung holds."""
    return Rung(name, TITLES[name], "pass", evidence=tuple(evidence))


def warned(name: str, cause: str, fix: str | None, evidence: Iterable[str] = ()) -> Rung:
    """The rung holds, with something worth knowing."""
    return Rung(name, TITLES[name], "warn", cause, fix, tuple(evidence))


def failed(name: str, cause: str, fix: str | None, evidence: Iterable[str] = ()) -> Rung:
    """The rung does not hold."""
    return Rung(name, TITLES[name], "fail", cause, fix, tuple(evidence))


def skipped(name: str, evidence: Iterable[str] = ()) -> Rung:
    """The rung has no meaning here."""
    return Rung(name, TITLES[name], "skip", evidence=tuple(evidence))


def unasked(name: str) -> Rung:
    """The rung would have asked somebody beyond the gateway, which the user did not want."""
    return skipped(name, ["not asked: --offline"])
