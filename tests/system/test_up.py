"""`loopbox up`: the services start in order, talk side by side, and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import Sandbox, until

pytestmark = pytest.mark.system

PYTHON = sys.executable
SERVE = f"exec {PYTHON} serve.py"
SERVER = """
import os, signal, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
print(name, "starts in", os.path.basename(os.getcwd()), flush=True)
for needed in sys.argv[3:]:
    socket.create_connection(("localhost", int(needed)), 5).close()
    print(name, "found", needed, flush=True)
server = socket.create_server(("127.0.0.1", port))
print(name, "serves", os.environ.get("LOOPBOX_NAME"), os.environ.get("MODE"), flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print(name, "ends", flush=True), sys.exit(0)))
signal.pause()
"""

SERVICES = f"""
[services.web]
run = "{SERVE} web 3000 5432 6379"
ready = 3000
after = ["postgres", "redis"]
env = {{ MODE = "test" }}

[services.postgres]
run = ["{PYTHON}", "serve.py", "postgres", "5432"]
ready = 5432

[services.redis]
run = "{SERVE.replace("serve.py", "../serve.py")} redis 6379 5432"
ready = 6379
after = ["postgres"]
cwd = "part"
"""


class Up:
    """A running `loopbox up` and what it has said so far."""

    def __init__(self, sandbox: Sandbox, *arguments: str, cwd: Path | None = None) -> None:
        self.process = sandbox.start("up", *arguments, cwd=cwd)
        self.lines: list[str] = []
        self.talk: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.talk))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        lines += []
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))

    def until_said(self, text: str) -> None:
        """Until that is in what a service or `up` itself has said."""
        try:
            until(lambda: any(text in line for line in (*self.lines, *self.talk)), deadline=30)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {self.lines} and {self.talk}") from None

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, and give the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status, once all it said has been read."""
        status = self.process.wait(30)
        for reader in self._readers:
            reader.join(10)
        return status


@pytest.fixture
def project(sandbox: Sandbox) -> Path:
    """A project with three services."""
    write(sandbox.project, SERVICES)
    return sandbox.project


def write(folder: Path, text: str, *, name: str = "loopbox.toml") -> None:
    """A project's files."""
    (folder / name).write_text(text)
    (folder / "serve.py").write_text(SERVER)
    (folder / "part").mkdir(exist_ok=True)


def services(sandbox: Sandbox) -> list[str]:
    """The commands that run in the box `shop`, [] when it is not up."""
    boxes = sandbox.json("ls")["boxes"]
    return [process["command"] for box in boxes for process in box["processes"]]


@pytest.mark.usefixtures("project")
def test_services_start_in_order_and_end_together(sandbox: Sandbox) -> None:
    """Each waits for the ports of those it comes after; Ctrl-C ends all, and the box with them."""
    up = Up(sandbox)
    up.until_said("box shop is up at 127.")
    status = up.end()

    assert (0, []) == (status, sandbox.box_names())
    assert [
        "postgres | postgres starts in shop",
        "postgres | postgres serves shop None",
        "redis    | redis starts in part",
        "redis    | redis found 5432",
        "redis    | redis serves shop None",
        "web      | web starts in shop",
        "web      | web found 5432",
        "web      | web found 6379",
        "web      | web serves shop test",
    ] == up.lines[:9]
    assert {"web      | web ends", "redis    | redis ends", "postgres | postgres ends"} == set(
        up.lines[9:]
    )
    said = "\n".join(up.talk)
    assert re.findall(r"(\w+) is ready: localhost:\d+ in box shop", said) == [
        "postgres",
        "redis",
        "web",
    ]


@pytest.mark.usefixtures("project")
def test_json_is_one_object_a_line(sandbox: Sandbox) -> None:
    """A program can follow: what services say, when they are ready and how they end; an error."""
    write(
        sandbox.project,
        f"""
[services.web]
run = "exec {PYTHON} serve.py web 3000"
ready = 3000
[services.job]
run = "echo fails; exit 3"
after = ["web"]
""",
    )
    done = sandbox("--json", "up")
    told = [json.loads(line) for line in done.stdout.splitlines()]

    assert 1 == done.returncode
    assert [
        ("line", "web", "web starts in shop"),
        ("line", "web", "web serves shop None"),
        ("ready", "web", 3000),
    ] == [(one["event"], one["service"], one.get("text", one.get("port"))) for one in told[:3]]
    assert {"event": "ended", "box": "shop", "service": "job", "status": 3} in told
    assert "cannot go on: service `job` failed" == told[-1]["error"]["message"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_them_too(sandbox: Sandbox, number: signal.Signals) -> None:
    """A closed terminal or a TERM leaves no service behind."""
    up = Up(sandbox)
    up.until_said("box shop is up at 127.")

    assert (0, []) == (up.end(number), services(sandbox))


@pytest.mark.usefixtures("project")
def test_ctrl_c_while_starting(sandbox: Sandbox) -> None:
    """What has started by then ends as well."""
    write(sandbox.project, SERVICES.replace("ready = 3000", "ready = 3001"))
    up = Up(sandbox)
    up.until_said("web serves shop test")

    assert (0, []) == (up.end(), services(sandbox))


@pytest.mark.usefixtures("project")
def test_second_up_leaves_what_runs_alone(sandbox: Sandbox) -> None:
    """It says so and is done; the first goes on, with the same processes."""
    first = Up(sandbox)
    first.until_said("box shop is up at 127.")
    before = sandbox.json("show")["processes"]

    again = sandbox("up")

    assert (0, "") == (again.returncode, again.stdout)
    assert [f"loopbox: {name} runs already" for name in ("postgres", "redis", "web")] == [
        line for line in again.stderr.splitlines() if "already" in line
    ]
    assert before == sandbox.json("show")["processes"]
    assert first.process.poll() is None
    first.end()


@pytest.mark.usefixtures("project")
def test_up_mends_what_is_missing(sandbox: Sandbox) -> None:
    """When `up` itself was killed, the next one starts only what no longer runs."""
    first = Up(sandbox)
    first.until_said("box shop is up at 127.")
    first.process.kill()
    first.wait()
    before = {one["command"]: one["pid"] for one in sandbox.json("show")["processes"]}
    [web] = [pid for command, pid in before.items() if "web" in command]
    os.kill(web, signal.SIGKILL)
    until(lambda: len(services(sandbox)) == 2)

    second = Up(sandbox)
    second.until_said("box shop is up at 127.")
    after = {one["command"]: one["pid"] for one in sandbox.json("show")["processes"]}
    status = second.end()

    assert {"postgres runs already", "redis runs already"} == {
        line.removeprefix("loopbox: ") for line in second.talk if "already" in line
    }
    assert before.keys() == after.keys()
    assert {command for command in before if before[command] != after[command]} == {
        command for command in before if "web" in command
    }
    assert status == 0
    sandbox.ok("down")


def test_a_service_that_fails_ends_the_others(sandbox: Sandbox) -> None:
    """Its status is said beside its lines, and `up` fails with its name."""
    write(
        sandbox.project,
        f"""
[services.steady]
run = "{SERVE} steady 4000"
ready = 4000
[services.failing]
run = "echo about to fail; until [ -e go ]; do sleep 0.05; done; exit 7"
""",
    )
    up = Up(sandbox)
    up.until_said("box shop is up at 127.")
    (sandbox.project / "go").touch()
    status = up.wait()

    assert (1, []) == (status, services(sandbox))
    assert "failing | about to fail" in up.lines
    assert "failing | ended with status 7" in up.lines
    assert "steady  | steady ends" in up.lines
    assert any("service `failing` failed" in line for line in up.talk)


def test_a_service_that_ends_before_it_is_ready(sandbox: Sandbox) -> None:
    """`up` does not wait for a port that will never come; what started before ends too."""
    write(
        sandbox.project,
        f"""
[services.first]
run = "{SERVE} first 4000"
ready = 4000
[services.second]
run = "echo no such table; exit 3"
ready = 4001
[services.never]
run = "echo never"
""",
    )
    done = sandbox("up", timeout=30)

    assert (1, []) == (done.returncode, services(sandbox))
    assert "second | no such table\n" in done.stdout
    assert "first  | first ends\n" in done.stdout
    assert "never" not in done.stdout
    assert "`second`: it ended with status 3 before port 4001 was ready" in done.stderr


def test_services_that_are_done_are_no_failure(sandbox: Sandbox) -> None:
    """Status 0 is the end of one service; `up` ends with the last, with status 0."""
    write(
        sandbox.project,
        """
[services.a]
run = "echo one"
[services.b]
run = ["sh", "-c", "echo two; printf 'no newline'"]
""",
    )
    done = sandbox("up", timeout=30)

    assert (0, []) == (done.returncode, sandbox.box_names())
    assert {
        "a | one",
        "a | ended with status 0",
        "b | two",
        "b | no newline",
        "b | ended with status 0",
    } == set(done.stdout.splitlines())


def test_hostile_log_lines_are_made_printable(sandbox: Sandbox) -> None:
    """Escape sequences, bytes that are no text, and a line of a megabyte harm nothing."""
    write(
        sandbox.project,
        """
[services.rude]
run = '''
printf 'a\\033]0;owned\\007b\\377c\\n'; head -c 1200000 /dev/zero | tr '\\0' x; echo; echo end
'''
""",
    )
    done = sandbox("up", timeout=30)

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "rude | a\\x1b]0;owned\\x07b\ufffdc" in done.stdout
    assert "rude | end" in done.stdout


def test_a_service_that_ignores_term_is_killed(sandbox: Sandbox) -> None:
    """A second Ctrl-C does not wait for the grace to pass."""
    write(
        sandbox.project,
        """
[services.stubborn]
run = "trap '' TERM; echo started; while :; do sleep 0.2; done"
""",
    )
    up = Up(sandbox)
    up.until_said("started")
    up.until_said("box shop is up at 127.")
    up.process.send_signal(signal.SIGINT)
    up.until_said("again")

    assert (0, []) == (up.end(), services(sandbox))


def test_daemons_of_a_service_end_with_it(sandbox: Sandbox) -> None:
    """A service that left children in sessions of their own takes the whole box down with it."""
    write(
        sandbox.project,
        """
[services.parent]
run = "setsid sleep 601 & echo started; wait"
""",
    )
    up = Up(sandbox)
    up.until_said("started")
    up.until_said("box shop is up at 127.")
    up.end()

    until(lambda: services(sandbox) == [], what="the end of the daemon")


def test_another_file_and_another_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    """`up FILE` uses that file's name, forwards, services and folder from anywhere."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write(
        folder,
        f"""
name = "other"
forward = [6390]
[services.web]
run = "{SERVE} web 3000"
ready = 3000
""",
        name="dev.toml",
    )
    up = Up(sandbox, str(folder / "dev.toml"))
    up.until_said("box other is up at 127.")
    box = sandbox.json("show", "other")
    up.end()

    assert ([6390], str(folder)) == (box["forward"], box["directory"])
    assert "web | web starts in elsewhere" in up.lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no loopbox.toml here or above"),
        ("name = 'shop'", "it declares no services"),
        ("[services.web]\nready = 3000", "has no `run`"),
        ("[services.web]\nrun = 'x'\nafter = ['db']", "names no service: `db`"),
        ("[services.web]\nrun = 'x'\nport = 3", "line 3"),
        ("[services.web\n", "line 1"),
        ("[services.web]\nrun = 'x'\ncwd = 'nowhere'", "nowhere` is no directory"),
    ],
)
def test_mistakes_in_the_file(sandbox: Sandbox, text: str | None, said: str) -> None:
    """Exit 2, the line and what to write, before anything starts."""
    if text is not None:
        write(sandbox.project, text)
    done = sandbox("up")

    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert sandbox.box_names() == []


def test_a_program_that_is_missing(sandbox: Sandbox) -> None:
    """Status 127 of the service, as a shell has it."""
    write(sandbox.project, '[services.web]\nrun = ["no-such-program"]\nready = 3000\n')
    done = sandbox("up", timeout=30)

    assert done.returncode == 1
    assert "no such command" in done.stdout
    assert "status 127" in done.stderr


def test_on_a_terminal_ctrl_c_is_enough(sandbox: Sandbox) -> None:
    """From a shell script's point of view: SIGINT to the whole foreground group ends all."""
    write(sandbox.project, f'[services.web]\nrun = "{SERVE} web 3000"\nready = 3000\n')
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "loopbox"), "up"],
        cwd=sandbox.project,
        env=sandbox.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            if "is up at" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = output.read()

    assert (0, True) == (process.wait(20), "web ends" in rest)
    assert services(sandbox) == []


def test_a_service_that_writes_its_title_over_its_environment(sandbox: Sandbox) -> None:
    """Redis does: it is known to a second `up` all the same, and ends with Ctrl-C."""
    (sandbox.project / "loopbox.toml").write_text(
        """
[services.redis]
run = "redis-server --port 6379 --save ''"
ready = 6379
"""
    )
    first = sandbox.start("up")
    sandbox.ok("wait", "shop", "6379", "--timeout", "20")

    again = sandbox("up")
    assert (0, True) == (again.returncode, "redis runs already" in again.stderr)
    first.send_signal(signal.SIGINT)
    _out, err = first.communicate(timeout=20)
    assert "Traceback" not in err
    until(lambda: sandbox.box_names() == [], what="the box leaving with Redis")
