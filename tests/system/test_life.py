"""The life of boxes: made and left in any number, at any moment, without a trace."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    COMMAND,
    Sandbox,
    descriptors_of,
    ignored_signals,
    inherited_ignored_signals,
    traces,
    until,
)

pytestmark = pytest.mark.system

_SEQUENTIAL = 1000
_PARALLEL = 200
_AT_ONCE = 25


def in_boxes(pid: int) -> int:
    """The network namespace of a process, 0 when it has gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


class Leftovers:
    """What must be the same before and after, the keeper's own descriptors and files too."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        sandbox.ok("run", "--", "true")
        self._settle()
        self._before = self._look()

    def _settle(self) -> None:
        until(lambda: self._sandbox.box_names() == [], what="the boxes leaving")

    def _look(self) -> dict[str, Any]:
        keeper = self._sandbox.keeper_pid()
        assert keeper is not None
        kinds: dict[str, int] = {}
        for entry in Path(f"/proc/{keeper}/fd").iterdir():
            try:
                kind = os.readlink(entry).partition(":")[0]
            except FileNotFoundError:
                continue
            kinds[kind] = kinds.get(kind, 0) + 1
        runtime = self._sandbox.runtime / "loopbox"
        return {
            # Others use the machine, too: of the namespaces, those of our own processes count.
            **{key: value for key, value in traces().items() if "namespaces" not in key},
            "processes": [pid for pid in self._own() if pid != keeper],
            "keeper": keeper,
            "descriptors": kinds,
            "files": sorted(str(path) for path in runtime.rglob("*")),
            "mounts of the keeper": len(Path(f"/proc/{keeper}/mounts").read_text().splitlines()),
        }

    def _own(self) -> list[int]:
        mark = f"XDG_RUNTIME_DIR={self._sandbox.runtime}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def check(self) -> None:
        """All is as it was; namespaces of ended processes take the kernel a moment."""
        self._settle()

        def same() -> bool:
            return self._look() == self._before

        try:
            until(same, deadline=15)
        except AssertionError:
            now = self._look()
            assert self._before == now


@pytest.fixture
def leftovers(sandbox: Sandbox) -> Leftovers:
    """The state before, to compare with."""
    return Leftovers(sandbox)


def all_ok(runs: Iterable[subprocess.Popen[str]]) -> None:
    """Every command ends with status 0 and has said nothing."""
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert (0, "", "") == (run.returncode, out, err)


# -- many ---------------------------------------------------------------------------------------


def test_many_sequential_runs_leave_nothing(sandbox: Sandbox, leftovers: Leftovers) -> None:
    """One after the other: none fails, each ends in a box, nothing is left."""
    script = f"""
host=$(readlink /proc/self/ns/net)
for n in $(seq {_SEQUENTIAL}); do
    box=$({COMMAND} run -- readlink /proc/self/ns/net) || exit 1
    [ "$box" != "$host" ] || exit 2
done
"""
    done = subprocess.run(
        ["sh", "-c", script], cwd=sandbox.project, env=sandbox.env,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert (0, "") == (done.returncode, done.stderr)
    leftovers.check()


@pytest.mark.parametrize("boxes", [_PARALLEL, 3], ids=["a box each", "three boxes"])
def test_many_parallel_runs_leave_nothing(
    sandbox: Sandbox, leftovers: Leftovers, boxes: int
) -> None:
    """All at once, into boxes of their own or into shared ones that come and go meanwhile."""
    running: list[subprocess.Popen[str]] = []
    for number in range(_PARALLEL):
        if len(running) == _AT_ONCE * 2:
            all_ok(running[:_AT_ONCE])
            del running[:_AT_ONCE]
        running.append(sandbox.start("run", "--name", f"p{number % boxes}", "--", "true"))
    all_ok(running)

    leftovers.check()


def test_box_emptied_while_another_enters(sandbox: Sandbox, leftovers: Leftovers) -> None:
    """Two commands in one box whose lives barely overlap: neither ever meets a box that goes."""
    script = (
        f"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do {COMMAND} run --name x -- true || exit 1; done"
    )
    loops = [
        subprocess.Popen(
            ["sh", "-c", script], cwd=sandbox.project, env=sandbox.env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    all_ok(loops)

    leftovers.check()


# -- daemons --------------------------------------------------------------------------------------


_RELAY_RACE = """
import os, sys
end = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT)
for generation in range(int(sys.argv[2])):
    if os.fork():
        os._exit(0)
    os.setsid()
os.closerange(0, 3)
open(sys.argv[3], "w").write(str(os.getpid()))
import signal
signal.pause()
"""


def test_chain_of_short_lived_daemons_keeps_the_box(sandbox: Sandbox) -> None:
    """Hundreds of generations, each forking and ending at once, are never taken for nobody."""
    last = sandbox.project / "last"
    for _turn in range(2):
        last.unlink(missing_ok=True)
        shell = 'readlink /proc/self/ns/net; exec "$@"'
        python = (sys.executable, "-c", _RELAY_RACE, "end", "300", str(last))
        box = sandbox.ok("run", "--", "sh", "-c", shell, "sh", *python).strip()
        pid = int(until(lambda: last.exists() and last.read_text(), what="the last generation"))

        assert sandbox.box_names() == ["shop"]
        assert box == sandbox.ok("exec", "shop", "--", "readlink", "/proc/self/ns/net").strip()
        os.kill(pid, signal.SIGTERM)
        until(lambda: sandbox.box_names() == [])


def test_process_that_hides_itself_keeps_the_box(sandbox: Sandbox) -> None:
    """A daemon that forbids to be inspected (as ssh-agent does) is still seen."""
    hide = (
        "import ctypes, os, signal\n"
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "if os.fork(): os._exit(0)\n"
        "os.closerange(0, 3)\n"
        "signal.pause()\n"
    )
    sandbox.ok("run", "--", sys.executable, "-c", hide)
    [box] = until(lambda: sandbox.json("ls")["boxes"])
    [process] = until(lambda: sandbox.json("show")["processes"])

    assert "shop" == box["name"]
    sandbox.ok("down")
    assert 0 == in_boxes(process["pid"])


def test_unmade_box_leaves_no_shared_door(sandbox: Sandbox, leftovers: Leftovers) -> None:
    """Also when its last listener closed long before its last process ended."""
    script = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 8000))\n"
        "print('up', flush=True); sys.stdin.readline(); server.close()\n"
        "print('closed', flush=True); sys.stdin.readline()\n"
    )
    program = subprocess.Popen(
        [COMMAND, "run", "--name", "s", "--", sys.executable, "-c", script],
        env=sandbox.env, cwd=sandbox.project, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None
    with program.stdin, program.stdout:
        assert program.stdout.readline() == "up\n"
        until(lambda: [one["at"] for one in sandbox.json("show", "s")["listeners"]])
        until(lambda: "127.0.0.1:8000" in str(traces()["listeners"]))
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "closed\n"
        until(lambda: "127.0.0.1:8000" not in str(traces()["listeners"]))
        program.stdin.write("\n")
    program.wait(20)

    leftovers.check()


# -- at any moment ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_at_random_moments_leave_nothing(
    sandbox: Sandbox, leftovers: Leftovers, number: signal.Signals
) -> None:
    """Ctrl-C, TERM or KILL while a run starts, runs or ends: no box, no process, no word."""
    moments = random.Random(20261123 + number)
    tick = socket.socketpair()
    with tick[0], tick[1]:
        for turn in range(17):
            run = sandbox.start("run", "--name", f"t{turn % 5}", "--", "sleep", "0.05")
            tick[0].settimeout(moments.uniform(0.001, 0.25))
            with pytest.raises(TimeoutError):
                tick[0].recv(1)
            run.send_signal(number)
            _out, err = run.communicate(timeout=30)
            # 130, 1: the interpreter was interrupted before a line of ours had run.
            is_early = "site" in err or "Fatal Python error: init" in err
            assert run.returncode in (0, -number, 130) or (run.returncode == 1 and is_early)
            assert "loopbox" not in err

    leftovers.check()


def test_signals_while_the_keeper_starts(sandbox: Sandbox) -> None:
    """A first command that is interrupted while it starts the keeper does not stop the next."""
    moments = random.Random(4711)
    tick = socket.socketpair()
    with tick[0], tick[1]:
        for _turn in range(6):
            run = sandbox.start("run", "--", "true", env={"LOOPBOX_IDLE": "0"})
            tick[0].settimeout(moments.uniform(0.02, 0.5))
            with pytest.raises(TimeoutError):
                tick[0].recv(1)
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=30)
            assert sandbox.ok("run", "--", "echo", "next", env={"LOOPBOX_IDLE": "0"}) == "next\n"


def test_ctrl_c_before_anything_is_said_is_quiet(sandbox: Sandbox) -> None:
    """An interrupt while a client waits for a busy keeper ends it as it would end any program."""
    sandbox.ok("run", "--", "true")
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    try:
        run = sandbox.start("run", "--", "true")
        until(lambda: "unix" in _waits_for(run.pid), what="the client asking")
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    finally:
        os.kill(keeper, signal.SIGCONT)

    assert (-signal.SIGINT, "", "") == (run.returncode, out, err)
    until(lambda: sandbox.box_names() == [], what="the box made for nobody leaving")


def _waits_for(pid: int) -> str:
    """`unix` once a process sleeps with a socket open: it waits for its reply."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        held = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return ""
    return "unix" if state == "S" and any(one.startswith("socket") for one in held) else ""


def test_ignored_interrupt_stays_ignored(sandbox: Sandbox) -> None:
    """A shell's background job ignores Ctrl-C; inside a box it does so as well."""
    script = "trap '' INT; " + f'"{COMMAND}" run -- sh -c "grep SigIgn /proc/self/status"'
    done = subprocess.run(
        ["sh", "-c", script], cwd=sandbox.project, env=sandbox.env,
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    expected = inherited_ignored_signals() | 1 << (signal.SIGINT - 1)
    assert expected == ignored_signals(done.stdout)


def test_number_of_a_client_that_left_holds_no_box(sandbox: Sandbox, leftovers: Leftovers) -> None:
    """A client that asks and hangs up before the answer gets no box that stays."""
    from loopbox.wire.control import PROTOCOL, build  # noqa: PLC0415

    for number in range(10):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sandbox.runtime / "loopbox/keeper.sock"))
            request = {"verb": "enter", "create": "1", "name": f"left{number}", "cwd": "/"}
            client.sendall(build({**request, "protocol": PROTOCOL, "version": "0.1.0"}))

    leftovers.check()


def test_wait_that_is_given_up_is_forgotten(sandbox: Sandbox) -> None:
    """Ctrl-C on `wait` frees the keeper of it: nothing holds it from ending when idle."""
    sandbox.ok("run", "--", "true", env={"LOOPBOX_IDLE": "0.5"})
    waiting = sandbox.start("wait", "nobody", "80", "--timeout", "900")
    keeper = sandbox.keeper_pid()
    until(lambda: waiting.poll() is None and keeper and descriptors_of(keeper) > 0)
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=20)

    until(lambda: not (sandbox.runtime / "loopbox/keeper.sock").exists(), what="the idle end")


def test_failed_forward_leaves_no_box(sandbox: Sandbox, leftovers: Leftovers) -> None:
    """A box made for a command line that cannot be served goes again, kept or not."""
    for options in ([], ["--keep"]):
        done = sandbox("run", "--name", "f", *options, "--forward", "80,99999", "--", "true")
        assert done.returncode == 2

    leftovers.check()
