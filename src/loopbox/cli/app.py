"""The command table: every command but the hot path's, its help, and the one place errors end.

Owns: which command lives in which module (loaded when first used: `ls` must not wait for what
`audit` imports), global options before the command, exit codes.
Must never: hold a command's logic.

Example::

    main(["ls", "--json"])
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys

import click

from loopbox import __version__
from loopbox.cli.output import add_global_options, complain
from loopbox.errors import HostError, LoopboxError, UsageError, linux_only

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module, attribute, section)
    "run": ("loopbox.cli.hot_help", "run", "Boxes"),
    "shell": ("loopbox.cli.hot_help", "shell", "Boxes"),
    "exec": ("loopbox.cli.hot_help", "exec_", "Boxes"),
    "ls": ("loopbox.cli.box_commands", "ls", "Boxes"),
    "show": ("loopbox.cli.box_commands", "show", "Boxes"),
    "url": ("loopbox.cli.box_commands", "url", "Boxes"),
    "address": ("loopbox.cli.box_commands", "address", "Boxes"),
    "wait": ("loopbox.cli.box_commands", "wait", "Boxes"),
    "up": ("loopbox.cli.up", "up", "Boxes"),
    "down": ("loopbox.cli.box_commands", "down", "Boxes"),
    "prune": ("loopbox.cli.box_commands", "prune", "Boxes"),
    "curl": ("loopbox.cli.inside", "curl", "Boxes"),
    "browser": ("loopbox.cli.inside", "browser", "Boxes"),
    "classify": ("loopbox.cli.address_commands", "classify", "Addresses"),
    "addr": ("loopbox.cli.address_commands", "addr", "Addresses"),
    "guard": ("loopbox.cli.address_commands", "guard", "Addresses"),
    "audit": ("loopbox.cli.audit_commands", "audit", "Checks"),
    "doctor": ("loopbox.cli.doctor_commands", "doctor", "Checks"),
    "link": ("loopbox.cli.lab_runner_commands", "link", "Labs"),
    "router": ("loopbox.cli.lab_runner_commands", "router", "Labs"),
    "predict": ("loopbox.cli.lab_commands", "predict", "Labs"),
    "lab": ("loopbox.cli.lab_commands", "lab", "Labs"),
    "export": ("loopbox.cli.lab_commands", "export", "Labs"),
    "import": ("loopbox.cli.lab_commands", "import_", "Labs"),
    "keeper": ("loopbox.cli.keeper_commands", "keeper", "loopbox itself"),
    "uninstall": ("loopbox.cli.keeper_commands", "uninstall", "loopbox itself"),
    "completion": ("loopbox.cli.keeper_commands", "completion", "loopbox itself"),
    "help": ("loopbox.cli.keeper_commands", "help_", "loopbox itself"),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a write to a full or broken stdout ends with."""
_MEANT = {
    "attach": "shell",
    "boxes": "ls",
    "delete": "down",
    "enter": "shell",
    "info": "show",
    "kill": "down",
    "list": "ls",
    "logs": "up",
    "ps": "ls",
    "remove": "down",
    "rm": "down",
    "ssh": "shell",
    "start": "up",
    "status": "show",
    "stop": "down",
    "urls": "url",
}
"""What other tools call it."""
_EVERYWHERE = frozenset({"classify", "addr", "audit", "doctor", "completion", "help"})
"""What works on every system; the rest needs Linux, and other systems are told so."""

_GLOBAL_FLAGS = ("--json", "-q", "--quiet", "-v", "--verbose", "--no-color")


class _Commands(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return [name for name in COMMANDS if _works_here(name)]

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _section = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        if not getattr(command, "has_global_options", False):
            if name != "curl":  # all it is given belongs to curl: -v, -q, --json
                add_global_options(command)
            command.has_global_options = True  # type: ignore[attr-defined]
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry[2] for entry in COMMANDS.values()):
            rows = []
            for name in self.list_commands(context):
                is_here = COMMANDS[name][2] == section
                if is_here and (command := self.get_command(context, name)):
                    rows.append((name, command.get_short_help_str(limit=120)))
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)
        if sys.platform != "linux":
            formatter.write_paragraph()
            formatter.write_text("Boxes, labs and the guard need Linux; these commands do not.")

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in COMMANDS:
            raise UsageError(
                f"cannot run `{arguments[0]}`: there is no such command",
                hint=_hint_for(arguments[0]),
            )
        if arguments and not _works_here(arguments[0]) and arguments[0] != "guard":
            raise linux_only(f"run `loopbox {arguments[0]}`")
        return super().resolve_command(context, arguments)


def _hint_for(word: str) -> str:
    """What was meant by a command that does not exist."""
    if not word.strip():
        return "see: loopbox --help"
    import difflib  # noqa: PLC0415
    import shutil  # noqa: PLC0415

    if word in _MEANT:
        return f"did you mean: loopbox {_MEANT[word]}"
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    if near and shutil.which(word) is None:
        return f"did you mean: loopbox {near[0]}"
    return f"to run a program in a box: loopbox run -- {word}"


def _works_here(name: str) -> bool:
    return sys.platform == "linux" or name in _EVERYWHERE


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Without a command: what this directory's box is doing. "
    "More on one: loopbox help COMMAND",
)
@click.version_option(__version__, "-V", "--version", message="loopbox %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """A loopback interface of its own for every project.

    \b
    loopbox run -- npm run dev      on a loopback only this project has
    loopbox ls                      which boxes are up, and what listens in them
    loopbox curl shop localhost:3000   from inside a box
    """
    if context.invoked_subcommand is None:
        if sys.platform != "linux":
            raise linux_only("show this directory's box")
        from loopbox.cli.box_commands import show_here  # noqa: PLC0415

        show_here()


def main(arguments: list[str]) -> int:
    """Run one command line. Returns the exit status (CONTRACT: 0, 1, 2)."""
    count = next((at for at, word in enumerate(arguments) if word not in _GLOBAL_FLAGS), 0)
    as_json = "--json" in arguments[:count]
    arguments = _flags_behind(arguments)
    if arguments[:1] != ["curl"]:  # whose flags are its own
        as_json = as_json or "--json" in _own_part(arguments)
    try:
        outcome = cli.main(arguments, prog_name="loopbox", standalone_mode=False)
    except LoopboxError as error:
        return complain(error, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "loopbox"
        return complain(
            UsageError(
                f"cannot read the command line: {_lower_first(error.format_message())}",
                hint=f"see: {where} --help",
            ),
            as_json=as_json,
        )
    except click.ClickException as error:
        return complain(LoopboxError(_lower_first(error.format_message())), as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (head, less) has gone: that is its right, and no error of ours.
        _let_go_of_stdout()
        return 0
    except Exception as error:
        if os.environ.get("LOOPBOX_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
            _let_go_of_stdout()
            return complain(
                HostError(f"cannot write the output: {error.strerror}", code="output"),
                as_json=False,  # that would go the same way
            )
        return complain(
            LoopboxError(
                f"cannot finish: {type(error).__name__}: {error}",
                hint="this is a fault of loopbox; LOOPBOX_DEBUG=1 shows where",
                code="fault",
            ),
            as_json=as_json,
        )
    return outcome if isinstance(outcome, int) else 0


def _let_go_of_stdout() -> None:
    """What is still buffered goes nowhere, or the interpreter would fail once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _own_part(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _flags_behind(arguments: list[str]) -> list[str]:
    """Global flags written before the command, moved behind it: every command has them."""
    count = 0
    while count < len(arguments) and arguments[count] in _GLOBAL_FLAGS:
        count += 1
    flags, rest = arguments[:count], arguments[count:]
    if not flags or not rest or rest[0] not in COMMANDS:
        return arguments
    if rest[0] == "curl":
        return rest  # whatever follows is curl's own
    own = _own_part(rest)
    return [*own, *flags, *rest[len(own) :]]


def _lower_first(text: str) -> str:
    """click's words as ours: on one line, without capital and full stop."""
    text = " ".join(text.split()).rstrip(".")
    return text[:1].lower() + text[1:]


# Only the group itself: it has no commands yet, and each gets its options when it is loaded.
add_global_options(cli)
