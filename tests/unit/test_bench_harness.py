"""The benchmark's arithmetic and its page, without measuring anything."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

# `bench` is a folder of the repository, not a part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.harness import Goal, Group, MeasurementError, Row, load, store, take_rounds
from bench.render import render_page


@pytest.fixture(autouse=True)
def never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arithmetic needs no quiet machine."""
    monkeypatch.setattr("bench.harness.QUIET_SHARE", 1.0)
    monkeypatch.setattr("bench.harness.QUIET_WINDOW_S", 0.0)


def row_with(*, more_is_better: bool = True, **samples: list[float | None]) -> Row:
    """A row whose baseline is `direct`."""
    row = Row("bulk", "MB/s", more_is_better, "direct")
    row.samples = samples
    return row


def test_a_ratio_compares_neighbours_in_time() -> None:
    """The ratio is the median over the rounds, so drift of the machine cancels out."""
    row = row_with(direct=[100.0, 200.0, 400.0], loopbox=[90.0, 160.0, 320.0])

    assert row.ratio("loopbox") == 0.8


def test_a_failed_round_is_left_out() -> None:
    """A round in which one of the two failed counts for neither median nor ratio."""
    row = row_with(direct=[100.0, 100.0, None], loopbox=[None, 50.0, 70.0])

    assert (row.median("loopbox"), row.ratio("loopbox")) == (60.0, 0.5)


def test_what_was_never_measured_has_no_ratio() -> None:
    """An absent contender is neither met nor missed."""
    row = row_with(direct=[100.0])

    assert (row.median("socat"), row.ratio("socat"), row.is_met(Goal("socat", "direct", 1.0))) == (
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("more_is_better", "ratio", "met"),
    [(True, 1.1, True), (True, 0.9, False), (False, 1.1, False), (False, 0.9, True)],
)
def test_a_goal_knows_which_way_is_better(more_is_better: bool, ratio: float, met: bool) -> None:
    """At least for rates, at most for times."""
    row = row_with(more_is_better=more_is_better, direct=[1.0], loopbox=[ratio])

    assert row.is_met(Goal("loopbox", "direct", 1.0)) is met


def test_a_goal_without_another_is_about_the_figure_itself() -> None:
    """Absolute bounds need no baseline."""
    row = row_with(more_is_better=False, loopbox=[1.5, 1.7, 9.0])

    assert row.is_met(Goal("loopbox", "", 2.0)) is True


def test_every_round_starts_with_another_contender() -> None:
    """Nobody is always measured first."""
    order: list[str] = []
    row = Row("bulk", "MB/s", True, "a")

    def note(name: str) -> float:
        order.append(name)
        return 1.0

    take_rounds(row, {name: partial(note, name) for name in "abc"}, rounds=3)

    assert "".join(order) == "abcbcacab"


def test_a_failure_is_kept_with_its_reason() -> None:
    """One contender's failure costs the others nothing."""

    def fail() -> float:
        raise MeasurementError("no such program")

    row = Row("bulk", "MB/s", True, "a")
    take_rounds(row, {"a": lambda: 1.0, "b": fail}, rounds=2)

    assert (row.samples, row.failures) == (
        {"a": [1.0, 1.0], "b": [None, None]},
        {"b": "no such program"},
    )


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    """Results survive the way through the file."""
    row = row_with(direct=[1.0], loopbox=[None])
    row.goals.append(Goal("loopbox", "direct", 0.9, "why not"))
    group = Group("x", "X", "text", rows=[row], absent={"pasta": "not installed"})

    store(group, tmp_path)

    assert load(tmp_path / "x.json") == group


def test_the_page_hides_no_missed_goal() -> None:
    """A goal that is not met is bold and followed by its note."""
    row = row_with(direct=[1000.0], loopbox=[500.0])
    row.goals = [
        Goal("loopbox", "direct", 0.9, "one core is shared"),
        Goal("loopbox", "pasta", 1.0),
        Goal("direct", "direct", 1.0),
    ]
    group = Group("x", "X", "What was done.", rows=[row], absent={"pasta": "not installed"})
    group.machine = {"kernel": "6.1"}

    page = render_page([group])

    assert page.partition("## ")[2] == (
        "X\n"
        "\n"
        "What was done.\n"
        "\n"
        "| | direct | loopbox |\n"
        "|---|---:|---:|\n"
        "| bulk, MB/s | 1,000 | 500 (0.50) |\n"
        "\n"
        "Not measured here:\n"
        "\n"
        "- pasta: not installed\n"
        "\n"
        "| goal: ratio to | direct | pasta |\n"
        "|---|---|---|\n"
        "| bulk (loopbox) | **0.50, not >= 0.9** | not measured |\n"
        "| bulk (direct) | 1.00 >= 1 met |  |\n"
        "\n"
        "- bulk, against direct: one core is shared\n"
        "\n"
        "Machine: kernel 6.1.\n"
    )
