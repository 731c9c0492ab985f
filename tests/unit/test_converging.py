"""The wait for a lab's routers: whom it asks, when it is over, what it says when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from loopbox.errors import DeadlineError
from loopbox.lab.asking import RouterView, wait_converged
from loopbox.lab.topology import Lab, parse

ISLANDS = "".join(
    f'[box.{name}]\nloopback = "auto"\nospf = true\nbgp = {{ as = 65000 }}\n'
    for name in ("r1", "r2", "r3")
)


@dataclass
class Router:
    """A router that shows what it is told to, question after question."""

    lab: Lab
    name: str
    shows: Callable[[int, set[str]], list[str]] = lambda _question, _wanted: []
    asked: list[set[str]] = field(default_factory=list)

    def missing(self, wanted: set[str]) -> list[str]:
        self.asked.append(wanted)
        return self.shows(len(self.asked), wanted)


@pytest.fixture
def lab() -> Lab:
    return parse(ISLANDS + '[[link]]\nends = ["r1", "r2"]\n', path=Path("islands.toml"))


def wait(
    routers: list[Router], *, standing: Callable[[], set[str]] = set, seconds: float = 5
) -> list[tuple[int, int]]:
    """Wait, and give what was told meanwhile."""
    told: list[tuple[int, int]] = []
    wait_converged(
        cast("list[RouterView]", routers),
        standing=standing,
        seconds=seconds,
        tell=lambda done, total: told.append((done, total)),
    )
    return told


def never() -> set[str]:
    """Computing what can come up costs a sound lab the time in which it comes up."""
    raise AssertionError("asked for the sessions that can come up")


def test_who_is_complete_is_left_alone_until_all_seem_so(lab: Lab) -> None:
    """What lacks something is asked again; the others only when all seem complete."""
    late = Router(lab, "r1", lambda question, _wanted: ["a neighbour"] if question < 4 else [])
    early = Router(lab, "r2")

    told = wait([late, early], standing=never)

    assert (told[0], told[-1]) == ((1, 2), (2, 2))
    assert len(late.asked) in (4, 5)  # the last look at all may be the one that finds it
    assert len(early.asked) == len(told)


def test_a_router_that_falls_back_is_waited_for(lab: Lab) -> None:
    """It was complete, and no longer is when the last one has come."""
    late = Router(lab, "r1", lambda question, _wanted: ["a neighbour"] if question < 3 else [])
    falls = Router(lab, "r2", lambda question, _wanted: ["a session"] if question == 2 else [])

    wait([late, falls], standing=never)

    assert len(falls.asked) > 2


def test_sessions_that_cannot_come_up_are_not_waited_for(lab: Lab) -> None:
    """Some are long in coming: it is found out which can come at all."""
    possible = {"r1-r2"}
    alone = Router(lab, "r3", lambda _question, wanted: sorted(wanted - possible))

    wait([alone], standing=lambda: possible)

    assert alone.asked[0] == {"r1-r3", "r2-r3"}
    assert alone.asked[-1] == possible


def test_what_is_missing_at_the_end_is_named(lab: Lab) -> None:
    """The first things, and how many more."""
    routers = [
        Router(lab, name, lambda _question, _wanted: ["one", "two"]) for name in ("r1", "r2")
    ]

    with pytest.raises(DeadlineError) as caught:
        wait(routers, seconds=0)

    assert caught.value.message.endswith("not up after 0 s: one, two and 1 more")
    assert caught.value.hint == "it is left as it is: loopbox router r1.islands"
