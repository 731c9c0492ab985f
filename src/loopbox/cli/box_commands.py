"""The commands that look at boxes and end them: ls, show, url, address, wait, down, prune.

Must never: hold a rule; each command asks, then renders.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from typing import Any

import click

from loopbox.cli import asking
from loopbox.cli.output import Output, counted, current_output, printable, table
from loopbox.errors import BoxError, KeeperError
from loopbox.places import runtime_path
from loopbox.rules.doors import place_for

_MOST_NAMED = 12
_EVERY_BOX_HAS = ("127.0.0.1/8", "::1/128", "198.18.0.1/32", "fd6c:6f6f:7062::1/128")
"""Addresses on `lo` not worth a line: loopback's, and what leaves a box is sent from the others
(kernel/transparent.py)."""
_NAME = click.argument("name", required=False, shell_complete=asking.complete_box)


def _listener_line(out: Output, listener: dict[str, Any]) -> str:
    where = listener["url"] or listener["at"] or "not open"
    what = (listener["command"] or "").split(" ")[0].rpartition("/")[2]
    bind = f"[{listener['bind']}]" if ":" in listener["bind"] else listener["bind"]
    port = out.style(f"{listener['port']:>5}/{listener['protocol']}", bold=True)
    line = f"  {port}  {printable(bind):<15}  {printable(what):<16}  {printable(where)}"
    if problem := listener.get("problem"):
        line += f"\n         {printable(problem)}"
    return line


def render_box(out: Output, box: dict[str, Any]) -> str:
    """One box for a person: where it is, what listens, what runs."""
    name = out.style(box["name"], bold=True)
    lines = [f"{name}  {box['state']}  {box['address']}  {printable(box['directory'])}"]
    lines += [_listener_line(out, listener) for listener in box["listeners"]]
    if not box["listeners"]:
        lines.append("  nothing listens yet")
    if box["forward"]:
        ports = ", ".join(str(port) for port in box["forward"])
        lines.append(f"  forwarded from the host's loopback: {ports}")
    if extra := [item for item in box["loopback"] if item not in _EVERY_BOX_HAS]:
        lines.append(f"  lo: {', '.join(extra)}")
    if box["links"] or box["router"]:
        from loopbox.cli import lab_shown  # noqa: PLC0415

        lines += [f"  {printable(line)}" for line in lab_shown.lines_of(box)]
    count = counted(len(box["processes"]), "process")
    lines.append(f"  {count}{', kept' if box['kept'] else ''}")
    lines += [f"  problem: {printable(problem)}" for problem in box.get("problems", [])]
    return "\n".join(lines)


def show_here() -> None:
    """`loopbox` alone: what this directory's box is doing."""
    out = current_output()
    try:
        box = asking.box(None)
    except (BoxError, KeeperError) as error:
        if error.code not in ("no-box", "no-keeper"):
            raise
        if out.json:
            raise
        out.say("no box is up for this directory")
        out.hint("start one: loopbox run -- CMD    (all commands: loopbox --help)")
        return
    _fill_labs([box])
    out.emit(box, lambda: render_box(out, box))


def _fill_labs(boxes: list[dict[str, Any]]) -> None:
    """Links and routers of boxes that belong to labs; nothing is loaded where none is up."""
    if boxes and os.path.isdir(f"{runtime_path()}/labs"):
        from loopbox.cli import lab_shown  # noqa: PLC0415

        up = {box["name"] for box in boxes} if len(boxes) > 1 else asking.names_up()
        lab_shown.fill(boxes, up=up)


def _from_home(path: str) -> str:
    """`~/shop`, as a shell's prompt has it."""
    home = os.path.expanduser("~").rstrip("/")
    return f"~{path[len(home) :]}" if home and f"{path}/".startswith(f"{home}/") else path


@click.command()
def ls() -> None:
    """List the boxes that are up.

    \b
    loopbox ls
    loopbox ls --json | jq -r '.boxes[].name'
    """
    out = current_output()
    boxes = asking.boxes()
    _fill_labs(boxes)

    def render() -> str:
        if not boxes:
            out.hint("no box is up; start one: loopbox run -- CMD")
            return ""
        rows = [
            (
                box["name"],
                box["address"],
                " ".join(
                    dict.fromkeys(
                        str(listener["port"])
                        + ("/udp" if listener["protocol"] == "udp" else "")
                        + ("" if listener["at"] else "!")
                        for listener in box["listeners"]
                    )
                )
                or "-",
                str(len(box["processes"])),
                _from_home(box["directory"]),
            )
            for box in boxes
        ]
        if any("!" in row[2] for row in rows):
            out.say("a port with ! cannot be reached from the host: loopbox show NAME says why")
        return table(rows, header=("NAME", "ADDRESS", "PORTS", "PROCESSES", "DIRECTORY"))

    out.emit({"boxes": boxes}, render)


@click.command()
@_NAME
def show(name: str | None) -> None:
    """Show one box: its address, what listens and runs in it.

    Without NAME, this directory's.

    \b
    loopbox show
    loopbox show fix-ui.shop --json
    """
    out = current_output()
    box = asking.box(name)
    _fill_labs([box])
    out.emit(box, lambda: render_box(out, box))


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME] [PORT]", shell_complete=asking.complete_box)
def url(words: tuple[str, ...]) -> None:
    """Print the URLs of a box, one per line, for scripts.

    Of this directory's box without NAME; of one port with PORT, be it a database's.

    \b
    curl "$(loopbox url shop 3000)"
    redis-cli -u "$(loopbox url shop 6379)"
    """
    out = current_output()
    name, port = _name_and_port(words)
    box = asking.box(name)
    urls = _urls(box) if port is None else [_url_of_port(box, port)]
    out.emit({"urls": urls}, lambda: "\n".join(urls))


def _urls(box: dict[str, Any]) -> list[str]:
    urls = list(dict.fromkeys(found["url"] for found in box["listeners"] if found["url"]))
    if urls:
        return urls
    if box["listeners"]:
        port = box["listeners"][0]["port"]
        raise BoxError(
            f"cannot name a URL of box `{box['name']}`: nothing in it speaks HTTP",
            hint=f"where one port is: loopbox url {box['name']} {port}",
            code="no-listener",
        )
    raise BoxError(
        f"cannot name a URL of box `{box['name']}`: nothing listens in it yet",
        hint=f"wait for it: loopbox wait {box['name']} 3000",
        code="no-listener",
    )


def _url_of_port(box: dict[str, Any], port: int) -> str:
    """By what listens there, which may not be served by name; before it listens, by the port."""
    there = [found for found in box["listeners"] if found["port"] == port]
    for found in there:
        if found["url"]:
            return str(found["url"])
    if there and all(found["protocol"] == "udp" for found in there):
        return f"{box['address']}:{port}"
    return place_for(box["name"], port, address=IPv4Address(box["address"]))


def _name_and_port(words: tuple[str, ...]) -> tuple[str | None, int | None]:
    if len(words) > 2:
        raise click.UsageError("at most a name and a port")
    if len(words) == 2:
        return words[0], _port(words[1])
    if len(words) == 1 and words[0].isdigit():
        return None, _port(words[0])
    return (words[0] if words else None), None


def _port(word: str) -> int:
    if not word.isdigit() or not 1 <= int(word) <= 65535:
        raise click.UsageError(f"`{word}` is no port from 1 to 65535")
    return int(word)


@click.command()
@_NAME
def address(name: str | None) -> None:
    """Print the address at which the host reaches a box, on any port.

    \b
    psql -h "$(loopbox address shop)" -p 5432
    """
    box = asking.box(name)
    current_output().emit({"address": box["address"]}, lambda: str(box["address"]))


@click.command()
@click.argument("name", shell_complete=asking.complete_box)
@click.argument("port", type=click.IntRange(1, 65535))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait.",
)
def wait(name: str, port: int, timeout: float) -> None:
    """Wait until something really listens on PORT in a box, which may not even be up yet.

    \b
    loopbox wait shop 5432 --timeout 30 && make migrate
    """
    out = current_output()
    asking.ask("wait", start=True, name=asking.box_name(name), port=str(port), timeout=str(timeout))
    out.emit({"name": name, "port": port, "listening": True}, lambda: "")


@click.command()
@click.argument("names", nargs=-1, shell_complete=asking.complete_box)
@click.option("--all", "everything", is_flag=True, help="Every box of this user.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    help="Seconds between TERM and KILL (5; 0 for a lab's routers).",
)
def down(names: tuple[str, ...], everything: bool, grace: float | None) -> None:
    """End a box's processes (TERM, grace, KILL) and remove the box.

    A lab's name means all its boxes. Without NAMES, this directory's box or lab.

    \b
    loopbox down
    loopbox down triangle
    loopbox down --all
    """
    out = current_output()
    gone: dict[str, list[str]] = {"down": []}
    if labs := os.path.isdir(f"{runtime_path()}/labs"):
        from loopbox.cli.lab_runner_commands import (  # noqa: PLC0415  labs only
            forget_gone,
            take_down,
        )

        gone["down"], names = take_down(names, everything=everything, grace=grace)
    wanted = ",".join(asking.box_name(name) or name for name in names)
    if wanted or everything or not gone["down"]:
        try:
            found = asking.ask_json(
                "down",
                names=wanted or None,
                all="1" if everything else None,
                grace=str(5.0 if grace is None else grace),
            )
        except KeeperError as error:
            if error.code != "no-keeper":
                raise
            if not everything:
                raise asking.not_up(names[0] if names else None) from error
        else:
            gone["down"] += found["down"]
            if labs:
                forget_gone()

    def render() -> str:
        shown = ", ".join(gone["down"][:_MOST_NAMED])
        more = len(gone["down"]) - _MOST_NAMED
        shown += f" and {more} more" if more > 0 else ""
        out.say(f"down: {shown}" if shown else "no box was up")
        return ""

    out.emit(gone, render)


@click.command()
def prune() -> None:
    """Remove boxes nobody is in, and forget names of projects that are not up.

    \b
    loopbox prune
    """
    out = current_output()
    try:
        gone = asking.ask_json("prune")
    except KeeperError as error:
        if error.code != "no-keeper":
            raise
        gone = asking.ask_json("prune", start=True)

    def render() -> str:
        out.say(
            f"removed {counted(len(gone['boxes']), 'box')} and "
            f"forgot {counted(len(gone['names']), 'name')}"
            + (f": {', '.join(gone['boxes'])}" if gone["boxes"] else "")
        )
        return ""

    out.emit(gone, render)
