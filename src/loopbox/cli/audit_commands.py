"""`loopbox audit`: who can reach what listens here.

Must never: judge; rules/audit does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from loopbox.cli import asking
from loopbox.cli.output import Output, columns, current_output, printable, table
from loopbox.cli.visiting import in_boxes
from loopbox.errors import LoopboxError
from loopbox.kernel.hooks import CgroupFilters
from loopbox.kernel.survey import Survey, socket_owners, survey
from loopbox.rules.audit.findings import (
    HIDDEN,
    Finding,
    Holder,
    by_danger,
    endpoint,
    finding,
    is_exposed,
    summary,
)
from loopbox.rules.audit.ours import named
from loopbox.rules.audit.published import published
from loopbox.rules.audit.reach import Reachability
from loopbox.rules.audit.routed import routed

_COLOURS: dict[str, dict[str, Any]] = {
    "high": {"fg": "red", "bold": True},
    "medium": {"fg": "yellow"},
    "unknown": {"fg": "magenta"},
    "low": {},
    "info": {"dim": True},
}
_CALM = ("loopback", "unreachable")


@click.command()
@click.option("--host", is_flag=True, help="Only the network namespace this command runs in.")
@click.option("--box", metavar="NAME", shell_complete=asking.complete_box, help="Only this box.")
@click.option("--all", "everything", is_flag=True, help="The host and every box (the default).")
@click.option("--check", is_flag=True, help="Exit 1 when anything is reachable from outside.")
def audit(host: bool, box: str | None, everything: bool, check: bool) -> int:
    """Show who can reach each listener, most dangerous first, and how to shut it.

    \b
    loopbox audit                 this machine and its boxes
    sudo loopbox audit --host     with every process and firewall rule in sight
    loopbox audit --check         for CI: exit 1 when something is exposed
    """
    out = current_output()
    only_host = host and not everything and box is None
    known = _known(only_host=only_host, only_box=box)
    places = _places(out, known, only_host=only_host, only_box=box)
    found = by_danger(findings_of(places, {entry["address"]: entry["name"] for entry in known}))
    unseen = {f"{place}: {what}" for place, seen in places.items() for what in seen.unseen}
    for text in sorted(unseen):
        out.say(f"not seen on {text}")
    hidden = sum(HIDDEN in text for entry in found for text in entry.evidence)
    if hidden:
        whose = (
            "the process of a listener" if hidden == 1 else f"the processes of {hidden} listeners"
        )
        out.say(f"not seen: {whose}: another user's, which takes root")
    out.emit({"findings": [entry.as_json() for entry in found]}, lambda: render(out, found))
    return 1 if check and any(is_exposed(entry) for entry in found) else 0


def _known(*, only_host: bool, only_box: str | None) -> list[dict[str, Any]]:
    """The boxes that are up; only the one that is asked for, which must be.

    For the host alone they give its doors their names and no more: whatever ails the keeper is no
    matter then.
    """
    if only_box is not None:
        return [asking.box(only_box)]
    try:
        # There are boxes on Linux only, and elsewhere perhaps no Unix sockets to ask a keeper by.
        return asking.boxes(recover=not only_host) if sys.platform == "linux" else []
    except LoopboxError:
        if only_host:
            return []
        raise


def _places(
    out: Output, known: Sequence[dict[str, Any]], *, only_host: bool, only_box: str | None
) -> dict[str, Survey]:
    """Place name to what was seen there."""
    names = [] if only_host else [entry["name"] for entry in known]
    places = {} if only_box is not None else {"host": survey()}
    for name, seen in in_boxes(names, _survey_box).items():
        if isinstance(seen, LoopboxError):
            if only_box is not None:
                raise seen
            out.say(seen.message)
        else:
            places[name] = seen
    return places


def _survey_box() -> Survey:
    return survey(is_box=True)


def findings_of(places: dict[str, Survey], boxes: Mapping[str, str] | None = None) -> list[Finding]:
    """One finding for each listener of each place, and for what leads on to other devices.

    `boxes` are names by address, for the keeper's own doors.
    """
    told = {inode: held for seen in places.values() for inode, held in seen.owners.items()}
    inodes = {entry.inode for seen in places.values() for entry in seen.listeners}
    owners, all_seen = (told, True) if told or sys.platform != "linux" else socket_owners(inodes)
    found: list[Finding] = []
    groups = CgroupFilters() if sys.platform == "linux" else None
    for place, seen in places.items():
        judge = Reachability(seen.view)
        found += [
            finding(
                entry,
                judge.judge(entry, filters=_filters(groups, owners.get(entry.inode, ()))),
                owners.get(entry.inode, ()),
                where=place,
                is_seen=all_seen,
                ours=named(entry, owners.get(entry.inode, ()), where=place, boxes=boxes or {}),
            )
            for entry in seen.listeners
        ]
        found += [
            finding(entry.listener, entry.verdict, (), where=place)
            for entry in published(seen.view)
        ]
        found += routed(seen.view, where=place)
    return found


def _filters(groups: CgroupFilters | None, holders: Sequence[Holder]) -> tuple[str, ...]:
    """Doubts about programs that filter the packets of a socket's holders."""
    if groups is None:
        return ()
    return tuple(dict.fromkeys(text for holder in holders for text in groups.of(holder.pid)))


def render(out: Output, found: Sequence[Finding]) -> str:
    """A verdict in one line, a table sorted by danger, and what to do about the exposed ones."""
    lines = [out.style(summary(found), bold=True)]
    if not found:
        return lines[0]
    rows = [
        (
            entry.severity,
            entry.reach,
            entry.subnet or f"{entry.listener.protocol} {endpoint(entry.listener)}",
            _program(entry),
            entry.where,
        )
        for entry in found
    ]
    header, *body = table(_fitted(rows), header=_HEADER).split("\n")
    lines.append(out.style(header, underline=True))
    for entry, line in zip(found, body, strict=True):
        lines.append(out.style(line, **_COLOURS[entry.severity]))
        if out.verbose:
            lines += [f"    {printable(text)}" for text in entry.evidence]
    fixes = {
        f"{entry.subnet or endpoint(entry.listener)}: {entry.fix}": None
        for entry in found
        if entry.reach not in _CALM and entry.severity != "info"
    }
    lines += [f"fix {printable(text)}" for text in fixes]
    return "\n".join(lines)


_HEADER = ("danger", "reach", "listener", "program", "where")
_PROGRAM = _HEADER.index("program")
_SHORTEST = 12
"""A program's name is not cut further than this."""


def _fitted(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows with programs' names cut where the terminal is too narrow for them."""
    room = columns()
    if room is None:
        return list(rows)
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
    spare = room - sum(widths) - 2 * (len(widths) - 1)
    longest = max(_SHORTEST, widths[_PROGRAM] + min(spare, 0))
    return [
        tuple(
            f"{cell[: longest - 1]}…" if at == _PROGRAM and len(cell) > longest else cell
            for at, cell in enumerate(row)
        )
        for row in rows
    ]


def _program(entry: Finding) -> str:
    """Name and pid of the first holder, and how many more there are."""
    if entry.listener.inode == 0 and (
        entry.code == "published-port" or "adding a route" in entry.title
    ):
        return "(another device)"
    if not entry.holders:
        return f"(of user {entry.listener.uid})" if entry.listener.uid >= 0 else "?"
    first = entry.holders[0]
    if entry.ours is not None:
        return entry.ours
    words = first.command.split()
    name = words[0].rpartition("/")[2][:24] if words else "?"
    more = f" +{len(entry.holders) - 1}" if len(entry.holders) > 1 else ""
    return f"{name} ({first.pid}){more}"
