"""What the cold commands print and where: data on stdout, talk on stderr, errors in one line.

Owns: the global options (`--json`, `-q`, `-v`, `--no-color`) on every command, the JSON document,
tables, colour on terminals only (NO_COLOR, https://no-color.org), escaping of hostile text, and
turning a LoopboxError into message, hint and exit status.
Must never: ask the keeper anything; print to stdout besides the one document.

Example::

    out = current_output()
    out.emit({"boxes": []}, lambda: out.table([...], header=(...)))
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from loopbox.cli.hot import printable, tell
from loopbox.errors import LoopboxError

__all__ = [
    "Output",
    "add_global_options",
    "columns",
    "complain",
    "counted",
    "current_output",
    "printable",
    "table",
    "wrapped",
]

_META = "loopbox.output"


@dataclass(slots=True)
class Output:
    """The manner of one command's output."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False

    @property
    def color(self) -> bool:
        """Whether stdout takes colour."""
        return not self.no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()

    def emit(self, document: Any, render: Callable[[], str]) -> None:
        """Print the document with `--json`, else what `render` gives."""
        if self.json:
            click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None))
            return
        text = render()
        if text:
            click.echo(text, color=self.color)

    def say(self, text: str) -> None:
        """Tell the person something on stderr, unless quiet."""
        if not self.quiet:
            click.echo(f"loopbox: {printable(text)}", err=True)

    def hint(self, text: str) -> None:
        """Name the next command on stderr, unless quiet."""
        if not self.quiet:
            click.echo(f"hint: {printable(text)}", err=True)

    def style(self, text: str, **how: Any) -> str:
        """Colour that never carries meaning alone."""
        return click.style(text, **how) if self.color else text


def columns() -> int | None:
    """How wide the terminal on stdout is; None for a pipe, whose lines are never cut or broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, *, indent: str) -> str:
    """Prose below an entry, broken at the terminal's width with `indent` before each line."""
    width = columns()
    if width is None:
        return f"{indent}{printable(text)}"
    return textwrap.fill(
        printable(text),
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(rows: Iterable[Sequence[str]], *, header: Sequence[str]) -> str:
    """Left-aligned columns with a header, two blanks apart; cells are made printable."""
    cells = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def counted(number: int, thing: str) -> str:
    """`1 box`, `2 boxes`."""
    ending = "" if number == 1 else "es" if thing.endswith(("s", "x")) else "s"
    return f"{number} {thing}{ending}"


def current_output() -> Output:
    """The output of the running command."""
    found = click.get_current_context().find_root().meta.setdefault(_META, Output())
    assert isinstance(found, Output)
    return found


def _set(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(context.find_root().meta.setdefault(_META, Output()), name, True)

    return callback


_GLOBAL = (
    ("json", ("--json",), "Print one JSON document on stdout."),
    ("quiet", ("-q", "--quiet"), "Say nothing on stderr but errors."),
    ("verbose", ("-v", "--verbose"), "Say more."),
    ("no_color", ("--no-color",), "No colour, as NO_COLOR does."),
)


def add_global_options(command: click.Command) -> None:
    """Give a command, and all below it, the global options it does not define itself."""
    taken = {option for parameter in command.params for option in parameter.opts}
    for name, options, text in _GLOBAL:
        free = [option for option in options if option not in taken]
        if not free:
            continue
        command.params.append(
            click.Option(
                free,
                is_flag=True,
                expose_value=False,
                is_eager=True,
                help=text,
                callback=_set(name),
            )
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_global_options(below)


def complain(error: LoopboxError, *, as_json: bool) -> int:
    """Print a user's error and give its exit status."""
    tell(error, as_json=as_json)
    return error.exit_status
