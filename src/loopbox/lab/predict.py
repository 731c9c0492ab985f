"""Which failures of a lab would hurt, before they happen.

Owns: the enumeration of failures and the comparison of each with the whole lab. Two ways give the
same answer: the general one walks packets through `forwarding.Network`; where every router is in
one OSPF domain and nothing else routes, distances alone decide and 2,000 routers are no trouble.
A test holds the two against each other.

Must never: start anything, print.

Example::

    for scenario in predict(lab, failures=1):
        print(scenario.cut, scenario.sessions_lost, scenario.unreachable)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from ipaddress import IPv4Address
from itertools import chain, combinations
from math import comb
from typing import Any

import numpy as np

from loopbox.errors import UsageError
from loopbox.lab.forwarding import Network
from loopbox.lab.igp import INFINITE
from loopbox.lab.knowledge import loopbacks
from loopbox.lab.outcomes import Reroute, Scenario, Unreachable
from loopbox.lab.records import Lab, Session
from loopbox.rules.routing import FailureKind, outage, session_outcome

MAX_SCENARIOS = 1_000_000


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
        self._fragile_by_kind: dict[FailureKind, tuple[Session, ...]] = {}
        self._number = {session.name: index for index, session in enumerate(lab.sessions)}
        self.standing = (
            {session.name for session in lab.sessions} - self._fallen_by_distance()
            if self._by_distance
            else set(self.network.standing())
        )
        """Names of the sessions that stand while nothing has failed."""

    def scenario(self, cut: Sequence[str], *, routes: bool = True) -> Scenario:
        """What happens when the links and boxes of `cut` fail at once."""
        self.network.fail(cut)
        try:
            if self._by_distance:
                fallen, unreachable = self._fallen_by_distance(), self._unreachable_by_distance()
                reroutes = self._rerouted_by_distance() if routes else ()
            else:
                fallen = self.standing - self.network.standing()
                unreachable = self._unreachable_by_walking()
                reroutes = self._rerouted_by_walking() if routes else ()
        finally:
            self.network.mend(cut)
        lost = sorted(self._number[name] for name in fallen & self.standing)
        flapping = [
            session
            for session in self._fragile(self._kind_of(cut))
            if session.name in self.standing - fallen and self._is_hit(session, cut)
        ]
        sessions = tuple(self.lab.sessions[index] for index in lost)
        return Scenario(tuple(cut), sessions, tuple(flapping), unreachable, reroutes)

    # --- sessions --------------------------------------------------------------------------

    @cached_property
    def _on_bridge(self) -> set[str]:
        return {end.box for link in self.lab.links if link.is_bridge for end in link.ends}

    def _kind_of(self, cut: Iterable[str]) -> FailureKind:
        """A box that fails on a bridge is silent to the others there: their carrier stays."""
        return "silent" if self._on_bridge.intersection(cut) else self.kind

    def _fragile(self, kind: FailureKind) -> tuple[Session, ...]:
        """Loopback sessions that a failure on their path makes flap; few, or none, as a rule."""
        if kind not in self._fragile_by_kind:
            dead = max((box.ospf.dead for box in self.lab.boxes if box.ospf is not None), default=0)
            bfd = all(box.bfd for box in self.lab.boxes if box.ospf is not None)
            dark = outage(kind, timers=self.lab.timers, dead=dead, bfd=bfd)
            self._fragile_by_kind[kind] = tuple(
                session
                for session in self.lab.sessions
                if session.link is None and self._flaps(session, kind, dark)
            )
        return self._fragile_by_kind[kind]

    def _flaps(self, session: Session, kind: FailureKind, dark: float) -> bool:
        """Whether BGP gives up before its path is mended; static routes never notice silence."""
        one, two = (self.lab.box(end.box) for end in (session.left, session.right))
        assert one.bgp is not None and two.bgp is not None
        if one.ospf is None or two.ospf is None:
            dark = 0.0 if kind == "carrier" else float("inf")
        outcome = session_outcome(
            path_remains=True,
            path_hit=True,
            outage=dark,
            hold=min(one.bgp.hold, two.bgp.hold),
            keepalive=max(one.bgp.keepalive, two.bgp.keepalive),
        )
        return outcome == "flaps"

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

    def _fallen_by_distance(self) -> set[str]:
        """Names of the sessions that do not stand now."""
        fallen = {name for gone in self.network.down for name in self._ended_by.get(gone, ())}
        names, left, right = self._loopback_sessions
        distances = self.network.igp.distances
        parted = (distances[left, right] >= INFINITE) | (distances[right, left] >= INFINITE)
        fallen.update(names[index] for index in np.flatnonzero(parted))
        return fallen

    @cached_property
    def _ended_by(self) -> dict[str, list[str]]:
        """Link or box to the names of the sessions that go with it, whatever the routes are."""
        found: dict[str, list[str]] = {}
        for session in self.lab.sessions:
            for element in (session.left.box, session.right.box, session.link):
                if element is not None:
                    found.setdefault(element, []).append(session.name)
        return found

    @cached_property
    def _loopback_sessions(self) -> tuple[list[str], Any, Any]:
        """Names of the sessions between loopbacks, and the nodes at their ends."""
        sessions = [item for item in self.lab.sessions if item.link is None]
        left = np.array([self.network.node(item.left.box) for item in sessions], dtype=np.intp)
        right = np.array([self.network.node(item.right.box) for item in sessions], dtype=np.intp)
        return [item.name for item in sessions], left, right

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
        boxes = [box.name for box in self.lab.boxes]
        found = []
        for source, target, was, now in self.network.igp.rerouted(*self.network.failures):
            if self._loopbacks[boxes[target]]:
                hops = [tuple(sorted(boxes[index] for index in nodes)) for nodes in (was, now)]
                found.append(Reroute(boxes[source], boxes[target], hops[0], hops[1]))
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
