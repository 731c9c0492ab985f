"""The commands about loopbox itself: keeper, uninstall, completion, help.

Must never: remove anything but loopbox's own.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

import click
from click.shell_completion import get_completion_class

from loopbox.cli import asking
from loopbox.cli.output import counted, current_output, table
from loopbox.errors import KeeperError, UsageError
from loopbox.places import RUNTIME_ENTRIES, STATE_ENTRIES, runtime_path, state_path


@click.group()
def keeper() -> None:
    """Look at or end the keeper, the one background process that holds your boxes.

    \b
    loopbox keeper status
    """


@keeper.command()
def status() -> None:
    """Say whether the keeper runs, and what it carries.

    \b
    loopbox keeper status --json
    """
    out = current_output()
    try:
        found = asking.ask_json("status")
    except KeeperError as error:
        if error.code != "no-keeper":
            raise
        found = {"running": False, "runtime": runtime_path(), "log": f"{state_path()}/keeper.log"}
        out.emit(found, lambda: "no keeper is running; the first command that needs one starts it")
        return
    found["runtime"] = runtime_path()
    found["log"] = f"{state_path()}/keeper.log"

    def render() -> str:
        relay, doors = found["relay"], found["shared_door"]
        for problem in doors["problems"].values():
            out.say(f"not served by name: {problem}")
        return table(
            [
                ("pid", str(found["pid"])),
                ("version", found["version"]),
                ("boxes", str(found["boxes"])),
                ("connections open", str(relay["open"])),
                ("carried so far", str(relay["accepted"])),
                ("refused (other users)", str(relay["refused"] + doors["foreign"])),
                ("runtime", found["runtime"]),
                ("log", found["log"]),
            ],
            header=("KEEPER", "running"),
        )

    out.emit(found, render)


@keeper.command()
def stop() -> None:
    """End the keeper. What runs in boxes goes on; the next command finds the boxes again.

    \b
    loopbox keeper stop
    """
    out = current_output()
    try:
        found = asking.ask_json("stop")
    except KeeperError as error:
        if error.code != "no-keeper":
            raise
        found = {"stopped": False, "boxes": []}
    else:
        _wait_until_gone()
    out.emit(found, lambda: "")
    if not found["stopped"]:
        out.say("no keeper was running")
    elif found["boxes"]:
        count = len(found["boxes"])
        out.say(
            f"the keeper has ended; {counted(count, 'box')} "
            f"{'goes' if count == 1 else 'go'} on without it"
        )


def _wait_until_gone() -> None:
    """Wait for the keeper's lock (flock(2)), which it holds for life."""
    from loopbox.places import open_runtime_directory  # noqa: PLC0415
    from loopbox.starting import only_one  # noqa: PLC0415

    try:
        directory = open_runtime_directory(create=False)
    except FileNotFoundError:
        return
    try:
        with only_one(directory, "keeper.lock"):
            pass
    finally:
        os.close(directory)


@click.command()
def uninstall() -> None:
    """Remove every trace: end all boxes and the keeper, delete runtime and state files.

    The package itself goes by the tool that installed it (pipx uninstall loopbox).

    \b
    loopbox uninstall
    """
    out = current_output()
    boxes: list[str] = []
    if os.path.isdir(f"{runtime_path()}/labs"):
        from loopbox.cli.lab_runner_commands import take_down  # noqa: PLC0415  labs only

        boxes, _rest = take_down((), everything=True, grace=None)
    try:
        boxes += asking.ask_json("down", all="1")["down"]
        asking.ask("stop")
        _wait_until_gone()
    except KeeperError as error:
        if error.code != "no-keeper":
            raise
    removed, left = [], []
    for path, entries in ((runtime_path(), RUNTIME_ENTRIES), (state_path(), STATE_ENTRIES)):
        gone, foreign = _remove_own(path, entries)
        removed += [path] if gone else []
        left += foreign
    out.emit({"boxes": boxes, "removed": removed, "left": left}, lambda: "")
    files = ", ".join(removed) or "no files: there were none"
    out.say(f"ended {counted(len(boxes), 'box')}; removed {files}")
    for path in left:
        out.say(f"left `{path}`: loopbox did not make it")


def _remove_own(path: str, entries: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Remove what is loopbox's in its directory, and that when nothing else is in it.

    XDG variables may lead to a directory that holds other things. Gives whether it was one of
    ours, and what was left in it.
    """
    try:
        if os.path.islink(path) or os.stat(path).st_uid != os.geteuid():
            return False, []
        found = sorted(os.listdir(path))
    except OSError:
        return False, []
    left = []
    for name in found:
        own = name in entries or name.lstrip(".").startswith(tuple(f"{one}." for one in entries))
        whole = f"{path}/{name}"
        if not own:
            left.append(whole)
        elif os.path.isdir(whole) and not os.path.islink(whole):
            shutil.rmtree(whole, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(whole)
    with suppress(OSError):
        os.rmdir(path)
    return len(left) < len(found) or not found, left


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    loopbox completion bash > ~/.local/share/bash-completion/completions/loopbox
    loopbox completion zsh  > ~/.zfunc/_loopbox
    loopbox completion fish > ~/.config/fish/completions/loopbox.fish
    """
    from loopbox.cli.app import cli  # noqa: PLC0415

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "loopbox", "_LOOPBOX_COMPLETE").source())


@click.command(name="help")
@click.argument("words", nargs=-1, metavar="[COMMAND]")
def help_(words: tuple[str, ...]) -> None:
    """Show the help of a command.

    \b
    loopbox help run
    """
    from loopbox.cli.app import cli  # noqa: PLC0415

    context = click.Context(cli, info_name="loopbox", **cli.context_settings)
    command: click.Command = cli
    for word in words:
        found = command.get_command(context, word) if isinstance(command, click.Group) else None
        if found is None:
            raise UsageError(
                f"cannot help with `{' '.join(words)}`: there is no such command",
                hint="see: loopbox --help",
            )
        context = click.Context(found, info_name=word, parent=context)
        command = found
    click.echo(command.get_help(context))
