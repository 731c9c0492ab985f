"""Routers of a running lab, asked: neighbours, sessions, routes, and what is not there yet.

Owns: the document of `loopbox router`, what a lab that has converged must show, and the wait for
it. Questions go over FRR's own sockets, which are files: no box is entered.
Must never: start or stop a daemon, cut a link.

Example::

    view = RouterView(lab, lab.box("r1"), Path("/run/…/r1"))
    view.session("r2").state
    for _ in wait_converged(views, seconds=60): ...
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loopbox.errors import BoxError, DeadlineError, HostError, UsageError
from loopbox.lab.away import daemons_in
from loopbox.lab.frr_daemons import RouterDaemons
from loopbox.lab.frr_state import (
    QUESTIONS,
    Neighbour,
    RouteState,
    SessionState,
    parse_neighbours,
    parse_router_id,
    parse_routes,
    parse_sessions,
)
from loopbox.lab.outcomes import router_ids
from loopbox.lab.records import Lab, LabBox, Session
from loopbox.lab.wiring import ospf_interface
from loopbox.rules.routing import why_not_neighbours

_LOOK_AGAIN = 0.02
_LOOK_AT_ALL, _SHARE = 0.25, 5.0
"""Seconds between two looks at every router, and how many times as long as such a look at least."""
_ALL_COME_UP, _EACH = 1.5, 0.02
"""Seconds, and seconds a router, after which it is found out whether all sessions can come up at
all: 0.2 s of computing, which the routers of a sound lab had better have for themselves."""
_NAMED = 3
"""How many missing things an error names."""


@dataclass(frozen=True)
class RouterView:
    """One router of a lab that is up. Every answer is FRR's of this moment."""

    lab: Lab
    box: LabBox
    directory: Path

    @cached_property
    def _daemons(self) -> RouterDaemons:
        return daemons_in(self.directory, self.lab, self.box)

    @property
    def name(self) -> str:
        """The router's name in the file."""
        return self.box.name

    @property
    def router_id(self) -> str | None:
        """The ID the router runs under."""
        questions = ("ospf",) if self.box.config is None else ("ospf", "bgp")
        for question in questions:
            if found := parse_router_id(self._ask(question)):
                return found
        chosen = None if self.box.router_id is None else self.box.router_id.value
        return None if chosen is None else str(chosen)

    @property
    def router_id_reason(self) -> str | None:
        """Why it is that one."""
        if self.box.config is not None:
            return f"as {self.box.config.name} has it"
        return None if self.box.router_id is None else self.box.router_id.reason

    def router_id_as(self, maker: str) -> dict[str, str | None]:
        """The ID that a router of this maker would take with these addresses, and why."""
        return router_ids(self.lab, rule=maker).get(self.name, {"router_id": None, "reason": None})

    def neighbours(self) -> list[Neighbour]:
        """OSPF neighbours; none where no OSPF runs."""
        return parse_neighbours(self._ask("neighbours"))

    def sessions(self) -> list[SessionState]:
        """BGP sessions; none where no BGP runs."""
        return parse_sessions(self._ask("sessions"))

    def routes(self) -> list[RouteState]:
        """The routes in use, IPv4's then IPv6's."""
        return parse_routes(self._ask("routes")) + parse_routes(self._ask("routes6"))

    def bgp(self, peer: str, *, source: str = "loopback") -> SessionState:
        """The session with a box, or with an address. Raises UsageError when there is none.

        Of two with the same box the one between loopbacks is meant, unless `source` is `link`.
        """
        candidates = [
            (session.source != source, name)
            for session, name in self._expected_sessions()
            if peer in (self._peer_of(session), name, session.name)
        ]
        if not candidates:
            raise UsageError(f"cannot find a session of `{self.name}` with `{peer}`")
        wanted = min(candidates)[1]
        for found in self.sessions():
            if found.peer == wanted:
                return found
        raise BoxError(f"cannot find the session of `{self.name}` with `{peer}`: bgpd has none")

    def run(self, daemon: str, command: str) -> str:
        """What FRR's shell would print for a command to one daemon."""
        return self._daemons.ask(daemon, command)

    def is_answering(self) -> bool:
        """Whether every daemon is there."""
        try:
            for daemon in self._daemons.daemons:
                self._daemons.ask(daemon, "show version")
        except (OSError, HostError):
            return False
        return True

    def document(self) -> dict[str, Any]:
        """What `loopbox router` shows."""
        return {
            **self.state(),
            "router_id_reason": self.router_id_reason,
            "routes": [item.as_json() for item in self.routes()],
        }

    def state(self) -> dict[str, Any]:
        """The router of the contract's BOX. Raises BoxError where a daemon is gone."""
        names = {name: session for session, name in self._expected_sessions()}
        sessions = []
        for found in self.sessions():
            document = found.as_json()
            session = names.get(found.peer)
            if session is not None:
                document |= {"box": self._peer_of(session), "name": session.name}
            sessions.append(document)
        return {
            "router_id": self.router_id,
            "ospf": {"neighbors": [item.as_json() for item in self.neighbours()]},
            "bgp": {"sessions": sessions},
        }

    # -- what should be -----------------------------------------------------------------------

    def missing(self, standing: set[str]) -> list[str]:
        """What a converged lab would show and this router does not, in words."""
        return [*self._missing_neighbours(), *self._missing_sessions(standing)]

    def _missing_neighbours(self) -> Iterable[str]:
        expected = expected_neighbours(self.lab, self.box)
        if not expected:
            return
        full: Counter[str] = Counter()
        met: Counter[str] = Counter()
        for found in self.neighbours():
            full[found.interface] += found.state == "Full"
            met[found.interface] += found.state in ("Full", "2-Way")
        for interface, count in expected.items():
            # On a shared wire routers are Full with the designated ones alone (RFC 2328, 10.4).
            if met[interface] < count or full[interface] < min(count, 2):
                yield f"OSPF of `{self.name}` on `{interface}`"

    def _missing_sessions(self, standing: set[str]) -> Iterable[str]:
        wanted = {name: item for item, name in self._expected_sessions() if item.name in standing}
        if not wanted:
            return
        up = {found.peer for found in self.sessions() if found.state == "Established"}
        for name, session in wanted.items():
            if name not in up:
                yield f"BGP session `{session.name}`"

    def _expected_sessions(self) -> list[tuple[Session, str]]:
        """Each session of this router and what its bgpd calls the peer."""
        found = []
        for session in self.lab.sessions_of(self.name):
            for own, peer in session.ends():
                if own.box == self.name:
                    found.append((session, str(peer.address or own.interface)))
        return found

    def _peer_of(self, session: Session) -> str:
        return session.right.box if session.left.box == self.name else session.left.box

    def _ask(self, question: str) -> Any:
        daemon, command = QUESTIONS[question]
        if daemon not in self._daemons.daemons:
            return {}
        try:
            return self._daemons.ask_json(daemon, command)
        except OSError as error:
            raise BoxError(
                f"cannot ask `{daemon}` of `{self.name}`: {error.strerror or error}: "
                f"{self._daemons.last_words(daemon)}",
                hint=f"its log is {self.directory / daemon}.log; make the lab anew: loopbox down "
                f"{self.lab.name} && loopbox up {self.lab.path}",
                code="no-daemon",
            ) from error


def expected_neighbours(lab: Lab, box: LabBox) -> dict[str, int]:
    """Device of `box` to how many OSPF neighbours it should have there."""
    expected = {}
    for link in lab.links_of(box.name):
        here = ospf_interface(lab, link, box)
        if here is None:
            continue
        others = [lab.box(end.box) for end in link.ends if end.box != box.name]
        count = sum(
            (there := ospf_interface(lab, link, other)) is not None
            and why_not_neighbours(here, there) is None
            for other in others
        )
        if count:
            expected[link.end(box.name).interface] = count
    return expected


def wait_converged(
    views: Sequence[RouterView],
    *,
    standing: Callable[[], set[str]],
    seconds: float,
    tell: Callable[[int, int], None],
) -> None:
    """Until every router shows what it should; DeadlineError naming what is missing then.

    `standing`: names of the sessions that can come up, asked for when some are long in coming.
    `tell(done, all)` is called at every look at all of them.
    """
    wanted = {session.name for view in views for session in view.lab.sessions_of(view.name)}
    deadline = time.monotonic() + seconds
    patience: float | None = time.monotonic() + _ALL_COME_UP + _EACH * len(views)
    while True:
        begun = time.monotonic()
        left = [view for view in views if view.missing(wanted)]
        tell(len(views) - len(left), len(views))
        if not left:
            return
        now = time.monotonic()
        if patience is not None and now > patience:
            patience, wanted = None, standing()
            continue
        if now > deadline:
            raise _not_converged(left, wanted, seconds=seconds)
        # Hundreds of routers that are all asked again and again have no time left to converge.
        spell = max(_LOOK_AT_ALL, _SHARE * (now - begun))
        _wait_for_each(left, wanted, deadline=min(now + spell, deadline))


def _wait_for_each(views: Sequence[RouterView], wanted: set[str], *, deadline: float) -> None:
    """Until each was seen complete, one after the other, or until the deadline."""
    pause = select.poll()
    for view in views:
        while view.missing(wanted):
            if time.monotonic() > deadline:
                return
            pause.poll(_LOOK_AGAIN * 1000)


def _not_converged(
    left: Sequence[RouterView], wanted: set[str], *, seconds: float
) -> DeadlineError:
    lacks = [item for view in left for item in view.missing(wanted)]
    shown = ", ".join(dict.fromkeys(lacks[:_NAMED]))
    more = f" and {len(lacks) - _NAMED} more" if len(lacks) > _NAMED else ""
    return DeadlineError(
        f"cannot wait longer for lab `{left[0].lab.name}`: not up after {seconds:g} s: "
        f"{shown}{more}",
        hint=f"it is left as it is: loopbox router {left[0].name}.{left[0].lab.name}",
    )
