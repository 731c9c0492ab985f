"""What a failure does, as values and as the document of `loopbox predict`.

Owns: `Scenario` and its parts, when one counts as a loss, router IDs by each maker's rule, JSON.

Must never: compute an outcome (`predict` does).

Example::

    document(lab, predict(lab, failures=1), rules=["junos"])
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from loopbox.lab.records import Lab, LabBox, Session
from loopbox.rules.routing import RULES, RouterIdChoice, choose_router_id


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A box whose loopback addresses some others no longer reach."""

    box: str
    loopbacks: tuple[str, ...]
    sources: tuple[str, ...]
    """Living boxes that reached them before."""

    def as_json(self) -> dict[str, Any]:
        """For the document."""
        return {"box": self.box, "loopbacks": list(self.loopbacks), "from": list(self.sources)}


@dataclass(frozen=True, slots=True)
class Reroute:
    """A router that sends what is for a box another way."""

    source: str
    target: str
    was: tuple[str, ...]
    now: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For the document."""
        return {
            "from": self.source,
            "to": self.target,
            "was": list(self.was),
            "now": list(self.now),
        }


@dataclass(frozen=True, slots=True)
class Scenario:
    """One set of failed links and boxes, and what it does."""

    cut: tuple[str, ...]
    sessions_lost: tuple[Session, ...]
    sessions_flapping: tuple[Session, ...]
    unreachable: tuple[Unreachable, ...]
    reroutes: tuple[Reroute, ...]

    def hurts(self, lab: Lab) -> bool:
        """Whether living boxes lose more than what failed took with it.

        A session on a link's own addresses between two ASes goes with its link by design.
        """
        boxes = set(self.cut)
        sessions = [*self.sessions_lost, *self.sessions_flapping]
        return any(item.box not in boxes for item in self.unreachable) or any(
            not {session.left.box, session.right.box} & boxes
            and not (session.external and session.link is not None)
            for session in sessions
        )

    def as_json(self, lab: Lab) -> dict[str, Any]:
        """The contract's scenario."""
        return {
            "cut": list(self.cut),
            "sessions_lost": [session_json(item) for item in self.sessions_lost],
            "sessions_flapping": [session_json(item) for item in self.sessions_flapping],
            "sessions_held": len(lab.sessions)
            - len(self.sessions_lost)
            - len(self.sessions_flapping),
            "unreachable": [item.as_json() for item in self.unreachable],
            "reroutes": [item.as_json() for item in self.reroutes],
            "loss": self.hurts(lab),
        }


def session_json(session: Session) -> dict[str, Any]:
    """A session as the document names it."""
    return {
        "name": session.name,
        "boxes": [session.left.box, session.right.box],
        "source": session.source,
        "link": session.link,
        "external": session.external,
        "addresses": [
            None if end.address is None else str(end.address)
            for end in (session.left, session.right)
        ],
    }


def router_ids(lab: Lab, *, rule: str = "frr") -> dict[str, dict[str, str | None]]:
    """Router to its ID and the reason, by the lab itself or by the rule of another maker."""
    found = {}
    for box in lab.boxes:
        if box.router_id is None:
            continue
        choice = box.router_id if rule == "frr" else _as_maker(lab, box, rule)
        value = None if choice.value is None else str(choice.value)
        found[box.name] = {"router_id": value, "reason": choice.reason}
    return found


def _as_maker(lab: Lab, box: LabBox, rule: str) -> RouterIdChoice:
    ends = [link.end(box.name) for link in lab.links_of(box.name)]
    explicit = box.router_id if box.router_id and "explicit" in box.router_id.reason else None
    return choose_router_id(
        rule,
        loopbacks=[item.ip for item in box.loopback if isinstance(item.ip, IPv4Address)],
        physical=[
            item.ip for end in ends for item in end.addresses if isinstance(item.ip, IPv4Address)
        ],
        explicit=None if explicit is None else explicit.value,
    )


def document(
    lab: Lab, scenarios: Iterable[Scenario], *, rules: Iterable[str] = ()
) -> dict[str, Any]:
    """The contract's answer of `predict`."""
    ids = router_ids(lab)
    result: dict[str, Any] = {
        "router_ids": {name: item["router_id"] for name, item in ids.items()},
        "router_id_reasons": {name: item["reason"] for name, item in ids.items()},
        "scenarios": [scenario.as_json(lab) for scenario in scenarios],
        "warnings": list(lab.warnings),
    }
    makers = [rule for rule in rules if rule in RULES]
    if makers:
        result["router_ids_as"] = {rule: router_ids(lab, rule=rule) for rule in makers}
    return result
