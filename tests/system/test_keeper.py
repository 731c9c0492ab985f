"""The keeper as a process: started once, hard to impersonate, easy to end, found again."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import COMMAND, Sandbox, boxes_of_pid, until
from loopbox.wire.control import PROTOCOL, build, feed

pytestmark = pytest.mark.system


def ask(sandbox: Sandbox, **fields: str) -> dict[str, str]:
    """One request by hand, past the client's own checks."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(sandbox.runtime / "loopbox/keeper.sock"))
        client.sendall(build(fields))
        data = b""
        while True:
            reply, data = feed(data)
            if reply is not None:
                return reply
            more = client.recv(65536)
            assert more, "the keeper closed the connection without an answer"
            data += more


def keepers(sandbox: Sandbox) -> list[int]:
    """Process ids of the keepers that use this sandbox's runtime directory."""
    wanted = f"XDG_RUNTIME_DIR={sandbox.runtime}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if b"loopbox.keeper" in (entry / "cmdline").read_bytes() and wanted in environment:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# -- starting and ending ----------------------------------------------------------------------


def test_twenty_first_commands_start_one_keeper(sandbox: Sandbox) -> None:
    """However many commands come first, one keeper serves them all."""
    first = [sandbox.start("run", "--name", f"n{n}", "--", "true") for n in range(20)]

    assert [0] * 20 == [process.wait(60) for process in first]
    assert keepers(sandbox) == [sandbox.keeper_pid()]
    assert sandbox.log.count("serving, pid") == 1


def test_keeper_survives_its_terminal(sandbox: Sandbox) -> None:
    """The session that started it may end, and SIGHUP may come: it serves on."""
    shell = subprocess.Popen(
        ["sh", "-c", f"{COMMAND} run --keep -- true && echo made && exec sleep 600"],
        cwd=sandbox.project,
        env=sandbox.env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    with shell.stdout:
        assert shell.stdout.readline() == "made\n"
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.killpg(shell.pid, signal.SIGHUP)
    shell.wait(20)
    os.kill(keeper, signal.SIGHUP)

    assert sandbox.box_names() == ["shop"]
    assert keeper == sandbox.keeper_pid()
    assert os.getsid(keeper) not in (keeper, shell.pid, os.getsid(0))


def test_keeper_holds_nothing_of_who_started_it(sandbox: Sandbox) -> None:
    """Not its pipes (`loopbox run … | cat` ends), working directory, mask or blocked signals."""

    def blocked() -> None:
        os.umask(0o777)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})

    done = subprocess.run(
        [COMMAND, "run", "--keep", "--", "true"],
        cwd=sandbox.project,
        env={**sandbox.env, "PYTHONINSPECT": "1", "PYTHONPROFILEIMPORTTIME": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,  # returns when nobody holds the pipes any more
        timeout=30,
        check=False,
        preexec_fn=blocked,
    )
    assert done.returncode == 0, done.stderr
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{keeper}/status").read_text().splitlines()
    )

    assert "/" == os.readlink(f"/proc/{keeper}/cwd")
    assert (0o077, 0) == (int(status["Umask"], 8), int(status["SigBlk"], 16))
    assert (sandbox.runtime / "loopbox/files/shared/hosts").stat().st_mode & 0o777 == 0o644
    os.kill(keeper, signal.SIGTERM)
    until(lambda: keepers(sandbox) == [], what="the keeper ending by SIGTERM")


def test_idle_keeper_ends_and_leaves_no_file(sandbox: Sandbox) -> None:
    """Without box and client it goes by itself, with its socket and files; the next one starts."""
    sandbox.ok("run", "--", "true", env={"LOOPBOX_IDLE": "0.1"})
    until(lambda: keepers(sandbox) == [], what="the idle keeper's end")

    left = sorted(path.name for path in (sandbox.runtime / "loopbox").rglob("*"))
    assert ["boxes", "keeper.lock", "start.lock"] == left
    assert sandbox.ok("run", "--", "echo", "again") == "again\n"


def test_a_keeper_that_ends_loses_no_command(sandbox: Sandbox) -> None:
    """Commands that come while one is ending, idle, are served by the next."""
    env = {"LOOPBOX_IDLE": "0"}
    for _turn in range(3):
        runs = [sandbox.start("run", "--", "true", env=env) for _ in range(4)]
        assert [0] * 4 == [run.wait(60) for run in runs], [r.communicate() for r in runs]
        runs = [sandbox.start("run", "--", "true", env=env) for _ in range(4)]
        stopped = sandbox("keeper", "stop")
        assert [0] * 4 == [run.wait(60) for run in runs], [r.communicate() for r in runs]
        assert stopped.returncode == 0


def test_first_command_waits_for_a_keeper_that_is_ending(sandbox: Sandbox) -> None:
    """One that holds the lock for life and serves no more is waited for, not complained of."""
    sandbox.ok("run", "--", "true")
    sandbox.ok("keeper", "stop")
    with open(sandbox.runtime / "loopbox/keeper.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = sandbox.start("run", "--", "echo", "served")
        until(lambda: keepers(sandbox), what="the next keeper")
        fcntl.flock(lock, fcntl.LOCK_UN)

        assert ("served\n", 0) == (first.communicate(timeout=30)[0], first.returncode)


def test_stop_leaves_programs_running(sandbox: Sandbox) -> None:
    """keeper stop ends the keeper only; the next command finds the box and its listener."""
    program = sandbox.serve(sys.executable, "-m", "http.server", "8000", name="shop", port=8000)
    before = sandbox.json("show", "shop")
    sandbox.ok("keeper", "stop")

    assert (None, []) == (program.poll(), keepers(sandbox))
    assert not (sandbox.runtime / "loopbox/keeper.sock").exists()
    assert before == sandbox.json("show", "shop")


def test_removed_runtime_directory_ends_the_keeper(sandbox: Sandbox) -> None:
    """Nobody could find it again, so it makes way for another."""
    sandbox.ok("run", "--", "true")
    old = sandbox.keeper_pid()
    (sandbox.runtime / "loopbox/keeper.sock").unlink()
    until(lambda: keepers(sandbox) == [], what="its end")

    assert sandbox.ok("run", "--", "echo", "again") == "again\n"
    assert old != sandbox.keeper_pid()


# -- found again ------------------------------------------------------------------------------


def test_kept_empty_box_and_its_forward_come_back(sandbox: Sandbox) -> None:
    """After a SIGKILL a kept box without processes is there again, with what it was asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close()"
        sandbox.ok(
            "run", "--name", "kept", "--keep", "--forward", port, "--egress", "none", "--", "true"
        )
        before = sandbox.json("show", "kept")
        old = sandbox.keeper_pid()
        assert old is not None
        os.kill(old, signal.SIGKILL)

        after = sandbox.json("show", "kept")
        assert before | {"created": after["created"]} == after
        sandbox.ok("exec", "kept", "--", sys.executable, "-c", connect)


def test_dead_boxes_number_given_to_a_stranger_is_not_taken_over(sandbox: Sandbox) -> None:
    """A record whose namespace has gone never leads to another program's, whatever its number."""
    stranger = subprocess.Popen(
        ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-n", "sleep", "600"]
    )
    try:
        host = os.stat("/proc/self/ns/net").st_ino
        until(lambda: os.stat(f"/proc/{stranger.pid}/ns/net").st_ino != host)
        victim = sandbox.start("run", "--", "sleep", "600")
        until(lambda: sandbox.box_names() == ["shop"])
        keeper = sandbox.keeper_pid()
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        victim.kill()
        victim.wait()
        record = sandbox.runtime / "loopbox/boxes/shop"
        number = os.stat(f"/proc/{stranger.pid}/ns/net").st_ino
        old = record.read_text()
        [inode] = [part for part in old.split(",") if '"inode"' in part]
        record.write_text(old.replace(inode, f' "inode": {number}'))

        assert sandbox.box_names() == []
        assert sandbox("down", "--all").returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_recovery_sees_past_a_sandbox_inside(sandbox: Sandbox) -> None:
    """When all that lives in a box has made namespaces of its own, the box's own are found."""
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    sandbox.start("run", "--", "unshare", flags, "sleep", "600")
    until(lambda: any("sleep" in one for one in commands(sandbox)))
    before = sandbox.ok("exec", "shop", "--", "readlink", "/proc/self/ns/net")
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)

    assert before == sandbox.ok("exec", "shop", "--", "readlink", "/proc/self/ns/net")
    assert sandbox.ok("run", "--name", "new", "--", "echo", "works") == "works\n"
    resolver = sandbox.ok("exec", "shop", "--", "cat", "/etc/resolv.conf")
    assert resolver == sandbox.ok("run", "--name", "new", "--", "cat", "/etc/resolv.conf")


@pytest.mark.root
def test_recovery_leaves_a_standing_guard_alone(sandbox: Sandbox) -> None:
    """The rules of a living box are the very same ones afterwards: to replace them costs 20 ms."""
    inside = sandbox.start("run", "--name", "shop", "--", "sleep", "600")
    until(lambda: boxes_of_pid(inside.pid) != boxes_of_pid(os.getpid()), what="the box")
    enter = ("nsenter", f"--net=/proc/{inside.pid}/ns/net")
    listing = [*enter, "nft", "-a", "list", "table", "inet", "loopbox"]
    before = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)

    assert sandbox.box_names() == ["shop"]
    assert before == subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert "# handle" in before


def commands(sandbox: Sandbox) -> list[str]:
    """The command lines of every process in a box."""
    return [p["command"] for box in sandbox.json("ls")["boxes"] for p in box["processes"]]


# -- versions ---------------------------------------------------------------------------------


def test_client_of_another_version_gets_a_clear_word(sandbox: Sandbox) -> None:
    """It is told which keeper runs and how to end it; stop works across versions."""
    other = "import loopbox; loopbox.__version__ = '9.9'\nfrom loopbox.__main__ import main; main()"
    sandbox.ok("run", "--keep", "--", "true")

    def as_other(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", other, *arguments],
            cwd=sandbox.project, env=sandbox.env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    refused = as_other("run", "--", "true")
    stopped = as_other("keeper", "stop")

    assert refused.stderr == (
        "loopbox: cannot serve loopbox 9.9: the keeper that runs is version 0.1.0\n"
        "hint: end it, what runs in boxes goes on: loopbox keeper stop\n"
    )
    assert stopped.returncode == 0
    assert keepers(sandbox) == []


@pytest.mark.parametrize("fields", [{}, {"verb": "ls"}, {"verb": "ls", "protocol": "99"}])
def test_request_without_our_protocol_is_refused(sandbox: Sandbox, fields: dict[str, str]) -> None:
    """What does not name this protocol and version is answered in words, and not served."""
    sandbox.ok("run", "--", "true")

    reply = ask(sandbox, **fields)

    assert ("0", "version-mismatch") == (reply["ok"], reply["error"])


def test_unknown_verb_is_refused(sandbox: Sandbox) -> None:
    """A verb that does not exist is the asker's error, not the keeper's."""
    sandbox.ok("run", "--", "true")
    reply = ask(sandbox, verb="\x1b[2J", protocol=PROTOCOL, version="0.1.0")

    assert ("UsageError", "cannot do `\x1b[2J`: no such verb") == (reply["kind"], reply["message"])


# -- impersonation ----------------------------------------------------------------------------


def _link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def _open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o711)


def _open_to_group(path: Path) -> None:
    path.mkdir()
    path.chmod(0o770)


@pytest.mark.parametrize(
    ("put", "cause"),
    [
        (_link, "it is a link or no directory"),
        (Path.touch, "it is a link or no directory"),
        (_open_to_all, "it is open to other users"),
        (_open_to_group, "it is open to other users"),
    ],
    ids=["link", "file", "searchable by all", "open to the group"],
)
def test_squatted_runtime_directory_is_refused(sandbox: Sandbox, put, cause: str) -> None:  # type: ignore[no-untyped-def]
    """Whoever put it there, nothing is asked of it and nothing written into it."""
    path = sandbox.runtime / "loopbox"
    put(path)
    done = sandbox("run", "--", "true")

    assert (125, "") == (done.returncode, done.stdout)
    assert done.stderr == (
        f"loopbox: cannot trust runtime directory `{path}`: {cause}\n"
        f"hint: see who put it there: ls -ld {path}\n"
    )
    assert [] == list(path.parent.rglob("*/*"))


def test_runtime_base_others_may_write_to_is_not_used(sandbox: Sandbox) -> None:
    """Where others could put theirs in the place of ours, another directory is taken."""
    script = "from loopbox.places import runtime_path; print(runtime_path())"
    sandbox.runtime.chmod(0o777)
    said = subprocess.run(
        [sys.executable, "-c", script], env=sandbox.env, capture_output=True, text=True, check=True
    ).stdout.strip()
    sandbox.runtime.chmod(0o700)

    assert ("/run/loopbox" if os.geteuid() == 0 else f"/tmp/loopbox-{os.geteuid()}") == said


def test_start_lock_held_by_a_directory_is_told(sandbox: Sandbox) -> None:
    """Something strange in a file's place is one line, not a traceback."""
    (sandbox.runtime / "loopbox").mkdir(mode=0o700)
    (sandbox.runtime / "loopbox/start.lock").mkdir()
    done = sandbox("run", "--", "true")

    assert (125, True) == (done.returncode, "start.lock`: Is a directory\n" in done.stderr)


def test_link_in_place_of_the_lock_is_not_followed(sandbox: Sandbox) -> None:
    """The lock is never written through a link."""
    victim = sandbox.root / "victim"
    victim.write_text("precious")
    (sandbox.runtime / "loopbox").mkdir(mode=0o700)
    (sandbox.runtime / "loopbox/keeper.lock").symlink_to(victim)
    done = sandbox("run", "--", "true")

    assert (125, "precious") == (done.returncode, victim.read_text())
    assert done.stderr == (
        "loopbox: cannot start the keeper: Too many levels of symbolic links at `keeper.lock`\n"
    )


def test_records_that_are_no_files_hold_nobody_up(sandbox: Sandbox) -> None:
    """A FIFO would block whoever reads it, a link would lead elsewhere: both are passed over."""
    boxes = sandbox.runtime / "loopbox/boxes"
    boxes.mkdir(mode=0o700, parents=True)
    boxes.parent.chmod(0o700)
    os.mkfifo(boxes / "pipe")
    (boxes / "link").symlink_to("/etc/passwd")
    (boxes / "folder").mkdir()
    names = sandbox.root / "state/loopbox/names.json"
    names.parent.mkdir(parents=True)
    os.mkfifo(names)

    assert "works\n" == sandbox.ok("run", "--", "echo", "works", timeout=20)
    assert [] == sandbox.box_names()


def test_link_in_place_of_the_private_files_is_refused(sandbox: Sandbox) -> None:
    """What a box leaves there is removed with it: through a link that would be somebody's."""
    precious = sandbox.root / "elsewhere/shop"
    precious.mkdir(parents=True)
    (sandbox.runtime / "loopbox").mkdir(mode=0o700)
    (sandbox.runtime / "loopbox/files").symlink_to(precious.parent)
    done = sandbox("run", "--", "true")

    assert (125, True) == (done.returncode, precious.is_dir())
    assert done.stderr == (
        f"loopbox: cannot start the keeper: it is a link at `{sandbox.runtime}/loopbox/files`\n"
    )
