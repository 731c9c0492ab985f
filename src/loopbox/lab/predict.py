"""Which failures of a lab would hurt, before they happen.

Owns: the enumeration of failures, the comparison of each with the whole lab, and the document of
`loopbox predict`. Two ways give the same answer: the general one walks packets through
`forwarding.Network`; where every router is in one OSPF domain and nothing else routes, distances
alone decide and 2,000 routers are no trouble. A test holds the two against each other.

Must never: start anything, print.

Example::

    for scenario in predict(lab, failures=1):
        print(scenario.cut, scenario.sessions_lost, scenario.unreachable)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from itertools import chain, combinations
from math import comb
from typing import Any

import numpy as np

from loopbox.errors import UsageError
from loopbox.lab.forwarding import Network, loopbacks
from loopbox.lab.igp import INFINITE
from loopbox.lab.records import Lab, LabBox, Session
from loopbox.rules.routing import RULES, FailureKind, choose_router_id, outage, session_outcome

MAX_SCENARIOS = 1_000_000


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


def elements(lab: Lab) -> list[str]:
    """Names of all that can fail: links, then boxes."""
    return [*(link.name for link in lab.links), *(box.name for box in lab.boxes)]


def failure_sets(lab: Lab, *, failures: int) -> Iterator[tuple[str, ...]]:
    """Every set of 1 to `failures` elements; UsageError when there are too many to compute."""
    names = elements(lab)
    count = sum(comb(len(names), size) for size in range(1, failures + 1))
    if count > MAX_SCENARIOS:
        raise UsageError(
            f"cannot predict {count} scenarios: at most {MAX_SCENARIOS} are computed at once",
            hint=f"use --failures {max(failures - 1, 1)}, or predict a part of the lab",
        )
    sizes = range(1, failures + 1)
    return chain.from_iterable(combinations(names, size) for size in sizes)


def predict(
    lab: Lab, *, failures: int = 1, kind: FailureKind = "carrier", routes: bool = True
) -> Iterator[Scenario]:
    """The outcome of every failure of up to `failures` links and boxes, in the file's order.

    `routes=False` leaves `reroutes` empty, which is most of the work in large labs.
    """
    predictor = Predictor(lab, kind=kind)
    for cut in failure_sets(lab, failures=failures):
        yield predictor.scenario(cut, routes=routes)


class Predictor:
    """Compares failures with the whole lab. Not for two threads at once."""

    def __init__(self, lab: Lab, *, kind: FailureKind = "carrier", general: bool = False) -> None:
        """`general`: walk packets even where distances would do (to check the one by the other)."""
        self.lab = lab
        self.network = Network(lab)
        self.network.kind = kind
        self.kind = kind
        self._loopbacks = loopbacks(lab)
        self._by_distance = not general and is_one_domain(lab)
        self._outages = {item.name: self._outage(item) for item in lab.sessions}
        self.standing = self.network.standing() if not self._by_distance else self._standing_now()
        """Names of the sessions that stand while nothing has failed."""

    def scenario(self, cut: Sequence[str], *, routes: bool = True) -> Scenario:
        """What happens when the links and boxes of `cut` fail at once."""
        self.network.fail(cut)
        try:
            if self._by_distance:
                standing, lost = self._standing_now(), self._unreachable_by_distance()
                reroutes = self._rerouted_by_distance() if routes else ()
            else:
                standing, lost = self.network.standing(), self._unreachable_by_walking()
                reroutes = self._rerouted_by_walking() if routes else ()
        finally:
            self.network.mend(cut)
        return self._judged(tuple(cut), standing, lost, reroutes)

    def _judged(
        self,
        cut: tuple[str, ...],
        standing: set[str],
        unreachable: tuple[Unreachable, ...],
        reroutes: tuple[Reroute, ...],
    ) -> Scenario:
        """Sort the sessions that stood before into lost, flapping and held."""
        lost, flapping = [], []
        for session in self.lab.sessions:
            if session.name not in self.standing:
                continue
            if session.name not in standing:
                lost.append(session)
            elif session.link is None and self._flaps(session, cut):
                flapping.append(session)
        return Scenario(cut, tuple(lost), tuple(flapping), unreachable, reroutes)

    # --- sessions --------------------------------------------------------------------------

    def _outage(self, session: Session) -> float:
        """How long the session's path may be dark, in seconds."""
        ends = [self.lab.box(end.box) for end in (session.left, session.right)]
        dead = max((box.ospf.dead for box in self.lab.boxes if box.ospf is not None), default=0)
        bfd = all(box.bfd for box in self.lab.boxes if box.ospf is not None)
        if not all(box.ospf is not None for box in ends):
            return 0.0 if self.kind == "carrier" else float("inf")
        return outage(self.kind, timers=self.lab.timers, dead=dead, bfd=bfd)

    def _flaps(self, session: Session, cut: Iterable[str]) -> bool:
        one, two = self.lab.box(session.left.box).bgp, self.lab.box(session.right.box).bgp
        assert one is not None and two is not None
        outcome = session_outcome(
            path_remains=True,
            path_hit=True,
            outage=self._outages[session.name],
            hold=min(one.hold, two.hold),
            keepalive=max(one.keepalive, two.keepalive),
        )
        return outcome == "flaps" and self._is_hit(session, cut)

    def _is_hit(self, session: Session, cut: Iterable[str]) -> bool:
        """Whether a path between the ends, with nothing failed, used what is cut."""
        if self._by_distance:
            edges = [edge for name in cut for edge in self.network.edges_of(name)]
            ends = self.network.node(session.left.box), self.network.node(session.right.box)
            return any(self.network.igp.uses(edges, *way) for way in (ends, ends[::-1]))
        crossed = self._crossed[session.name]
        names = set(cut)
        joined = {
            pair
            for name in names
            for link in self.lab.links
            if link.name == name
            for pair in combinations(sorted(end.box for end in link.ends), 2)
        }
        return any(
            left in names or right in names or (min(left, right), max(left, right)) in joined
            for left, right in crossed
        )

    @cached_property
    def _crossed(self) -> dict[str, set[tuple[str, str]]]:
        """Session to the (box, next box) pairs its packets may cross; nothing has failed."""
        return {
            session.name: {
                pair
                for own, peer in session.ends()
                if isinstance(peer.address, IPv4Address)
                for pair in self.network.path_boxes(own.box, peer.address)
            }
            for session in self.lab.sessions
            if session.link is None
        }

    def _standing_now(self) -> set[str]:
        network = self.network
        distances = network.igp.distances
        found = {
            session.name
            for session in self.lab.sessions
            if session.link is not None
            and not {session.link, session.left.box, session.right.box} & network.down
        }
        sessions, left, right = self._loopback_sessions
        if len(sessions):
            stands = (distances[left, right] < INFINITE) & (distances[right, left] < INFINITE)
            found.update(
                sessions[index].name
                for index in np.flatnonzero(stands)
                if not {sessions[index].left.box, sessions[index].right.box} & network.down
            )
        return found

    @cached_property
    def _loopback_sessions(self) -> tuple[list[Session], Any, Any]:
        sessions = [item for item in self.lab.sessions if item.link is None]
        left = np.array([self.network.node(item.left.box) for item in sessions], dtype=np.intp)
        right = np.array([self.network.node(item.right.box) for item in sessions], dtype=np.intp)
        return sessions, left, right

    # --- by distance -----------------------------------------------------------------------

    def _unreachable_by_distance(self) -> tuple[Unreachable, ...]:
        igp, down = self.network.igp, self.network.down
        sources_of: dict[int, set[int]] = {}
        for failure in self.network.failures:
            for pairs in failure.pairs:
                gone = igp.distances[pairs.sources, pairs.targets] >= INFINITE
                for source, target in zip(
                    pairs.sources[gone].tolist(), pairs.targets[gone].tolist(), strict=True
                ):
                    # An answer must come back, so each of the two has lost the other.
                    sources_of.setdefault(target, set()).add(source)
                    sources_of.setdefault(source, set()).add(target)
        found = []
        for target in sorted(sources_of):
            box = self.lab.boxes[target].name
            sources = sorted(sources_of[target])
            names = tuple(
                name for index in sources if (name := self.lab.boxes[index].name) not in down
            )
            if names and self._loopbacks[box]:
                found.append(Unreachable(box, tuple(map(str, self._loopbacks[box])), names))
        return tuple(found)

    def _rerouted_by_distance(self) -> tuple[Reroute, ...]:
        igp, boxes = self.network.igp, self.lab.boxes
        sources, targets = igp.rerouted(*self.network.failures)
        found = []
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            if not self._loopbacks[boxes[target].name]:
                continue
            was, now = igp.next_hops(source, target, base=True), igp.next_hops(source, target)
            names = [tuple(sorted(boxes[index].name for index in hops)) for hops in (was, now)]
            found.append(Reroute(boxes[source].name, boxes[target].name, names[0], names[1]))
        return tuple(found)

    # --- by walking ------------------------------------------------------------------------

    def _sources(self) -> list[tuple[str, IPv4Address]]:
        """Each box with the address it would send an echo request from."""
        found = []
        for box in self.lab.boxes:
            own = [
                *self._loopbacks[box.name],
                *(
                    address
                    for link in self.lab.links_of(box.name)
                    if isinstance(address := link.end(box.name).address(4), IPv4Address)
                ),
            ]
            if own:
                found.append((box.name, own[0]))
        return found

    def _reached(self) -> set[tuple[str, str, IPv4Address]]:
        """(source, box, its loopback) of every pair that can exchange packets."""
        down = self.network.down
        found = set()
        for source, address in self._sources():
            for box, targets in self._loopbacks.items():
                if box == source or source in down or box in down:
                    continue
                for target in targets:
                    if self.network.is_local(source, target):
                        continue
                    if self.network.arrives(source, target, back_to=address):
                        found.add((source, box, target))
        return found

    @cached_property
    def reached_before(self) -> set[tuple[str, str, IPv4Address]]:
        """(source, box, its loopback) of every pair that reaches while nothing has failed."""
        return Predictor(self.lab, kind=self.kind, general=True)._reached()

    def _unreachable_by_walking(self) -> tuple[Unreachable, ...]:
        lost: dict[str, tuple[set[str], set[IPv4Address]]] = {}
        for source, box, target in self.reached_before - self._reached():
            # An anycast address that another box still answers is not lost.
            still = self.network.hops(source, target) is not None
            if source not in self.network.down and not (still and self._is_shared(target)):
                sources, targets = lost.setdefault(box, (set(), set()))
                sources.add(source)
                targets.add(target)
        order = [box.name for box in self.lab.boxes]
        return tuple(
            Unreachable(
                box,
                tuple(str(item) for item in self._loopbacks[box] if item in lost[box][1]),
                tuple(name for name in order if name in lost[box][0]),
            )
            for box in order
            if box in lost
        )

    def _is_shared(self, address: IPv4Address) -> bool:
        return sum(address in addresses for addresses in self._loopbacks.values()) > 1

    def _next_boxes(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """(router, box) to the next boxes on the way to its first loopback."""
        found = {}
        for box in self.lab.boxes:
            if not box.is_router or box.name in self.network.down:
                continue
            for target, addresses in self._loopbacks.items():
                if target != box.name and addresses:
                    steps = self.network.steps(box.name, addresses[0]) or ()
                    found[box.name, target] = tuple(sorted({step.box for step in steps}))
        return found

    @cached_property
    def _next_before(self) -> dict[tuple[str, str], tuple[str, ...]]:
        return Predictor(self.lab, kind=self.kind, general=True)._next_boxes()

    def _rerouted_by_walking(self) -> tuple[Reroute, ...]:
        now = self._next_boxes()
        return tuple(
            Reroute(source, target, self._next_before[source, target], hops)
            for (source, target), hops in now.items()
            if hops and hops != self._next_before[source, target]
        )


def is_one_domain(lab: Lab) -> bool:
    """Whether OSPF's distances alone decide who reaches whom.

    So it is when every box runs OSPF, nobody has static routes or shared addresses, and BGP is
    internal: OSPF's routes win over internal BGP's (distance 110 against 200).
    """
    return all(
        box.ospf is not None and not box.static and not box.anycast and not box.virtual
        for box in lab.boxes
    ) and not any(session.external for session in lab.sessions)


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


def _as_maker(lab: Lab, box: LabBox, rule: str) -> Any:
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
