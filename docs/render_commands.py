"""Write docs/commands.md from the command table itself: `python docs/render_commands.py [--check]`.

Owns: the order and form of that page. Must never: describe a command; its own help does.
With `--check` nothing is written and the exit status is 1 when the page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from loopbox.cli.app import COMMANDS, cli

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
HEAD = """# Commands

Written by `make docs` from the commands' own help; do not edit. Every command takes `--json`,
`--quiet`, `--verbose` and `--no-color`, before or after its name.
"""
GLOBAL_OPTIONS = {"json", "quiet", "verbose", "no_color"}


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    section = ""
    context = click.Context(cli, info_name="loopbox", max_content_width=WIDTH, terminal_width=WIDTH)
    for name, (_module, _attribute, its_section) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None, name
        if its_section != section:
            section = its_section
            parts.append(f"## {section}\n")
        parts += _entries(command, name, parent=context)
    return "\n".join(parts)


def _entries(command: click.Command, name: str, *, parent: click.Context) -> Iterator[str]:
    """The help of a command, then of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    # The global options are said once, at the top of the page.
    kept = [option for option in command.params if option.name not in GLOBAL_OPTIONS]
    removed, command.params = command.params, kept
    try:
        text = command.get_help(context)
    finally:
        command.params = removed
    lines = [line.rstrip() for line in text.splitlines()]
    yield f"### {context.command_path}\n\n```text\n" + "\n".join(lines) + "\n```\n"
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None, sub
            yield from _entries(found, sub, parent=context)


def main() -> int:
    """Returns the exit status."""
    page = render()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        sys.stderr.write("docs/commands.md is out of date: run `make docs`\n")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
