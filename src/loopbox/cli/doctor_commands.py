"""`loopbox doctor`: what works from the loopback outward, and the first thing that does not.

Must never: judge; rules/doctor does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from loopbox.cli import asking
from loopbox.cli.output import Output, current_output, printable, wrapped
from loopbox.errors import HostError, UsageError
from loopbox.kernel.checkup_elsewhere import examine_elsewhere
from loopbox.rules.doctor.ladder import climb, has_passed
from loopbox.rules.doctor.observed import Observed
from loopbox.rules.doctor.rung import Rung
from loopbox.rules.doctor.targets import Remote, parse_remote

_MARKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pass": ("ok  ", {"fg": "green"}),
    "warn": ("warn", {"fg": "yellow"}),
    "fail": ("FAIL", {"fg": "red", "bold": True}),
    "skip": ("skip", {"dim": True}),
}


@click.command()
@click.option("--host", is_flag=True, help="Where this command runs (the default).")
@click.option("--box", metavar="NAME", shell_complete=asking.complete_box, help="Inside this box.")
@click.option("--remote", metavar="HOST[:PORT]", help="Try this host beyond the gateway.")
@click.option("--offline", is_flag=True, help="Ask nobody beyond the gateway.")
def doctor(host: bool, box: str | None, remote: str | None, offline: bool) -> int:
    """Climb the ladder from the loopback outward; name the first fault and how to mend it.

    Beyond the gateway it connects to 1.1.1.1, 8.8.8.8 and 9.9.9.9 (port 443, without a byte; in a
    box port 80 and HEAD) and asks your name servers for three names. --remote tries that host in
    their stead; --offline asks nobody.

    \b
    loopbox doctor
    loopbox doctor --remote example.com
    loopbox doctor --box shop --json
    """
    if offline and remote is not None:
        raise UsageError("cannot do both: --remote and --offline exclude each other")
    target = None if remote is None else parse_remote(remote)
    if box is not None and host:
        raise UsageError("cannot do both: --host and --box exclude each other")
    look = _seen_on_linux if sys.platform == "linux" else _seen_elsewhere
    seen = look(target, box, offline=offline)
    rungs = climb(seen)
    out = current_output()
    document = {"passed": has_passed(rungs), "rungs": [rung.as_json() for rung in rungs]}
    out.emit(document, lambda: render(out, rungs))
    return 0 if has_passed(rungs) else 1


def _seen_on_linux(target: Remote | None, box: str | None, *, offline: bool) -> Observed:
    from loopbox.cli.visiting import in_box  # noqa: PLC0415  (nothing other systems could import)
    from loopbox.kernel.checkup import examine  # noqa: PLC0415

    if box is None:
        return examine(remote=target, offline=offline)
    known = asking.box(box)
    seen = in_box(
        known["name"], lambda: examine(remote=target, is_box=True, offline=offline), with_files=True
    )
    return replace(seen, egress=known["egress"]["policy"])


def _seen_elsewhere(target: Remote | None, box: str | None, *, offline: bool) -> Observed:
    if box is not None:
        raise HostError(f"cannot look into box `{box}`: there are boxes on Linux only")
    return examine_elsewhere(sys.platform, remote=target, offline=offline)


def render(out: Output, rungs: Sequence[Rung]) -> str:
    """One line a rung, with cause and fix below those that need them, and a verdict."""
    width = max(len(rung.id) for rung in rungs)
    lines = []
    for rung in rungs:
        word, colour = _MARKS[rung.state]
        mark = out.style(word, **colour)
        said = wrapped(_said(rung), indent=" " * (width + 8)).lstrip(" ")
        lines.append(f"{mark}  {rung.id:<{width}}  {said}")
        if rung.state in ("warn", "fail") and rung.fix:
            lines.append(f"{'':<{width + 8}}fix: {printable(rung.fix)}")
        if out.verbose:
            lines += [f"{'':<{width + 8}}{printable(text)}" for text in rung.evidence]
    failed = [rung.id for rung in rungs if rung.state == "fail"]
    warnings = sum(rung.state == "warn" for rung in rungs)
    beside = f", {warnings} warning{'s'[: warnings != 1]}" if warnings else ""
    verdict = f"first fault: {failed[0]}" if failed else f"healthy{beside}"
    return "\n".join([*lines, out.style(verdict, bold=True)])


def _said(rung: Rung) -> str:
    """The cause; of a rung that has no meaning here why it has none; else what it proves."""
    if rung.state == "skip" and rung.evidence:
        return rung.cause or rung.evidence[0]
    return rung.cause or rung.title
