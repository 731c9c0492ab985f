"""The user's own `frr.conf`: checked before anything is made, handed to the daemons when they run.

Owns: the two calls of FRR's shell for it, and its complaints as errors that name file and line.
Must never: write the file, understand what it configures.

Example::

    check(lab)                                   # ConfigError: … `r1.conf`: line 3: unknown …
    hand_over(Path("/run/…/r1"), box.config)     # in the box, its daemons answer
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from loopbox.errors import ConfigError, HostError
from loopbox.lab.records import Lab

_COMPLAINT = re.compile(r"line (\d+): % (.*?)(?:\[\d+\])?: *(.*)")
"""As in `line 3: % Unknown command[4]: router opsf`; the number is of no use to anybody."""
_REFUSAL = re.compile(r"line (\d+): Failure to communicate\[\d+\] to (\w+), line: *(.*)")
"""What a daemon does not take; its own words are in the line before."""


def check(lab: Lab) -> None:
    """Let FRR's shell read every `config` of a lab. Raises ConfigError, HostError without it."""
    for box in lab.boxes:
        if box.config is not None:
            _read_by_shell(["-C"], box.config)


def hand_over(directory: Path, file: Path) -> None:
    """Give the file to the daemons of one router. Raises ConfigError for what they refuse."""
    (directory / "vtysh.conf").touch()  # the shell complains where it has none
    _read_by_shell(["--vty_socket", str(directory), "--config_dir", str(directory)], file)


def _read_by_shell(options: list[str], file: Path) -> None:
    try:
        done = subprocess.run(
            ["vtysh", *options, "-f", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # in the order in which it is said
            encoding="utf-8",
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"cannot use `{file}`: FRR's shell (vtysh) is not installed",
            hint="sudo apt-get install --no-install-recommends frr",
            code="no-frr",
        ) from error
    # Its status alone does not tell: lines may be refused and the last one be fine.
    said = done.stdout
    hint = f"all of it: vtysh -C -f {file}"
    lines = said.splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if found := _REFUSAL.search(line):
            why = before.removeprefix("% ").strip() or "it does not say why"
            raise ConfigError(
                f"cannot read `{file}`: line {found[1]}: {found[2]} refuses `{found[3]}`: {why}",
                hint=hint,
            )
        if found := _COMPLAINT.search(line):
            raise ConfigError(
                f"cannot read `{file}`: line {found[1]}: {found[2].lower()}: `{found[3].strip()}`",
                hint=hint,
            )
    if done.returncode:
        words = said.strip().rpartition("\n")[2] or "FRR's shell refused it"
        raise ConfigError(f"cannot read `{file}`: {words}", hint=hint)
