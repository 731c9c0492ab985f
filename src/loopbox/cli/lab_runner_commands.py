"""The commands of labs that are up: `up` for a lab file, `link`, `router`.

Must never: hold a rule of labs; lab/ does, here it is said and shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from loopbox.cli import asking, lab_shown
from loopbox.cli.lab_boxes import (
    Ended,
    KeeperBoxes,
    ending_by_signal,
    find_lab,
    labs_here,
    memory,
)
from loopbox.cli.output import Output, current_output, printable, table
from loopbox.errors import ConfigError, HostError, UsageError
from loopbox.lab.memory import LabRecord
from loopbox.lab.records import Lab, Link
from loopbox.lab.runner import Outcome, Runner, links_named, view_of
from loopbox.places import open_runtime_directory
from loopbox.rules.naming import parse_box_name
from loopbox.rules.routing import RULES

_LAB = click.option("--lab", metavar="LAB", help="Which lab, when several are up.")


def runner(out: Output, *, check: Callable[[], None] = lambda: None) -> Runner:
    """The runner over this user's keeper."""
    return Runner(KeeperBoxes(), memory(), say=out.say, check=check)


# -- up, down ---------------------------------------------------------------------------------


def up(file: Path, *, name: str | None, timeout: float, out: Output) -> int:
    """Bring the lab in `file` up, by another name if one is given; the exit status."""
    from loopbox.lab.topology import load  # noqa: PLC0415

    lab = load(file)
    if name is not None:
        lab = replace(lab, name=parse_box_name(name))
    if not lab.boxes:
        raise ConfigError(f"cannot use `{file}`: it declares no box", hint="add [box.r1]")
    for warning in lab.warnings:
        out.say(f"warning: {warning}")
    os.close(open_runtime_directory(create=True))
    try:
        with ending_by_signal() as check:
            outcome = runner(out, check=check).up(lab, seconds=timeout)
    except Ended as ended:
        out.say(f"lab {lab.name} was not finished and is gone again")
        return 128 + ended.number
    out.emit(_document(outcome), lambda: _rendered(outcome))
    if outcome.record.cut:
        out.say(f"cut as before: {', '.join(outcome.record.cut)}; loopbox link mend NAME")
    out.say(
        f"lab {lab.name} is up after {outcome.seconds:.1f} s"
        if outcome.changed
        else f"lab {lab.name} is up already"
    )
    return 0


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "lab": outcome.lab.name,
        "file": outcome.record.file,
        "changed": outcome.changed,
        "seconds": round(outcome.seconds, 3),
        "boxes": [
            {
                "name": outcome.record.boxes[box.name],
                "router": box.is_router,
                "router_id": _id_of(outcome.lab, box.name),
                "loopback": [str(item) for item in box.loopback],
            }
            for box in outcome.lab.boxes
        ],
        "links": [_link_document(outcome.record, link) for link in outcome.lab.links],
    }


def _id_of(lab: Lab, box: str) -> str | None:
    choice = lab.box(box).router_id
    return None if choice is None or choice.value is None else str(choice.value)


_MOST_ROWS = 40


def _rendered(outcome: Outcome) -> str:
    lab = outcome.lab
    rows = [
        (
            outcome.record.boxes[box.name],
            _id_of(lab, box.name) or "-",
            ", ".join(str(item) for item in box.loopback) or "-",
            " ".join(link.name for link in lab.links_of(box.name)) or "-",
        )
        for box in lab.boxes[:_MOST_ROWS]
    ]
    shown = table(rows, header=("BOX", "ROUTER ID", "LOOPBACK", "LINKS"))
    left = len(lab.boxes) - len(rows)
    return shown + (f"\nand {left} more" if left else "")


def take_down(
    names: tuple[str, ...], *, everything: bool, grace: float | None
) -> tuple[list[str], tuple[str, ...]]:
    """Take down the labs among `names` (without names, those of the working directory).

    Gives the names of their boxes, and the names that are no labs'.
    """
    known = {record.lab: record for record in memory().all()}
    wanted = [known[name] for name in names if name in known] if names else labs_here()
    if everything:
        wanted = list(known.values())
    gone: list[str] = []
    for record in wanted:
        gone += runner(current_output()).down(record, grace=_grace(record, grace))
    return gone, tuple(name for name in names if name not in known)


def forget_gone() -> None:
    """Forget labs of which no box is up any more: ended one by one."""
    up = asking.names_up()
    for record in memory().all():
        if record.done and not up.intersection(record.places):
            memory().forget(record)


def _grace(record: LabRecord, asked: float | None) -> float:
    """Routers have nothing to save; services may."""
    if asked is not None:
        return asked
    try:
        has_services = any(box.services for box in memory().lab_of(record).boxes)
    except Exception:
        return 0.0
    return 5.0 if has_services else 0.0


# -- link -------------------------------------------------------------------------------------


@click.group()
def link() -> None:
    """Cut and mend the links of a lab that is up.

    \b
    loopbox link ls
    loopbox link cut r1 r2
    loopbox link mend r1-r2
    """


@link.command("ls")
@_LAB
def list_links(lab: str | None) -> None:
    """List links with their ends and state (up, cut, silent; gone with the box at an end).

    \b
    loopbox link ls --json
    """
    out = current_output()
    records = [find_lab(lab)] if lab is not None else memory().all()
    if lab is None and (here := labs_here()):
        records = here
    up = asking.names_up()
    documents = [
        _link_document(record, link, up=up)
        for record in records
        for link in memory().lab_of(record).links
    ]  # fmt: skip

    def render() -> str:
        if not documents:
            out.hint("no lab is up; bring one up: loopbox up FILE")
            return ""
        rows = [
            (
                item["name"],
                item["state"],
                "  ".join(
                    " ".join((end["box"], *end["addresses"][:1])) for end in item["ends"]
                ),
            )
            for item in documents
        ]  # fmt: skip
        if any(item["state"] == "gone" for item in documents):
            out.hint("a lab is not whole: make it anew with loopbox up FILE")
        return table(rows, header=("LINK", "STATE", "ENDS"))

    out.emit({"links": documents}, render)


def _link_document(
    record: LabRecord, link: Link, *, up: Collection[str] | None = None
) -> dict[str, Any]:
    """`up`: the boxes that are; without it all of the lab's."""
    there = record.places if up is None else up
    return {
        "name": link.name,
        "lab": record.lab,
        "state": lab_shown.state_of(record, link, up=there),
        "ends": [
            {
                "box": record.boxes[end.box],
                "interface": end.interface,
                "addresses": [str(item) for item in end.addresses],
            }
            for end in link.ends
        ],
    }


_WORDS = click.argument("words", nargs=-1, required=True, metavar="A B | NAME")


@link.command()
@_WORDS
@click.option("--silent", is_flag=True, help="Drop all packets, carrier up: only timers notice.")
@_LAB
def cut(words: tuple[str, ...], *, silent: bool, lab: str | None) -> None:
    """Take a link away at every end.

    Two boxes name every link between them.

    \b
    loopbox link cut r1 r2
    loopbox link cut north --silent
    """
    _change(words, lab, state="silent" if silent else "cut")


@link.command()
@_WORDS
@_LAB
def mend(words: tuple[str, ...], lab: str | None) -> None:
    """Bring a cut link back, whichever way it was cut.

    \b
    loopbox link mend r1 r2
    """
    _change(words, lab, state="up")


def _change(words: tuple[str, ...], lab_name: str | None, *, state: str) -> None:
    if len(words) > 2:
        raise UsageError(
            "cannot tell which link: a link's name, or two boxes", hint="loopbox link ls"
        )
    out = current_output()
    record = find_lab(lab_name, boxes=words)
    links = links_named(memory().lab_of(record), words)
    if state == "up":
        record = runner(out).mend(record, links)
    else:
        record = runner(out).cut(record, links, silent=state == "silent")
    documents = [_link_document(record, link) for link in links]

    def render() -> str:
        for item in documents:
            out.say(f"link {item['name']} of {record.lab}: {item['state']}")
        return ""

    out.emit({"links": documents}, render)


# -- router -----------------------------------------------------------------------------------


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("box")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- VTYSH COMMAND]")
@click.option(
    "--as", "makers", multiple=True, type=click.Choice(list(RULES)), help="The ID by this rule too."
)
@_LAB
def router(box: str, command: tuple[str, ...], makers: tuple[str, ...], lab: str | None) -> int:
    """Show a router: its ID and why, OSPF neighbours, BGP sessions, routes.

    With a command: what FRR's own shell (vtysh) says to it.

    \b
    loopbox router r1.triangle --json
    loopbox router r1 --as junos --as bird
    loopbox router r1 -- show ip ospf neighbor
    """
    out = current_output()
    record = find_lab(lab, boxes=(box,))
    view = view_of(record, memory().lab_of(record), box.removesuffix(f".{record.lab}"))
    if command:
        return _vtysh(view.directory, " ".join(command))
    document = view.document()
    if makers:
        document["router_ids_as"] = {maker: view.router_id_as(maker) for maker in makers}
    out.emit(document, lambda: _render_router(out, record.boxes[view.name], document))
    return 0


def _vtysh(directory: Path, command: str) -> int:
    shell = ["vtysh", "--vty_socket", str(directory), "--config_dir", str(directory), "-c", command]
    sys.stdout.flush()
    try:
        done = subprocess.run(
            shell,
            check=False,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VTYSH_HISTFILE": os.devnull},
        )
    except FileNotFoundError as error:
        raise HostError(
            "cannot run FRR's shell: vtysh is not installed", hint="sudo apt-get install frr"
        ) from error
    for line in done.stderr.splitlines():
        if "vtysh.conf" not in line:  # it has none, and needs none
            click.echo(line, err=True)
    return done.returncode


def _render_router(out: Output, name: str, document: dict[str, Any]) -> str:
    head = out.style(name, bold=True)
    parts = [f"{head}  {document['router_id']}  ({document['router_id_reason']})"]
    parts[0] += "".join(
        f"\n  as {maker}: {found['router_id']} ({found['reason']})"
        for maker, found in document.get("router_ids_as", {}).items()
    )
    sections: tuple[tuple[list[dict[str, Any]], tuple[str, ...], tuple[str, ...]], ...] = (
        (
            document["ospf"]["neighbors"],
            ("router_id", "interface", "address", "state"),
            ("NEIGHBOUR", "INTERFACE", "ADDRESS", "STATE"),
        ),
        (
            document["bgp"]["sessions"],
            ("peer", "box", "source", "state", "uptime_s", "drops"),
            ("PEER", "BOX", "SOURCE", "STATE", "UPTIME S", "DROPS"),
        ),
    )
    for items, keys, header in sections:
        if items:
            rows = [[_cell(item.get(key)) for key in keys] for item in items]
            parts.append(table(rows, header=header))
    if document["routes"]:
        rows = [
            [item["prefix"], item["protocol"], str(item["metric"]),
             ", ".join(printable(_hop(hop)) for hop in item["via"]) or "-"]
            for item in document["routes"]
        ]  # fmt: skip
        parts.append(table(rows, header=("ROUTE", "BY", "METRIC", "VIA")))
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _hop(hop: dict[str, Any]) -> str:
    return " ".join(str(part) for part in (hop["gateway"], hop["device"]) if part)


__all__ = ["link", "router", "take_down", "up"]
