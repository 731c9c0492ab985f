"""`loopbox run` as a user meets it: the program is their own, only the loopback is not."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import (
    COMMAND,
    Sandbox,
    boxes_of_pid,
    ignored_signals,
    inherited_ignored_signals,
    until,
)

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)],
    ids=["success", "own code", "signal"],
)
def test_exit_is_the_programs_own(sandbox: Sandbox, script: str, status: int) -> None:
    """Exit code and death by signal reach whoever called, unchanged."""
    assert status == sandbox("run", "--", "sh", "-c", script).returncode


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("run", "--", "no-such-program"), 127, "no such command"),
        (("run", "--", ""), 127, "its name is empty"),
        (("run", "--", "/etc"), 126, "it is a directory"),
        (("run", "--", "/etc/passwd"), 126, "Permission denied"),
        (("run",), 2, "no command is given"),
        (("run", "--nope", "--", "true"), 2, "no such option"),
        (("run", "--name", "Bad_Name", "--", "true"), 2, "Bad_Name"),
        (("exec", "nowhere", "--", "true"), 125, "it is not up"),
    ],
)
def test_what_cannot_start_says_why(
    sandbox: Sandbox, words: tuple[str, ...], status: int, said: str
) -> None:
    """127, 126, 125 and 2 mean what the contract says, each with one clear line."""
    done = sandbox(*words)

    assert (status, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_lo_is_the_boxs_own(sandbox: Sandbox) -> None:
    """All of 127/8 and ::1 answer inside, on ports a user may not bind outside."""
    script = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.9.8.7"),
                        (socket.AF_INET6, "::1")):
    server = socket.socket(family)
    server.bind((address, 80))
    server.listen()
    client = socket.socket(family)
    client.connect((address, 80))
    server.accept()[0].sendall(b"own")
    assert client.recv(3) == b"own"
print(open("/proc/self/ns/net").fileno() > 0)
"""
    assert sandbox.ok("run", "--", "/usr/bin/python3", "-c", script) == "True\n"


def test_ping_works_inside(sandbox: Sandbox) -> None:
    """ping reaches both loopback addresses."""
    sandbox.ok("run", "--", "ping", "-c1", "-W2", "127.0.0.1")
    sandbox.ok("run", "--", "ping", "-6", "-c1", "-W2", "::1")


def test_nothing_of_the_hosts_loopback_is_reachable(sandbox: Sandbox) -> None:
    """A server on the host's 127.0.0.1 is not there inside, unless its port is forwarded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3).close()"
        inside = ("/usr/bin/python3", "-c", connect)

        assert "ConnectionRefusedError" in sandbox("run", "--name", "a", "--", *inside).stderr
        sandbox.ok("run", "--name", "b", "--forward", str(port), "--", *inside)
        six = connect.replace("127.0.0.1", "::1")
        sandbox.ok(
            "run", "--name", "b", "--forward", str(port), "--", "/usr/bin/python3", "-c", six
        )


def test_user_directory_and_environment_stay(sandbox: Sandbox) -> None:
    """uid, gid, working directory, umask, standard input and environment are the caller's."""
    script = 'id -u; id -g; pwd; umask; cat; echo "$MINE"'
    old = os.umask(0o027)
    try:
        said = sandbox.ok("run", "--", "sh", "-c", script, stdin="typed\n", env={"MINE": "kept"})
    finally:
        os.umask(old)

    expected = f"{os.getuid()}\n{os.getgid()}\n{sandbox.project}\n0027\ntyped\nkept\n"
    assert expected == said


def test_environment_names_the_box(sandbox: Sandbox) -> None:
    """LOOPBOX_NAME, _ADDRESS and _URL are set; PORT and HOST never are."""
    said = sandbox.ok("run", "--name", "shop", "--", "env")
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    assert found["LOOPBOX_NAME"] == "shop"
    assert re.fullmatch(
        r"127\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.\d+\.\d+", found["LOOPBOX_ADDRESS"]
    )
    assert found["LOOPBOX_URL"] == "http://shop.localhost"
    assert not {"PORT", "HOST"} & (set(found) - set(sandbox.env))


def test_files_made_inside_belong_to_the_user(sandbox: Sandbox) -> None:
    """A file made in a box is an ordinary file of this user's."""
    sandbox.ok("run", "--", "touch", "made")

    status = (sandbox.project / "made").stat()
    assert (os.getuid(), os.getgid()) == (status.st_uid, status.st_gid)


def test_loopbox_0_runs_plainly(sandbox: Sandbox) -> None:
    """LOOPBOX=0 runs the command without any box."""
    said = sandbox.ok("run", "--", "readlink", "/proc/self/ns/net", env={"LOOPBOX": "0"})

    assert os.readlink("/proc/self/ns/net") == said.strip()
    assert sandbox.keeper_pid() is None


def test_same_project_shares_a_box(sandbox: Sandbox) -> None:
    """Two commands in one directory are in one box; another directory's are in another."""
    sandbox.start("run", "--", "sleep", "60")
    until(lambda: sandbox.box_names() == ["shop"])
    other = sandbox.root / "other"
    other.mkdir()

    own = sandbox.ok("exec", "shop", "--", "readlink", "/proc/self/ns/net")
    again = sandbox.ok("run", "--", "readlink", "/proc/self/ns/net")
    apart = sandbox.ok("run", "--", "readlink", "/proc/self/ns/net", cwd=other)

    assert own == again
    assert own != apart


def test_double_forked_daemon_keeps_the_box(sandbox: Sandbox) -> None:
    """The box stays while a daemon that left its parent lives, and goes with it."""
    script = """
import os, sys, time, signal
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 64)
with open("daemon.pid", "w") as file: file.write(str(os.getpid()))
signal.pause()
"""
    sandbox.ok("run", "--", "/usr/bin/python3", "-c", script)
    pid = int(until(lambda: _read(sandbox.project / "daemon.pid")))

    assert sandbox.box_names() == ["shop"]
    os.kill(pid, signal.SIGTERM)
    until(lambda: sandbox.box_names() == [], what="the box leaving with its daemon")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_kept_box_stays_empty_until_down(sandbox: Sandbox) -> None:
    """--keep holds a box without processes; down removes it."""
    sandbox.ok("run", "--keep", "--", "true")

    box = sandbox.json("show")
    assert (box["state"], box["kept"], box["processes"]) == ("up", True, [])
    sandbox.ok("down")
    assert sandbox.box_names() == []


def test_down_ends_what_ignores_term(sandbox: Sandbox) -> None:
    """TERM first, then KILL; stopped processes end too."""
    stubborn = sandbox.start("run", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    stopped = sandbox.start("run", "--", "sleep", "60")
    until(lambda: len(_processes(sandbox)) >= 2)
    stopped.send_signal(signal.SIGSTOP)

    sandbox.ok("down", "--grace", "0.3")

    assert (stubborn.wait(5), stopped.wait(5)) == (-signal.SIGKILL, -signal.SIGTERM)
    assert sandbox.box_names() == []


def _processes(sandbox: Sandbox) -> list[dict[str, object]]:
    boxes = sandbox.json("ls")["boxes"]
    return boxes[0]["processes"] if boxes else []


def test_terminal_is_the_programs_own(sandbox: Sandbox) -> None:
    """On a terminal: size, Ctrl-C and job control work as without loopbox."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(sandbox.project)
        os.execve(
            "/bin/bash", ["bash", "--norc", "--noprofile", "-i"], {**sandbox.env, "PS1": "$ "}
        )
    screen = _Screen(terminal)
    try:
        screen.type(f"alias lb='{COMMAND} run --'\n")
        screen.type("stty rows 33 cols 101; lb stty size\n")
        screen.expect("33 101")
        screen.type("lb sleep 600\n")
        until(lambda: any("sleep 600" in str(p["command"]) for p in _processes(sandbox)))
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.type("fg\n")
        until(lambda: _state(sandbox, "sleep 600") == "S", what="the job going on")
        screen.type("\x03")
        screen.type("echo status=$?\n")
        screen.expect("status=130")
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _state(sandbox: Sandbox, command: str) -> str:
    for process in _processes(sandbox):
        if command in str(process["command"]):
            text = Path(f"/proc/{process['pid']}/stat").read_text()
            return text.rpartition(")")[2].split()[0]
    return ""


class _Screen:
    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._seen = ""
        os.set_blocking(terminal, False)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def expect(self, text: str) -> None:
        def found() -> bool:
            try:
                self._seen += os.read(self._terminal, 65536).decode("utf-8", "replace")
            except BlockingIOError:
                pass
            return text in self._seen

        try:
            until(found, what=f"{text!r} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen shows: {self._seen!r}") from None
        self._seen = self._seen.partition(text)[2]


def test_hosts_files_lead_to_the_keeper(sandbox: Sandbox) -> None:
    """resolv.conf, nsswitch.conf and hosts are the box's own; localhost has both families."""
    said = sandbox.ok("run", "--", "cat", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts")
    outside = Path("/etc/resolv.conf").read_text()

    assert outside not in said
    assert re.search(r"^hosts:\s+files dns$", said, re.MULTILINE)
    assert re.search(r"^127\.0\.0\.1\s.*\blocalhost\b", said, re.MULTILINE)
    assert re.search(r"^::1\s.*\blocalhost\b", said, re.MULTILINE)


@pytest.mark.root
def test_private_files_survive_a_rename_on_the_host(sandbox: Sandbox, tmp_path: Path) -> None:
    """When the host replaces resolv.conf by rename, a box inside and a new command keep theirs."""
    if os.environ.get("LOOPBOX_TEST_ETC") != "1":
        # In a mount namespace of its own, so that the machine's /etc stays as it is.
        own_etc = 'cp -a /etc "$0" && mount --bind "$0" /etc && exec "$@"'
        again = f"{__file__}::test_private_files_survive_a_rename_on_the_host"
        inner = subprocess.run(
            [
                *("unshare", "-m", "sh", "-c", own_etc, str(tmp_path / "etc")),
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", again),
            ],
            env={**os.environ, "LOOPBOX_TEST_ETC": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert inner.returncode == 0, inner.stdout + inner.stderr
        return
    sandbox.start("run", "--", "sleep", "60")
    until(lambda: sandbox.box_names() == ["shop"])
    before = sandbox.ok("exec", "shop", "--", "cat", "/etc/resolv.conf")

    replacement = Path("/etc/.resolv.new")
    replacement.write_text("nameserver 192.0.2.99\n")
    replacement.rename("/etc/resolv.conf")

    assert before == sandbox.ok("exec", "shop", "--", "cat", "/etc/resolv.conf")
    [process] = sandbox.json("show")["processes"]
    inside = Path(f"/proc/{process['pid']}/root/etc/resolv.conf")
    until(lambda: inside.read_text() == before, what="the running program's own file")
    assert "192.0.2.99" in Path("/etc/resolv.conf").read_text()


def test_sys_class_net_shows_only_lo(sandbox: Sandbox) -> None:
    """/sys/class/net lists the box's devices, not the host's."""
    assert sandbox.ok("run", "--", "ls", "/sys/class/net") == "lo\n"


def test_nested_run_of_the_same_box(sandbox: Sandbox) -> None:
    """Inside a box, run of the same project stays in it; another box is refused with the way."""
    inner = (str(COMMAND), "run", "--", "readlink", "/proc/self/ns/net")
    outer = sandbox.ok("run", "--", "sh", "-c", f"readlink /proc/self/ns/net; {' '.join(inner)}")

    assert len(set(outer.split())) == 1
    if os.geteuid() != 0:
        other = sandbox("run", "--", str(COMMAND), "run", "--name", "other", "--", "true")
        assert (other.returncode, "shell outside" in other.stderr) == (125, True)


def test_box_holds_its_program(sandbox: Sandbox) -> None:
    """The program's network namespace is not the host's, and no capability came along."""
    process = sandbox.start("run", "--", "sleep", "60")
    until(lambda: sandbox.box_names() == ["shop"])
    until(lambda: boxes_of_pid(process.pid) != boxes_of_pid(os.getpid()))

    status = Path(f"/proc/{process.pid}/status").read_text()
    if os.geteuid() != 0:
        assert "CapEff:\t0000000000000000" in status
    assert inherited_ignored_signals() == ignored_signals(status)
