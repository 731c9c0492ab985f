"""Hostile users, machines, files, names and bytes: one clear line at most, and never another's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import COMMAND, Sandbox, descriptors_of, until
from loopbox.wire.control import PROTOCOL, build, feed

pytestmark = pytest.mark.system

_ALICE, _BOB = 54711, 54712
"""User ids without an account: rootless needs none."""


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that was said (a hint may follow), free of tracebacks and control bytes."""
    lines = done.stderr.splitlines()
    assert lines and lines[0].startswith("loopbox: "), done
    assert all(line.startswith("hint: ") for line in lines[1:]), done
    assert all(letter.isprintable() for line in lines for letter in line), done
    return lines[0]


# -- other users --------------------------------------------------------------------------------


class User(Sandbox):
    """A sandbox of a plain user, driven by root."""

    def __init__(self, root: Path, uid: int) -> None:
        root.mkdir()
        super().__init__(root)
        self.uid = uid
        for path in (root, self.runtime, self.project):
            os.chown(path, uid, uid)

    def command(self, *words: str) -> list[str]:
        """The command line that runs as this user."""
        numbers = ("--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups")
        return ["setpriv", *numbers, "--", *words]

    def __call__(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run loopbox as this user."""
        return subprocess.run(
            self.command(str(COMMAND), *arguments), cwd=self.project, env=self.env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        """Start loopbox as this user and leave it running."""
        process = subprocess.Popen(
            self.command(str(COMMAND), *arguments), cwd=self.project, env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process


@pytest.fixture
def two_users() -> Iterator[tuple[User, User]]:
    """Two plain users with homes that each may reach (pytest's own are root's)."""
    base = Path(tempfile.mkdtemp(prefix="loopbox-users-"))
    base.chmod(0o755)
    made: list[User] = []
    try:
        made += [User(base / "alice", _ALICE), User(base / "bob", _BOB)]
        yield made[0], made[1]
    finally:
        for user in made:
            user.close()
        shutil.rmtree(base)


_SERVE = (
    "from http.server import *\n"
    "import os\n"
    "class Own(BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        body = str(os.getuid()).encode()\n"
    "        self.send_response(200); self.send_header('Content-Length', str(len(body)))\n"
    "        self.end_headers(); self.wfile.write(body)\n"
    "    def log_message(self, *a): pass\n"
    "ThreadingHTTPServer(('127.0.0.1', 8000), Own).serve_forever()\n"
)


@pytest.mark.root
def test_two_users_do_not_disturb_each_other(two_users: tuple[User, User]) -> None:
    """Same name, same port, same time: each has a keeper, a box and an address of their own."""
    for user in two_users:
        user.start("run", "--name", "shop", "--", "/usr/bin/python3", "-c", _SERVE)
    places = []
    for user in two_users:
        until(lambda user=user: user.box_names() == ["shop"])  # type: ignore[misc]
        user.ok("wait", "shop", "8000", "--timeout", "20")
        [found] = until(
            lambda user=user: [  # type: ignore[misc]
                one["at"] for one in user.json("show", "shop")["listeners"] if one["at"]
            ]
        )
        places.append(found)

    assert places[0] != places[1]
    for own, user in enumerate(two_users):
        fetch = user.command("curl", "-sS", "-m", "5", f"http://{places[own]}/")
        own_body = subprocess.run(fetch, capture_output=True, text=True, check=True).stdout
        assert str(user.uid) == own_body
        foreign = user.command("curl", "-sS", "-m", "5", f"http://{places[1 - own]}/")
        assert subprocess.run(foreign, capture_output=True, check=False).stdout == b""


@pytest.mark.root
def test_clients_and_keepers_of_others_are_refused(two_users: tuple[User, User]) -> None:
    """Root's client gets nothing of a user's keeper; a user trusts no socket root put there."""
    alice, bob = two_users
    alice.ok("run", "--", "true")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(alice.runtime / "loopbox/keeper.sock"))
        try:
            client.sendall(build({"verb": "stop", "protocol": PROTOCOL, "version": "0.1.0"}))
            answer = client.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b""
    assert "refused a client of uid" in alice.log

    bob.ok("run", "--", "true")
    bob.ok("keeper", "stop")
    with socket.socket(socket.AF_UNIX) as squatted:
        squatted.bind(str(bob.runtime / "loopbox/keeper.sock"))
        os.chmod(bob.runtime / "loopbox/keeper.sock", 0o666)
        squatted.listen()
        done = bob("run", "--", "true")
        assert 125 == done.returncode
        assert one_line(done).endswith("/loopbox/keeper.sock`: it runs as uid 0")


@pytest.mark.root
def test_runtime_directory_of_another_user_is_refused(two_users: tuple[User, User]) -> None:
    """A directory that somebody else made in advance is not used."""
    alice, bob = two_users
    path = alice.runtime / "loopbox"
    path.mkdir(mode=0o700)
    os.chown(path, bob.uid, bob.uid)
    path.chmod(0o755)
    done = alice("run", "--", "true")

    assert 125 == done.returncode
    assert f"loopbox: cannot trust runtime directory `{path}`: it is another user's" == one_line(
        done
    )


# -- what the machine forbids ------------------------------------------------------------------


@pytest.mark.root
def test_forbidden_user_namespaces_are_explained(two_users: tuple[User, User]) -> None:
    """125, the knob that forbids them, and the command that allows them; again when allowed."""
    user, _other = two_users
    forbid = (
        "read mapped; exec sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; "
        f'exec setpriv --reuid {user.uid} --regid {user.uid} --clear-groups -- "$@"\' sh "$@"'
    )
    # The knob counts for a user namespace and what is below it: forbid it in one of our own.
    nested = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", forbid, "sh", str(COMMAND), "run", "--", "true"],
        cwd=user.project, env=user.env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    own = os.stat("/proc/self/ns/user").st_ino
    until(lambda: os.stat(f"/proc/{nested.pid}/ns/user").st_ino != own)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{nested.pid}/{kind}").write_text("0 0 65536")
    out, err = nested.communicate("mapped\n", timeout=30)

    assert (125, "") == (nested.returncode, out)
    assert err == (
        "loopbox: cannot make a box: user namespaces are not allowed for this user: "
        "/proc/sys/user/max_user_namespaces is 0 (No space left on device)\n"
        "hint: sudo sysctl user.max_user_namespaces=15000\n"
    )
    user.ok("run", "--", "true")


@pytest.mark.root
@pytest.mark.parametrize("lacking", ["sys_admin", "net_admin"])
def test_root_without_the_capabilities_is_told(sandbox: Sandbox, lacking: str) -> None:
    """As in a container: which capability is missing, and how to start it with it."""
    done = subprocess.run(
        ["setpriv", "--bounding-set", f"-{lacking}", "--", COMMAND, "run", "--", "true"],
        cwd=sandbox.project, env=sandbox.env, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 125 == done.returncode
    word = f"CAP_{lacking.upper()}"
    assert f"loopbox: cannot make a box: this root lacks {word} (capabilities(7))" == one_line(done)
    assert f"hint: in a container, start it with --cap-add {lacking.upper()}; " in done.stderr


@pytest.mark.root
def test_without_dev_net_tun_boxes_work(sandbox: Sandbox) -> None:
    """No TUN device is used: a machine (or container) without one is no worse."""
    script = (
        f'mount -t tmpfs none /dev/net 2>/dev/null; "{COMMAND}" run -- '
        "sh -c 'ls -A /dev/net 2>/dev/null; ping -c1 -W2 127.0.0.1 >/dev/null && echo works'"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=sandbox.project, env=sandbox.env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (0, "works\n") == (done.returncode, done.stdout), done.stderr


def test_few_descriptors_are_told(sandbox: Sandbox) -> None:
    """A keeper that can open no more says so, serves what it has, and recovers."""
    limited = f'ulimit -n 100; "{COMMAND}" run --keep -- true'
    subprocess.run(["sh", "-c", limited], cwd=sandbox.project, env=sandbox.env, check=True)
    said = ""
    for number in range(20):
        done = sandbox("run", "--name", f"k{number}", "--keep", "--", "true")
        if done.returncode != 0:
            assert 125 == done.returncode
            said = one_line(done)
            break

    assert said.endswith("too many open files: the keeper may hold 100")
    sandbox.ok("down", "k0")
    sandbox.ok("run", "--", "true")


# -- disks and files ---------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("full", ["runtime", "state", "both"])
def test_full_disk(sandbox: Sandbox, full: str) -> None:
    """With no block left for records and logs a box works, or one line says what is full."""
    (sandbox.root / "state").mkdir(exist_ok=True)
    places = ["runtime", "state"] if full == "both" else [full]
    mounts = "".join(
        f"mount -t tmpfs -o size=4k,mode=700 none {sandbox.root}/{place}; "
        f"head -c 100000 /dev/zero > {sandbox.root}/{place}/filler 2>/dev/null; "
        for place in places
    )
    ours = f'"{COMMAND}" run -- echo works; code=$?; "{COMMAND}" uninstall -q; exit $code'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounts + ours], cwd=sandbox.project, env=sandbox.env,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    if full == "state":
        assert (0, "works\n") == (done.returncode, done.stdout), done.stderr
    else:
        assert 125 == done.returncode, done
        assert "No space left on device" in one_line(done)


def test_disk_that_fills_up_later_harms_no_box(sandbox: Sandbox) -> None:
    """A keeper whose records cannot be written goes on making boxes."""
    sandbox.ok("run", "--", "true")
    boxes = sandbox.runtime / "loopbox/boxes"
    until(lambda: not list(boxes.iterdir()))
    boxes.rmdir()
    boxes.touch()

    assert sandbox.ok("run", "--", "echo", "works") == "works\n"
    assert "cannot record box shop" in sandbox.log
    boxes.unlink()


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"])
def test_unwritable_home_is_no_hindrance(sandbox: Sandbox, variable: str) -> None:
    """Where no log and no names can be kept, boxes work all the same."""
    env = {variable: "/proc/1/nowhere"}
    if variable == "HOME":
        env |= {"XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""}

    assert sandbox.ok("run", "--", "echo", "works", env=env) == "works\n"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("loopbox.toml", 'name = "shop"\nforward = "x"\n', 2),
        ("loopbox.toml", "name = \n", 1),
        ("loopbox.toml", "\x1b]0;owned\x07 = 1\n", 1),
        ("pyproject.toml", '[tool.loopbox]\nnaem = "x"\n', 2),
    ],
)
def test_broken_project_file_is_named_with_its_line(
    sandbox: Sandbox, name: str, text: str, line: int
) -> None:
    """One line with file and line, exit 2, and nothing runs."""
    (sandbox.project / name).write_text(text)
    done = sandbox("run", "--", "echo", "ran")

    assert (2, "") == (done.returncode, done.stdout)
    assert f"loopbox: cannot read `{sandbox.project / name}`: line {line}: " in one_line(done)


def test_project_file_that_is_no_file_does_not_block(sandbox: Sandbox) -> None:
    """A pipe or an endless device in a project file's place harms neither command nor keeper."""
    os.mkfifo(sandbox.project / "package.json")
    (sandbox.project / "pyproject.toml").symlink_to("/dev/zero")
    (sandbox.project / ".git").mkdir()
    os.mkfifo(sandbox.project / ".git/HEAD")

    assert sandbox.ok("run", "--", "echo", "works") == "works\n"
    os.mkfifo(sandbox.project / "loopbox.toml")
    assert sandbox("run", "--", "true", timeout=20).returncode in (0, 2)


def test_broken_user_configuration_is_told_and_harmless(sandbox: Sandbox) -> None:
    """A typo in config.toml takes no box away: the defaults hold, and each run says so."""
    path = Path(sandbox.env["XDG_CONFIG_HOME"]) / "loopbox/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[keeper]\nidle = oops\n")
    done = sandbox("run", "--", "echo", "works")

    assert (0, "works\n") == (done.returncode, done.stdout)
    assert f"loopbox: warning: cannot read `{path}`: line 2: " in done.stderr
    assert 1 == len(done.stderr.splitlines())


# -- names and directories ---------------------------------------------------------------------

_NAMES = [
    b"new\nline",
    b"\x1b[2J\x1b]0;owned\x07",
    "\u202eright\u2066 \u00fcnic\u00f6de \U0001f4a9".encode(),
    b"not utf-8 \xff\xfe",
    b"-rf --all",
    b" ",
    b"..." + b"x" * 240,
    b"a" * 255,
    b"%s$(id)`id`;id",
]


@pytest.mark.parametrize("name", _NAMES, ids=range(len(_NAMES)))
def test_hostile_directory_gets_a_box_with_a_plain_name(sandbox: Sandbox, name: bytes) -> None:
    """Any directory works: its box has a valid name, and its path moves no terminal's cursor."""
    place = os.path.join(os.fsencode(sandbox.root), name)
    os.mkdir(place)
    program = subprocess.Popen(
        [COMMAND, "run", "--", sys.executable, "-c", "import signal; signal.pause()", name],
        cwd=place, env=sandbox.env, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        [box] = until(lambda: sandbox.json("ls")["boxes"])
        shown = subprocess.run([COMMAND, "ls"], env=sandbox.env, capture_output=True, check=True)
        here = subprocess.run(
            [COMMAND], cwd=place, env=sandbox.env, capture_output=True, check=True
        )
        inside = subprocess.run(
            [COMMAND, "run", "--", "readlink", "/proc/self/cwd"],
            cwd=place, env=sandbox.env, capture_output=True, check=True,
        ).stdout  # fmt: skip
    finally:
        program.kill()
        program.wait()

    assert all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-." for letter in box["name"])
    assert all(0 < len(label) <= 63 for label in box["name"].split("."))
    assert place == os.fsencode(box["directory"])
    assert place + b"\n" == inside
    for said in (shown, here):
        text = said.stdout.decode()
        assert all(letter.isprintable() for letter in text.replace("\n", ""))
        assert box["name"] in text
        assert b"Traceback" not in said.stderr


@pytest.mark.parametrize(
    "branch", ["x" * 300, "a\x1b[31mb", "übung/ß", "..", "-", "localhost", "\U0001f4a9"]
)
def test_hostile_branch(sandbox: Sandbox, branch: str) -> None:
    """A branch of any name gives a valid label."""
    name = sandbox.ok("run", "--branch", branch, "--", "printenv", "LOOPBOX_NAME").strip()

    assert len(name.split(".")[0]) <= 63
    assert name.isascii() and name.endswith(".shop")


def test_deleted_directory(sandbox: Sandbox) -> None:
    """A program started where the directory has been deleted stays there, as without us."""
    gone = sandbox.root / "gone"
    gone.mkdir()
    script = f'rmdir "{gone}"; "{COMMAND}" run -- readlink /proc/self/cwd; "{COMMAND}" ls --json'
    done = subprocess.run(
        ["sh", "-c", script], cwd=gone, env=sandbox.env, capture_output=True, text=True, check=True
    )

    assert f"{gone} (deleted)" == done.stdout.splitlines()[0]
    assert {"boxes": []} == json.loads(done.stdout.splitlines()[1])


def test_directory_below_one_that_may_not_be_searched(sandbox: Sandbox) -> None:
    """The working directory is kept even where its path cannot be walked (any more)."""
    inner = sandbox.root / "closed/inner"
    inner.mkdir(parents=True)
    script = f'chmod 0 "{inner.parent}"; "{COMMAND}" run -- sh -c "echo > made && ls"'
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=inner,
        env=sandbox.env,
        capture_output=True,
        text=True,
        check=False,
    )
    inner.parent.chmod(0o700)

    assert (0, "made\n") == (done.returncode, done.stdout), done.stderr


def test_directory_that_may_not_be_searched(sandbox: Sandbox) -> None:
    """A program starts there or not at all: elsewhere it would read and write elsewhere."""
    closed = sandbox.root / "closed"
    closed.mkdir()
    script = f'chmod 0 .; "{COMMAND}" run -- readlink /proc/self/cwd'
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=closed,
        env=sandbox.env,
        capture_output=True,
        text=True,
        check=False,
    )
    closed.chmod(0o700)

    assert done.stdout in (f"{closed}\n", ""), done
    assert (done.returncode == 0) == (done.stdout != "")


def test_command_lines_with_escapes_are_shown_harmlessly(sandbox: Sandbox) -> None:
    """What a program calls itself cannot steer the terminal of who looks."""
    evil = "\x1b[2J\x1b]0;owned\x07\nfake  box\r\u202e"
    code = "import signal, socket; s = socket.create_server(('127.0.0.1', 8000)); signal.pause()"
    sandbox.serve("/usr/bin/python3", "-c", code, evil, name="shop", port=8000)
    for words in (("ls",), ("show", "shop"), ("ls", "--json"), ()):
        said = sandbox.ok(*words)
        assert all(letter.isprintable() for letter in said.replace("\n", "")), words
    shown = sandbox.json("show", "shop")["processes"]

    assert any(evil in one["command"] for one in shown)


def test_nul_and_odd_bytes_in_arguments(sandbox: Sandbox) -> None:
    """Arguments and environment reach the program byte by byte."""
    odd = bytes(set(range(1, 256)))
    done = subprocess.run(
        [COMMAND, "run", "--", "sh", "-c", 'printf %s "$1"; printf %s "$ODD"', "sh", odd],
        cwd=sandbox.project,
        env={**{os.fsencode(k): os.fsencode(v) for k, v in sandbox.env.items()}, b"ODD": odd},
        capture_output=True,
        check=True,
    )

    assert odd + odd == done.stdout


# -- environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {"LOOPBOX_NAME": "by-hand"},
        {"LOOPBOX_NAME": ""},
        {"LOOPBOX_IDLE": "soon"},
        {"LOOPBOX_IDLE": "nan"},
        {"LOOPBOX_IDLE": "-1"},
        {"PATH": ""},
        {"LANG": "xx_XX.broken", "LC_ALL": "C"},
        {"PYTHONSTARTUP": "/nowhere", "PYTHONWARNINGS": "error", "PYTHONVERBOSE": "1"},
        {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"XDG_RUNTIME_DIR": "relative"},
        {"XDG_STATE_HOME": "relative", "XDG_CONFIG_HOME": "~"},
        {"TMPDIR": "/nowhere", "TERM": ""},
        {"COLUMNS": "-1", "LINES": "x"},
    ],
    ids=lambda env: ",".join(env) + "=" + ",".join(env.values()),
)
def test_odd_environment(sandbox: Sandbox, env: dict[str, str]) -> None:
    """Odd values stop neither the first command nor the keeper it starts."""
    if "XDG_RUNTIME_DIR" in env and os.geteuid() == 0 and Path("/run/loopbox").exists():
        pytest.skip("this machine's root has a keeper of its own")
    done = sandbox("run", "--", "/bin/echo", "works", env=env)
    if "XDG_RUNTIME_DIR" in env:
        sandbox.ok("uninstall", env=env)

    assert (0, "works\n") == (done.returncode, done.stdout), done.stderr


def test_inside_a_box_no_keeper_starts(sandbox: Sandbox) -> None:
    """From inside, with the keeper gone, the error names the box, whatever LOOPBOX_NAME says."""
    script = f'echo in; read word; unset LOOPBOX_NAME; "{COMMAND}" run -- true; echo "status $?"'
    program = subprocess.Popen(
        [COMMAND, "run", "--", "sh", "-c", script], cwd=sandbox.project, env=sandbox.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "in\n"
    sandbox.ok("keeper", "stop")
    out, err = program.communicate("go\n", timeout=30)

    assert "status 125\n" == out
    assert err.startswith("loopbox: cannot start the keeper from inside a box: this is `shop`\n")


# -- bytes on the control socket ----------------------------------------------------------------


def _connect(sandbox: Sandbox) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(sandbox.runtime / "loopbox/keeper.sock"))
    return client


def _half(frame: bytes) -> bytes:
    return frame[: len(frame) // 2]


_REQUEST = build({"verb": "ls", "protocol": PROTOCOL, "version": "0.1.0"})
_JUNK = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n",
    "zeros": b"\0" * 4096,
    "empty fields": b"\0\0\0\1\0",
    "no key": b"\0\0\0\2=x",
    "half a length": b"\0\0",
    "half a frame": _half(_REQUEST),
    "huge length": b"\xff\xff\xff\xff" + b"x" * 65536,
    "long length": (60 << 20).to_bytes(4, "big") + b"x" * 300_000,
    "binary": bytes(range(256)) * 64,
}


def test_junk_on_the_control_socket_harms_nobody(sandbox: Sandbox) -> None:
    """Whatever bytes come, other clients are served, and nothing of it stays."""
    sandbox.ok("run", "--keep", "--", "true")
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    before = descriptors_of(keeper)
    noise = random.Random(4)
    for junk in (*_JUNK.values(), *(noise.randbytes(300) for _ in range(50))):
        with _connect(sandbox) as client:
            try:
                client.sendall(junk)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert sandbox.keeper_pid() == keeper

    assert sandbox.box_names() == ["shop"]
    until(lambda: descriptors_of(keeper) < before + 10, what="60 connections being closed")
    assert " ERROR " not in sandbox.log


def test_odd_requests_are_refused_in_words(sandbox: Sandbox) -> None:
    """Every verb with fields that are missing or mad is answered, without a fault of ours."""
    sandbox.ok("run", "--keep", "--", "true")
    keeper = sandbox.keeper_pid()
    verbs = ("enter", "lease", "identify", "show", "wait", "down", "make", "socket")
    mad = ("", "\x1b[2J", "-1", "1e999", "nan", "٣", "../../etc", "x" * 5000, "\udcff")
    for verb in verbs:
        for value in mad:
            fields = dict.fromkeys(
                ("name", "names", "port", "timeout", "grace", "family", "type", "forward", "branch",
                 "pid", "egress"), value,
            )  # fmt: skip
            with _connect(sandbox) as client:
                client.sendall(
                    build({"verb": verb, "protocol": PROTOCOL, "version": "0.1.0", **fields})
                )
                reply = _receive(client)
            assert "keeper failed" not in reply.get("message", ""), (verb, value, reply)

    assert sandbox.keeper_pid() == keeper
    sandbox.ok("down", "--all")


def _receive(client: socket.socket) -> dict[str, str]:
    data = b""
    while True:
        reply, data = feed(data)
        if reply is not None:
            return reply
        more = client.recv(65536)
        assert more
        data += more


def test_thousand_connections_and_slow_ones(sandbox: Sandbox) -> None:
    """With 1,000 idle or half-said connections open a command is served as ever."""
    sandbox.ok("run", "--keep", "--", "true")
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    before = descriptors_of(keeper)
    held: list[socket.socket] = []
    try:
        for number in range(900):
            held.append(_connect(sandbox))
            if number % 2:
                held[-1].sendall(_half(_REQUEST))
        assert sandbox.ok("run", "--", "echo", "served") == "served\n"
    finally:
        for client in held:
            client.close()

    # Doors that opened meanwhile are no leftovers; 900 connections would be.
    until(lambda: descriptors_of(keeper) < before + 20, what="the connections being closed")


def test_client_that_never_reads_blocks_nobody(sandbox: Sandbox) -> None:
    """One that asks a thousand times and takes no answer costs the others nothing."""
    sandbox.ok("run", "--keep", "--", "true")
    enter = build({"verb": "enter", "name": "shop", "protocol": PROTOCOL, "version": "0.1.0"})
    for request in (_REQUEST, enter):
        with _connect(sandbox) as greedy:
            greedy.setblocking(False)
            try:
                for _ in range(3000):
                    greedy.send(request)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
            assert sandbox.ok("run", "--", "echo", "served") == "served\n"
    sandbox.ok("down")

    assert sandbox.box_names() == []
    assert " ERROR " not in sandbox.log


def test_stopped_keeper_does_not_trap_the_client(sandbox: Sandbox) -> None:
    """While the keeper hangs a command waits and can be interrupted; then all goes on."""
    sandbox.ok("run", "--", "true")
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    try:
        waiting = sandbox.start("ls")
        until(lambda: Path(f"/proc/{waiting.pid}/stat").read_text().rpartition(")")[2][1] == "S")
        waiting.send_signal(signal.SIGINT)
        _out, err = waiting.communicate(timeout=20)
        assert "Traceback" not in err
    finally:
        os.kill(keeper, signal.SIGCONT)

    assert sandbox.ok("run", "--", "echo", "on") == "on\n"
