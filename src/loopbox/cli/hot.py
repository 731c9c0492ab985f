"""`run`, `exec` and `shell`: from the command line to the user's program in the time of a bare
interpreter.

Owns: reading these three commands' options by hand (argparse alone would double the start-up),
entering the box, and becoming the program: terminal, signals, job control and exit code are then
the program's own.
Must never: import more than `os`, `_signal` and the client before the exec; stay behind as a
parent.

Example::

    try_hot_path(["run", "--name", "shop", "--", "npm", "run", "dev"])
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports enum, 2 ms
import os
import sys

from loopbox import client
from loopbox.errors import ConfigError, LoopboxError, UsageError, linux_only

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes 3 ms to import, a quarter of a bare interpreter's start
    from typing import NoReturn, TextIO

_COMMANDS = ("run", "exec", "shell")
_GLOBAL_FLAGS = ("--json", "-q", "--quiet", "-v", "--verbose", "--no-color")
_VALUED = ("--name", "--branch", "--forward", "--egress")
_FLAGS = ("--keep",)
_HELP = ("-h", "--help")
_FAILED = 125
_CANNOT_EXECUTE = 126
_NOT_FOUND = 127
_ENOEXEC = 8


class _Command:
    """One of the three commands, as read."""

    def __init__(self) -> None:
        self.verb = ""
        self.json = False
        self.quiet = False
        self.keep = False
        self.values: dict[str, str] = {}
        self.words: list[str] = []


def try_hot_path(arguments: list[str]) -> int | None:
    """Run the command if it is one of the three and no help is wanted; None otherwise.

    Returns an exit status only when the program could not be started.
    """
    command = _Command()
    if "_LOOPBOX_COMPLETE" in os.environ:
        return None
    try:
        if not _read(arguments, command):
            return None
        # From here Ctrl-C ends this process the way it ends any other: there is nothing to undo
        # here, and the keeper undoes what a client that went away had begun.
        # Ignored it stays (a shell's background job, nohup): the program's own, as without us.
        if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        if os.environ.get("LOOPBOX") == "0":
            _become(_plain_words(command), command)
        if sys.platform != "linux":
            raise linux_only(f"run `loopbox {command.verb}`")
        _go(command)
    except LoopboxError as error:
        tell(error, as_json=command.json)
        return error.exit_status if isinstance(error, (UsageError, ConfigError)) else _FAILED


def _read(arguments: list[str], command: _Command) -> bool:
    """Fill `command`; False when another part of the program must read this line."""
    at = 0
    while at < len(arguments) and arguments[at] in _GLOBAL_FLAGS:
        _take_flag(arguments[at], command)
        at += 1
    if at == len(arguments) or arguments[at] not in _COMMANDS:
        return False
    command.verb = arguments[at]
    at += 1
    while at < len(arguments):
        word = arguments[at]
        at += 1
        if word == "--":
            command.words += arguments[at:]
            break
        if word in _HELP:
            return False
        if word in _GLOBAL_FLAGS or (word in _FLAGS and command.verb == "run"):
            _take_flag(word, command)
        elif word.startswith("-") and word != "-":
            at = _take_value(word, arguments, at, command)
        elif command.verb == "run" or "box" in command.values:
            command.words += arguments[at - 1 :]
            break
        else:
            command.values["box"] = word
    return True


def _take_flag(word: str, command: _Command) -> None:
    if word == "--json":
        command.json = True
    elif word in ("-q", "--quiet"):
        command.quiet = True
    elif word == "--keep":
        command.keep = True


def _take_value(word: str, arguments: list[str], at: int, command: _Command) -> int:
    option, equals, value = word.partition("=")
    if option not in _VALUED or command.verb != "run":
        raise UsageError(
            f"cannot read option `{option}` of `loopbox {command.verb}`: there is no such option",
            hint=_near_option(option, command.verb) or f"see: loopbox {command.verb} --help",
        )
    if not equals:
        if at == len(arguments):
            raise UsageError(f"cannot read option `{option}`: it needs a value")
        value = arguments[at]
        at += 1
    if option == "--forward" and "--forward" in command.values:
        value = f"{command.values[option]},{value}"
    command.values[option] = value
    return at


def _near_option(option: str, verb: str) -> str | None:
    import difflib  # noqa: PLC0415  on the way to an error only

    own = (*_VALUED, *_FLAGS) if verb == "run" else ()
    near = difflib.get_close_matches(option, (*own, *_GLOBAL_FLAGS, *_HELP), n=1)
    return f"did you mean: {near[0]}" if near else None


def _plain_words(command: _Command) -> list[str]:
    if command.verb == "shell":
        if command.words:
            box = command.values.get("box", "NAME")
            raise UsageError(
                f"cannot open a shell with `{command.words[0]}`: it takes a box's name alone",
                hint=f"to run a command in a box: loopbox exec {box} -- {command.words[0]}",
            )
        return [_shell()]
    if not command.words:
        raise _no_command(command)
    return command.words


def _no_command(command: _Command) -> UsageError:
    example = {
        "run": "loopbox run -- npm run dev",
        "exec": "loopbox exec shop -- psql -h localhost",
    }[command.verb]
    return UsageError(
        f"cannot {command.verb} nothing: no command is given", hint=f"for example: {example}"
    )


def _shell() -> str:
    shell = os.environ.get("SHELL", "")
    return shell if shell.startswith("/") and os.access(shell, os.X_OK) else "/bin/sh"


def enter_and_become(name: str, words: list[str]) -> NoReturn:
    """Enter a box that is up and become a program there. Raises BoxError when it is not up."""
    command = _Command()
    with client.connect() as keeper:
        fields, fds = keeper.request({"verb": "enter", "name": name})
        client.enter(fields, fds)
    _take_environment(fields, command)
    _become(words, command)


def _go(command: _Command) -> NoReturn:
    words = _plain_words(command)
    with client.connect() as keeper:
        fields, fds = keeper.request(_request(command))
        client.enter(fields, fds)
    _take_environment(fields, command)
    _become(words, command)


def _take_environment(fields: dict[str, str], command: _Command) -> None:
    for problem in filter(None, fields.get("problems", "").split("\n")):
        _say(f"warning: {problem}", command)
    if fields.get("made") == "1" and sys.stderr is not None and sys.stderr.isatty():
        _say(f"box {fields['name']} is at {fields['address']}", command)
    for key, value in fields.items():
        if key.startswith("env."):
            os.environ[key[4:]] = value
        elif key.startswith("default-env."):
            os.environ.setdefault(key[12:], value)


def _request(command: _Command) -> dict[str, str]:
    try:
        here = os.getcwd()
    except OSError:
        here = "/"
    fields = {"verb": "enter", "cwd": here}
    if command.verb == "run":
        fields["create"] = "1"
        fields["name"] = command.values.get("--name", "")
        for option in ("branch", "forward", "egress"):
            if f"--{option}" in command.values:
                fields[option] = command.values[f"--{option}"]
        if command.keep:
            fields["keep"] = "1"
        return fields
    if command.verb == "shell":
        fields["create"] = "1"
    elif "box" not in command.values:
        raise UsageError(
            "cannot exec: no box is named", hint="for example: loopbox exec shop -- env"
        )
    fields["name"] = command.values.get("box", "")
    return fields


def _become(words: list[str], command: _Command) -> NoReturn:
    """Replace this process by the program; ends it with 127 or 126 when that cannot be."""
    # Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored across exec.
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    program = words[0]
    status, cause = _NOT_FOUND, "no such command"
    if "/" in program:
        candidates = [program]
    else:
        path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        candidates = [f"{folder or '.'}/{program}" for folder in path.split(":")]
    for candidate in candidates:
        try:
            os.execve(candidate, words, os.environ)
        except (FileNotFoundError, NotADirectoryError):
            # A script whose interpreter is missing is "not found" too: say which it was.
            if os.path.exists(candidate):
                status, cause = _NOT_FOUND, "its interpreter (first line) is missing"
        except OSError as error:
            if error.errno == _ENOEXEC:
                # A script without a first line goes to the shell, as execvp(3) has it.
                os.execve("/bin/sh", ["/bin/sh", candidate, *words[1:]], os.environ)
            # A folder of PATH that this user may not search holds nothing for this user.
            if status == _NOT_FOUND and os.path.exists(candidate):
                status, cause = _CANNOT_EXECUTE, error.strerror or "cannot execute"
                if os.path.isdir(candidate):
                    cause = "it is a directory"
        except ValueError:
            cause = "an argument holds a NUL character" if program else "its name is empty"
    code = "command-not-found" if status == _NOT_FOUND else "not-executable"
    tell(LoopboxError(f"cannot run `{program}`: {cause}", code=code), as_json=command.json)
    os._exit(status)


def _say(text: str, command: _Command) -> None:
    if not command.quiet:
        _write(sys.stderr, f"loopbox: {printable(text)}\n")


def tell(error: LoopboxError, *, as_json: bool) -> None:
    """Say an error: its document on stdout, or its words and its hint on stderr."""
    if as_json:
        import json  # noqa: PLC0415

        document = {"code": error.code, "message": error.message, "hint": error.hint}
        _write(sys.stdout, json.dumps({"error": document}) + "\n")
        return
    hint = f"hint: {printable(error.hint)}\n" if error.hint else ""
    _write(sys.stderr, f"loopbox: {printable(error.message)}\n{hint}")


def _write(stream: TextIO | None, text: str) -> None:
    """To a stream that may be closed, full or read by nobody: then there is no one to tell."""
    try:
        if stream is not None:
            stream.write(text)
            stream.flush()
    except OSError:
        pass


def printable(text: str) -> str:
    """Text from elsewhere, with everything that could move a terminal's cursor made visible."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
