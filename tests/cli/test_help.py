"""Help, version, completion, colour: what every command has, whatever it does."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import COMMAND, Sandbox, until
from loopbox import __version__
from loopbox.cli.app import COMMANDS

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A user who has started nothing; shared by what starts nothing either."""
    made = Sandbox(tmp_path_factory.mktemp("idle"))
    yield made
    assert made.keeper_pid() is None


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(idle: Sandbox, command: str) -> None:
    """On stdout, with a summary, what may be typed, an example, and the options all have."""
    done = idle(command, "--help")

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"Usage: loopbox {command}")
    assert re.search(rf"^  (sudo )?loopbox {command}\b|\$\(loopbox {command}\b", done.stdout, re.M)
    if command != "curl":
        assert all(flag in done.stdout for flag in ("--json", "--quiet", "--no-color", "--help"))


@pytest.mark.parametrize("words", [("run",), ("ls",), ("keeper", "status"), ("addr", "plan")])
def test_help_command_says_the_same(idle: Sandbox, words: tuple[str, ...]) -> None:
    """`loopbox help COMMAND` and `loopbox COMMAND --help` are one text; `-h` too."""
    asked = idle.ok("help", *words)

    assert asked == idle.ok(*words, "--help") == idle.ok(*words, "-h")


def test_top_level_help_lists_every_command(idle: Sandbox) -> None:
    """`loopbox --help` and `loopbox help`, in sections, one line each."""
    said = idle.ok("--help")

    assert set(COMMANDS) <= set(re.findall(r"^  ([a-z]+)  +\S", said, re.M))
    assert said == idle.ok("help")


def test_version(idle: Sandbox) -> None:
    """`loopbox --version` is one line for programs."""
    assert f"loopbox {__version__}\n" == idle.ok("--version") == idle.ok("-V")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("rum -- true", "did you mean: loopbox run"),
        ("ps", "did you mean: loopbox ls"),
        ("logs", "did you mean: loopbox up"),
        ("stop shop", "did you mean: loopbox down"),
        ("sh -c true", "to run a program in a box: loopbox run -- sh"),
        ("run --nam shop -- true", "did you mean: --name"),
        ("shell shop make", "to run a command in a box: loopbox exec shop -- make"),
        ("exec --zzz shop -- true", "see: loopbox exec --help"),
    ],
)
def test_what_was_meant(idle: Sandbox, words: str, hint: str) -> None:
    """By the names other tools use, by a program that is there, by what is nearly the same."""
    done = idle(*words.split())

    assert (2, f"hint: {hint}") == (done.returncode, done.stderr.splitlines()[-1])


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(idle: Sandbox, shell: str) -> None:
    """Every shell gets a script, and a shell that is here can read it."""
    script = idle.ok("completion", shell)

    assert "_LOOPBOX_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True,
                                 check=False)  # fmt: skip
        assert (0, "") == (checked.returncode, checked.stderr)


def complete(sandbox: Sandbox, *words: str) -> set[str]:
    """What bash is offered for the last of these words, by the script it sources."""
    script = sandbox.ok("completion", "bash")
    asked = script + '\nCOMP_WORDS=(loopbox "$@"); COMP_CWORD=$#; _loopbox_completion loopbox\n'
    asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", asked, "bash", *words],
        env={**sandbox.env, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_completion_offers_commands_options_and_boxes(sandbox: Sandbox) -> None:
    """Names of boxes come from the keeper, and none is started to find that there are none."""
    assert {"shell", "show"} == complete(sandbox, "sh")
    assert complete(sandbox, "exec", "") == set()
    assert sandbox.keeper_pid() is None
    sandbox.ok("run", "--name", "fix-ui.shop", "--keep", "--", "true")

    assert {"fix-ui.shop"} == complete(sandbox, "exec", "fi")
    assert {"fix-ui.shop"} == complete(sandbox, "down", "")
    assert {"--forward"} == complete(sandbox, "run", "--fo")
    assert {"bash", "zsh", "fish"} == complete(sandbox, "completion", "")


# --- colour --------------------------------------------------------------------------------------


def on_terminal(sandbox: Sandbox, *arguments: str, **env: str) -> str:
    """What a terminal gets."""
    here, there = pty.openpty()
    try:
        plain = {key: value for key, value in sandbox.env.items() if key != "NO_COLOR"}
        subprocess.run(
            [str(COMMAND), *arguments],
            cwd=sandbox.project,
            env={**plain, "TERM": "xterm", **env},
            stdin=there,
            stdout=there,
            stderr=there,
            check=True,
        )
        os.set_blocking(here, False)
        return until(lambda: os.read(here, 1 << 20)).decode()
    finally:
        os.close(here)
        os.close(there)


def test_colour_is_for_terminals_alone(sandbox: Sandbox) -> None:
    """A terminal gets it unless NO_COLOR or --no-color says no; a pipe never does."""
    sandbox.ok("run", "--keep", "--", "true")
    plain = {key: value for key, value in sandbox.env.items() if key != "NO_COLOR"}
    piped = subprocess.run([str(COMMAND), "show"], cwd=sandbox.project, env=plain, text=True,
                           capture_output=True, check=True)  # fmt: skip

    assert "\x1b[" in on_terminal(sandbox, "show")
    assert "\x1b[" not in on_terminal(sandbox, "show", NO_COLOR="1")
    assert "\x1b[" not in on_terminal(sandbox, "show", "--no-color")
    assert "\x1b[" not in on_terminal(sandbox, "--no-color", "show")
    assert "\x1b[" not in piped.stdout + piped.stderr


def test_json_on_a_terminal_is_json(sandbox: Sandbox) -> None:
    """No colour, no words: only laid out for reading."""
    said = on_terminal(sandbox, "ls", "--json")

    assert said.replace("\r\n", "\n") == '{\n  "boxes": []\n}\n'


# --- pipes and terminals that are not there ------------------------------------------------------


def test_a_reader_that_leaves_is_no_error(sandbox: Sandbox) -> None:
    """`loopbox --help | head -1` ends without a word about the broken pipe."""
    done = subprocess.run(
        ["sh", "-c", f'"{COMMAND}" --help | head -1; exec 3>&1; "{COMMAND}" ls --json | true'],
        env=sandbox.env,
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("Usage: loopbox [OPTIONS] [COMMAND] [ARGS]...\n", "")


def test_without_stdin_and_stderr(sandbox: Sandbox) -> None:
    """A service manager may close them."""
    done = subprocess.run(
        ["sh", "-c", f'"{COMMAND}" run -- echo fine <&- 2>&-; "{COMMAND}" ls --json <&- 2>&-'],
        cwd=sandbox.project,
        env=sandbox.env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("fine\n{")


def test_from_a_directory_that_is_gone(sandbox: Sandbox, tmp_path: Path) -> None:
    """Commands that need no directory work; none ends with a traceback."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; "$0" ls --json; "$0" show; "$0" run -- true; "$0" up'
    said = subprocess.run(
        ["sh", "-c", script, str(COMMAND)],
        cwd=gone,
        env=sandbox.env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert '"boxes"' in said.stdout
    assert "Traceback" not in said.stderr
    assert "fault of loopbox" not in said.stderr


def test_words_of_click_stay_on_one_line(idle: Sandbox) -> None:
    """Its lists of choices come with line ends and tabs, which would be escaped."""
    said = idle("completion").stderr.splitlines()

    assert "hint: see: loopbox completion --help" == said[1]
    assert said[0].endswith("'{bash|zsh|fish}'. Choose from: bash, zsh, fish")


def test_directories_are_shown_from_home(sandbox: Sandbox) -> None:
    """As a prompt has them; JSON has the whole path."""
    sandbox.ok("run", "--keep", "--", "true")

    assert "  ~/shop\n" in sandbox.ok("ls")
    assert str(sandbox.project) == sandbox.json("ls")["boxes"][0]["directory"]


@pytest.mark.parametrize("words", [("--json", "ls"), ("--help",), ("classify", "127.0.0.1")])
def test_full_disk_behind_stdout_is_told(idle: Sandbox, words: tuple[str, ...]) -> None:
    """It is the disk's fault and not ours."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, *words], env={**idle.env, "PYTHONUNBUFFERED": ""}, cwd=idle.project,
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert (1, "loopbox: cannot write the output: No space left on device\n") == (
        done.returncode,
        done.stderr,
    )
