"""Stored results to `docs/benchmarks.md`.

Owns: every word of that page. Must never: measure, or hide a goal that is not met.

Example::

    render_page([load(path) for path in sorted(folder.glob("*.json"))])
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness import Goal, Group, Row

HEAD = """# Benchmarks

Written by `make bench`; do not edit. Every contender is measured once in each round, the rounds
follow each other, and a figure is the median over the rounds. In brackets: the ratio to the
baseline, the median of the ratios within the rounds. On a shared machine trust the ratios, not the
absolute figures; ratios within 0.1 of each other are equal.
"""


def render_page(groups: Sequence[Group]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(group) for group in groups)])


def _section(group: Group) -> str:
    parts = [f"## {group.title}", "", " ".join(group.text.split()), ""]
    parts += [*_tables(group), ""]
    if group.absent:
        parts += ["Not measured here:", ""]
        parts += [f"- {name}: {reason}" for name, reason in group.absent.items()] + [""]
    parts += _goals(group)
    parts += [f"- {note}" for note in group.notes] + ([""] if group.notes else [])
    disturbed = sum(row.disturbed for row in group.rows)
    if disturbed:
        taken = sum(len(samples) for row in group.rows for samples in row.samples.values())
        parts += [f"{disturbed} of {taken} samples were begun while other programs were busy.", ""]
    facts = "; ".join(f"{name} {value}" for name, value in group.machine.items())
    parts += [f"Machine: {facts}.", ""]
    return "\n".join(parts)


def _tables(group: Group) -> list[str]:
    names = list(dict.fromkeys(name for row in group.rows for name in row.samples))
    lines = [
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for row in group.rows:
        cells = [_cell(row, name) for name in names]
        lines.append(f"| {row.title}, {row.unit} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: Row, name: str) -> str:
    median = row.median(name)
    if median is None:
        return "failed" if name in row.failures else "-"
    ratio = row.ratio(name)
    if ratio is None or name == row.baseline:
        return _number(median)
    return f"{_number(median)} ({ratio:.2f})"


def _goals(group: Group) -> list[str]:
    """One line for each row with goals: the ratio to each of those it is held against."""
    rows = [row for row in group.rows if row.goals]
    if not rows:
        return []
    others = list(dict.fromkeys(goal.against for row in rows for goal in row.goals))
    heads = [other or "the figure itself" for other in others]
    lines = ["| goal: ratio to | " + " | ".join(heads) + " |", "|---|" + "---|" * len(others)]
    for row in rows:
        for contender in dict.fromkeys(goal.contender for goal in row.goals):
            goals = {goal.against: goal for goal in row.goals if goal.contender == contender}
            cells = [_verdict(row, goals[other]) if other in goals else "" for other in others]
            lines.append(f"| {row.title} ({contender}) | " + " | ".join(cells) + " |")
    notes = [
        f"- {row.title}, against {goal.against}: {goal.note}"
        for row in rows
        for goal in row.goals
        if goal.note and row.is_met(goal) is False
    ]
    return [*lines, "", *notes, *([""] if notes else [])]


def _verdict(row: Row, goal: Goal) -> str:
    value = row.value_for(goal)
    if value is None:
        return "not measured"
    bound = f"{'>=' if row.more_is_better else '<='} {goal.bound:g}"
    shown = f"{value:.2f}" if value >= 0.1 or not value else f"{value:.3f}"
    return f"{shown} {bound} met" if row.is_met(goal) else f"**{shown}, not {bound}**"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
