"""What a measurement is: rows of samples, taken in interleaved rounds, compared as ratios.

Owns: the order of the rounds, medians, ratios, goals, the JSON form. Must never: start a program or
know what is measured.

A busy machine drifts, so each round measures every contender once, in a rotating order, and a ratio
is the median of the ratios within the rounds: neighbours in time are compared, not strangers.

Example::

    row = Row("bulk", unit="MB/s", more_is_better=True, baseline="direct")
    take_rounds(row, {"direct": measure_direct, "loopbox": measure_loopbox}, rounds=5)
    row.ratio("loopbox")        # 0.93
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

QUIET_WINDOW_S = 0.2
QUIET_LIMIT_S = 15.0
PATIENCE = "LOOPBOX_BENCH_PATIENCE"
"""Environment variable with another QUIET_LIMIT_S, for machines that never rest."""
QUIET_SHARE = 0.1
"""Share of all processor time that others may use when a sample begins."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A claim about one row: `contender` is at least (or at most) `bound` times `against`.

    With an empty `against` the bound is the figure itself, in the row's unit.
    """

    contender: str
    against: str
    bound: float
    note: str = ""
    """Why it is not met and what was tried; shown only when it is not met."""


@dataclass(slots=True)
class Row:
    """One thing measured for several contenders."""

    title: str
    unit: str
    more_is_better: bool
    baseline: str
    goals: list[Goal] = field(default_factory=list)
    samples: dict[str, list[float | None]] = field(default_factory=dict)
    """Contender to one number a round; None where that round failed."""
    failures: dict[str, str] = field(default_factory=dict)
    """Contender to the last reason why a round failed."""
    disturbed: int = 0
    """Samples that were begun although the machine never came to rest."""

    def median(self, contender: str) -> float | None:
        """Median over the rounds that succeeded; None when there was none."""
        taken = [sample for sample in self.samples.get(contender, []) if sample is not None]
        return statistics.median(taken) if taken else None

    def ratio(self, contender: str, against: str | None = None) -> float | None:
        """Median of the per-round ratios; None when no round has both."""
        pairs = zip(
            self.samples.get(contender, []),
            self.samples.get(against or self.baseline, []),
            strict=False,
        )
        ratios = [mine / other for mine, other in pairs if mine is not None and other]
        return statistics.median(ratios) if ratios else None

    def is_met(self, goal: Goal) -> bool | None:
        """Whether the goal is met; None when one of the two was not measured."""
        value = self.value_for(goal)
        if value is None:
            return None
        return value >= goal.bound if self.more_is_better else value <= goal.bound

    def value_for(self, goal: Goal) -> float | None:
        """What the goal's bound is held against."""
        if not goal.against:
            return self.median(goal.contender)
        return self.ratio(goal.contender, goal.against)


@dataclass(slots=True)
class Group:
    """One section of the page."""

    name: str
    title: str
    text: str
    """What was done, in a paragraph."""
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Contender that could not be measured, and why."""
    notes: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)


class MeasurementError(Exception):
    """This contender could not be measured this time; the text says why."""


def take_rounds(row: Row, contenders: Mapping[str, Callable[[], float]], *, rounds: int) -> None:
    """Measure every contender once a round, each round starting with another one."""
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        taken: dict[str, float | None] = {}
        for name in names[shift:] + names[:shift]:
            row.disturbed += not wait_for_quiet()
            try:
                taken[name] = contenders[name]()
            except (MeasurementError, OSError) as err:
                taken[name] = None
                row.failures[name] = str(err)
        for name in names:
            row.samples.setdefault(name, []).append(taken[name])
    _tell(row, names)


def take_together(
    rows: Mapping[str, Row],
    contenders: Mapping[str, Callable[[], Mapping[str, float]]],
    *,
    rounds: int,
) -> None:
    """As `take_rounds`, for measurements that yield a number for several rows at once."""
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        taken: dict[str, Mapping[str, float]] = {}
        for name in names[shift:] + names[:shift]:
            is_disturbed = not wait_for_quiet()
            for row in rows.values():
                row.disturbed += is_disturbed
            try:
                taken[name] = contenders[name]()
            except (MeasurementError, OSError) as err:
                taken[name] = {}
                for row in rows.values():
                    row.failures[name] = str(err)
        for name in names:
            for key, row in rows.items():
                row.samples.setdefault(name, []).append(taken[name].get(key))
    for row in rows.values():
        _tell(row, names)


def wait_for_quiet() -> bool:
    """Wait until other programs leave the processors alone; False when they never did.

    What is measured is idle at this moment, so all that is busy is foreign.
    """
    deadline = time.monotonic() + float(os.environ.get(PATIENCE, QUIET_LIMIT_S))
    while True:
        busy, total = _processor_ticks()
        time.sleep(QUIET_WINDOW_S)
        busy_after, total_after = _processor_ticks()
        if busy_after - busy <= QUIET_SHARE * (total_after - total):
            return True
        if time.monotonic() >= deadline:
            return False


def _processor_ticks() -> tuple[int, int]:
    """Ticks spent on anything, and all ticks, of all processors (proc(5), /proc/stat)."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def store(group: Group, folder: Path) -> None:
    """Write the group's numbers to `folder`/NAME.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{group.name}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(group), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def load(path: Path) -> Group:
    """Read what `store` wrote."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(**{**row, "goals": [Goal(**goal) for goal in row["goals"]]})
        for row in table.pop("rows")
    ]
    return Group(rows=rows, **table)


def say(text: str) -> None:
    """Tell the person who waits what goes on."""
    print(text, file=sys.stderr, flush=True)


def _tell(row: Row, names: list[str]) -> None:
    parts = []
    for name in names:
        median, ratio = row.median(name), row.ratio(name)
        if median is None and name not in row.failures:
            continue
        parts.append(
            f"{name} failed ({row.failures[name]})"
            if median is None
            else f"{name} {median:.4g}" + ("" if ratio is None else f" ({ratio:.2f})")
        )
    say(f"  {row.title} [{row.unit}]: " + ", ".join(parts))
