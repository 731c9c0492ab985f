"""`loopbox up` on lab files: real routers in real boxes, cut and mended, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from labworld import has_frr

from harness import Sandbox, traces, until
from loopbox.lab.memory import Memory
from loopbox.lab.runner import view_of

EXAMPLES = Path(__file__).parents[2] / "examples" / "labs"
TRIANGLE = str(EXAMPLES / "triangle.toml")
LOOPBACK_SESSIONS = {"r1-r2", "r1-r3", "r2-r3"}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
]


class Triangle:
    """The README's lab, up: cut and mended by commands, watched through FRR's own sockets."""

    def __init__(self, loopbox: Sandbox, name: str = "triangle") -> None:
        self.loopbox = loopbox
        self.name = name
        memory = Memory(loopbox.runtime / "loopbox")
        record = memory.find(name)
        assert record is not None
        lab = memory.lab_of(record)
        self._views = [view_of(record, lab, name) for name in ("r1", "r2", "r3")]

    def sessions(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(session, router) to what that router says of it."""
        return {
            (item["name"], view.name): item
            for view in self._views
            for item in view.document()["bgp"]["sessions"]
        }

    def established(self) -> set[str]:
        """Sessions that both ends call Established."""
        found = self.sessions()
        down = {key[0] for key, item in found.items() if item["state"] != "Established"}
        return {key[0] for key in found} - down

    def has_lost(self, session: str) -> bool:
        """Whether that session is down."""
        return session not in self.established()

    def is_converged(self) -> bool:
        """Whether all six sessions are up."""
        return len(self.established()) == 6


NAMES = {"r1-r2": "triangle", "r2-r3": "second", "r1-r3": "third"}
"""The link that is cut to the lab in which it is: three labs, so that three are cut at once."""


@pytest.fixture(scope="module")
def triangles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Triangle]]:
    """The triangle three times, brought up once for the tests that only cut and mend."""
    sandbox = Sandbox(tmp_path_factory.mktemp("lab"))
    try:
        starting = [sandbox.start("up", TRIANGLE, "--name", name, "-q") for name in NAMES.values()]
        for process in starting:
            output, talk = process.communicate()
            assert process.returncode == 0, output + talk
        yield {link: Triangle(sandbox, name) for link, name in NAMES.items()}
    finally:
        sandbox.close()


@pytest.fixture(scope="module")
def triangle(triangles: dict[str, Triangle]) -> Triangle:
    """The one that goes by the name in the file."""
    return triangles["r1-r2"]


def settled(runs: list[Path]) -> dict[str, object]:
    """What a lab could leave on the host: rules, mounts, listeners, and processes of its own."""
    found = {key: value for key, value in traces().items() if not key.startswith("namespaces")}
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue
    found["processes"] = [line for line in lines if any(str(run) in line for run in runs)]
    return found


def run_directories(sandbox: Sandbox) -> list[Path]:
    """Where the daemons of the labs that are up have their files."""
    records = (sandbox.runtime / "loopbox/labs").glob("*.json")
    return [Path(json.loads(path.read_text())["runs"]) for path in records]


def leftovers(sandbox: Sandbox, runs: list[Path]) -> list[Path]:
    """What is left of labs: records, and run directories that were there before."""
    labs = sandbox.runtime / "loopbox/labs"
    return [path for path in [labs, *runs] if path.exists()]


def test_comes_up_in_seconds_and_says_so(sandbox: Sandbox) -> None:
    """All sessions are Established when `up` returns, in under 10 s; nothing is left by `down`."""
    before = settled([])
    begun = time.monotonic()
    document = sandbox.json("up", TRIANGLE)
    seconds = time.monotonic() - begun
    is_converged = Triangle(sandbox).is_converged()
    runs = run_directories(sandbox)
    gone = sandbox.json("down", "triangle")
    sandbox.ok("keeper", "stop")

    assert is_converged
    assert seconds < 10
    assert [box["router_id"] for box in document["boxes"]] == [
        "10.255.0.1",
        "10.255.0.2",
        "10.255.0.3",
    ]
    assert gone == {"down": ["r1.triangle", "r2.triangle", "r3.triangle"]}
    assert leftovers(sandbox, runs) == []
    assert until(lambda: settled(runs) == before, what="no trace")


def test_a_second_up_changes_nothing(triangle: Triangle) -> None:
    """It says so, and every daemon is the process it was."""
    before = [box["processes"] for box in triangle.loopbox.json("ls")["boxes"]]
    document = triangle.loopbox.json("up", TRIANGLE)
    after = [box["processes"] for box in triangle.loopbox.json("ls")["boxes"]]

    assert document["changed"] is False
    assert before == after


def test_a_changed_file_is_not_laid_over_what_is_up(triangle: Triangle) -> None:
    """The error names the way: down, then up."""
    changed = triangle.loopbox.root / "triangle.toml"
    changed.write_text(Path(TRIANGLE).read_text().replace("10.255.0.3", "10.255.0.33"))
    done = triangle.loopbox("up", str(changed), "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "lab-changed"


def test_router_shows_id_and_reason(triangle: Triangle) -> None:
    """The document is the contract's, neighbours and routes in it."""
    found = triangle.loopbox.json("router", "r1.triangle")

    assert (found["router_id"], found["router_id_reason"]) == (
        "10.255.0.1",
        "highest loopback address",
    )
    assert [item["state"] for item in found["ospf"]["neighbors"]] == ["Full", "Full"]
    assert {"10.255.0.2/32", "10.255.0.3/32"} <= {item["prefix"] for item in found["routes"]}


def test_another_makers_router_id_is_compared(triangle: Triangle) -> None:
    """`--as`: what that maker's rule would choose of the same addresses, and why."""
    found = triangle.loopbox.json("router", "r2.triangle", "--as", "junos", "--as", "bird")

    assert found["router_ids_as"] == {
        "junos": {"router_id": "10.255.0.2", "reason": "lowest loopback address"},
        "bird": {"router_id": "10.254.0.1", "reason": "lowest address of all interfaces"},
    }


def test_the_drawing_shows_the_lab_as_it_is(triangle: Triangle) -> None:
    """`lab draw` of a lab that is up has its cut links and the states of its sessions."""
    loopbox = triangle.loopbox
    loopbox.ok("link", "cut", "r1", "r3", "--lab", "triangle")
    until(partial(triangle.has_lost, "r1-r3 on r1-r3"), deadline=15)
    drawn = loopbox.json("lab", "draw", TRIANGLE)
    text = loopbox.ok("lab", "draw", TRIANGLE)
    plan = loopbox.json("lab", "draw", TRIANGLE, "--plan")
    loopbox.ok("link", "mend", "r1", "r3", "--lab", "triangle")
    until(triangle.is_converged, deadline=20)

    assert (drawn["up"], drawn["cut"]) == (True, ["r1-r3"])
    assert drawn["sessions"]["r1-r3"] == "Established"
    assert drawn["sessions"]["r1-r3 on r1-r3"] != "Established"
    assert "r1-r3 (cut)" in drawn["svg"]
    assert text.startswith("triangle: 3 boxes, 3 links, 1 cut, 5 of 6 sessions Established")
    assert (plan["up"], plan["cut"], plan["sessions"]) == (False, [], {})


def test_router_runs_a_command_of_frrs_shell(triangle: Triangle) -> None:
    """Everything behind `--` is what vtysh is asked."""
    said = triangle.loopbox.ok("router", "r2.triangle", "--", "show", "ip", "ospf", "neighbor")

    assert "10.255.0.1" in said


@pytest.mark.parametrize("silent", [False, True], ids=["carrier", "silent"])
def test_any_cut_link_keeps_loopback_sessions(triangles: dict[str, Triangle], silent: bool) -> None:
    """The link's own session drops, sessions between loopbacks never did: no drop is counted."""
    how = ("--silent",) if silent else ()
    loopbox = triangles["r1-r2"].loopbox
    before = {name: triangle.sessions() for name, triangle in triangles.items()}
    for name, triangle in triangles.items():
        loopbox.ok("link", "cut", *name.split("-"), *how, "--lab", triangle.name)
    links = loopbox.json("link", "ls")["links"]
    states = {(link["name"], link["lab"]): link["state"] for link in links}
    for name, triangle in triangles.items():
        until(partial(triangle.has_lost, f"{name} on {name}"), deadline=15)
    after = {name: triangle.sessions() for name, triangle in triangles.items()}
    pings = {}
    for name, triangle in triangles.items():
        left, right = name.split("-")
        ends = ("-I", f"10.255.0.{left[1]}", f"10.255.0.{right[1]}")
        pings[name] = loopbox(
            "exec", f"{left}.{triangle.name}", "--", "ping", "-c1", "-W2", *ends
        ).returncode
    for name, triangle in triangles.items():
        loopbox.ok("link", "mend", name, "--lab", triangle.name)
    for triangle in triangles.values():
        until(triangle.is_converged, deadline=20)

    for name, triangle in triangles.items():
        assert states[name, triangle.name] == ("silent" if silent else "cut")
        for key, item in after[name].items():
            if key[0] in LOOPBACK_SESSIONS:
                was = before[name][key]
                assert (item["state"], item["drops"]) == ("Established", was["drops"])
                assert item["uptime_s"] >= was["uptime_s"]
    assert set(pings.values()) == {0}


def test_without_any_path_sessions_end_within_the_hold_time(triangle: Triangle) -> None:
    """Alone, r1 keeps its lo and loses its sessions in 3 s; mended, they return."""
    loopbox = triangle.loopbox
    loopbox.ok("link", "cut", "r1", "r2", "--lab", "triangle")
    loopbox.ok("link", "cut", "r1", "r3", "--lab", "triangle")
    alone = {"r2-r3", "r2-r3 on r2-r3"}
    until(lambda: triangle.established() == alone, deadline=5)
    ping = loopbox("exec", "r1.triangle", "--", "ping", "-c1", "-W1", "10.255.0.1")
    loopbox.ok("link", "mend", "r1-r2", "--lab", "triangle")
    loopbox.ok("link", "mend", "r1-r3", "--lab", "triangle")
    until(triangle.is_converged, deadline=20)

    assert ping.returncode == 0


def test_a_plain_box_reaches_through_routers(sandbox: Sandbox) -> None:
    """Static routes, a bridge and forwarding work: packets cross a router, and stop when cut.

    What a cut leaves unreachable does not leave by another way: boxes of a lab have none.
    """
    sandbox.ok("up", str(EXAMPLES / "virtual.toml"))
    ping = ("exec", "client.virtual", "--", "ping", "-c1", "-W2", "10.50.1.2")
    reached = until(lambda: sandbox(*ping).returncode == 0, what="web1 behind the director")
    sandbox.ok("link", "cut", "farm")
    cut = sandbox(*ping).returncode
    sandbox.ok("link", "mend", "farm")
    until(lambda: sandbox(*ping).returncode == 0, what="web1 after mending")
    runs = run_directories(sandbox)
    sandbox.ok("down", "virtual")

    assert (reached, cut) == (True, 1)
    assert leftovers(sandbox, runs) == []


def test_health_checks_move_the_anycast_address(sandbox: Sandbox) -> None:
    """The nearest server has the address while its check succeeds; its service runs in the box."""
    ill = sandbox.root / "ill"
    text = (EXAMPLES / "anycast.toml").read_text().replace("/tmp/near-is-ill", str(ill))
    (sandbox.project / "anycast.toml").write_text(text)
    sandbox.ok("up", "anycast.toml")

    def way() -> list[str]:
        routes = sandbox.json("router", "r1.anycast")["routes"]
        found = [item for item in routes if item["prefix"] == "10.99.0.53/32"]
        return [hop["device"] for item in found for hop in item["via"]]

    until(lambda: way() == ["near"], what="the way to the near server")
    served = sandbox.ok("exec", "client.anycast", "--", "curl", "-sI", "http://10.99.0.53:8053/")
    ill.touch()
    until(lambda: way() == ["far"], what="the way to the far server")
    runs = run_directories(sandbox)
    sandbox.ok("down")

    assert served.startswith("HTTP/1.0 200")
    assert leftovers(sandbox, runs) == []


@pytest.mark.parametrize(
    "said", [None, "routers start"], ids=["before the boxes", "while routers start"]
)
def test_ctrl_c_leaves_nothing(sandbox: Sandbox, said: str | None) -> None:
    """Interrupted at whatever point, `up` unmakes what it made and ends with 130."""
    before = settled([])
    text = "".join(
        f'[box.r{n}]\nloopback = "auto"\nospf = true\nbgp = {{ as = 65000 }}\n' for n in range(12)
    ) + "".join(f'[[link]]\nends = ["r{n}", "r{(n + 1) % 12}"]\n' for n in range(12))
    (sandbox.project / "ring.toml").write_text(text)
    process = sandbox.start("up", "ring.toml")
    assert process.stderr is not None
    if said is None:
        until((sandbox.runtime / "loopbox/labs/ring.json").exists, what="the record")
    else:
        while said not in (line := process.stderr.readline()):
            assert line, "it ended"
    runs = run_directories(sandbox)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    sandbox("keeper", "stop")

    assert process.returncode == 130
    assert leftovers(sandbox, runs) == []
    assert until(lambda: settled(runs) == before, what="no trace")


def test_after_a_kill_the_next_up_begins_anew(sandbox: Sandbox) -> None:
    """SIGKILL in the middle of `up` leaves a lab that the next one replaces, or `down` removes."""
    process = sandbox.start("up", TRIANGLE)
    until(lambda: list(sandbox.runtime.glob("loopbox/boxes/r*")), what="the first box")
    process.kill()
    process.communicate()
    killed = run_directories(sandbox)
    again = sandbox.json("up", TRIANGLE)
    runs = killed + run_directories(sandbox)
    sandbox.ok("down", "triangle")

    assert again["changed"] is True
    assert leftovers(sandbox, runs) == []


def test_what_a_killed_writer_left_goes_with_the_lab(sandbox: Sandbox) -> None:
    """A record half written when `up` was killed does not stay behind."""
    sandbox.ok("up", TRIANGLE)
    draft = sandbox.runtime / "loopbox/labs/.triangle.json.4711"
    draft.write_text("{")
    runs = run_directories(sandbox)
    sandbox.ok("down", "triangle")

    assert leftovers(sandbox, runs) == []


def test_a_lab_outlives_its_keeper(sandbox: Sandbox) -> None:
    """Killed, the keeper's successor finds the routers; sessions did not notice."""
    sandbox.ok("up", TRIANGLE)
    lab = Triangle(sandbox)
    before = lab.sessions()
    pid = sandbox.keeper_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    again = sandbox.json("up", TRIANGLE)
    after = lab.sessions()
    runs = run_directories(sandbox)
    sandbox.ok("down", "triangle")

    assert again["changed"] is False
    assert {key: item["drops"] for key, item in before.items()} == {
        key: item["drops"] for key, item in after.items()
    }
    assert leftovers(sandbox, runs) == []


TWO = '[box.a]\nloopback = ["10.255.0.1/32"]\n[box.b]\nloopback = ["10.255.0.2/32"]\n'
BAD_FILES = {
    "unknown box": TWO + '[[link]]\nends = ["a", "c"]\n',
    "duplicate address": TWO.replace("0.2/32", "0.1/32"),
    "bad AS number": TWO + "[box.c]\nbgp = { as = 0 }\n",
    "cycle": 'extends = "bad.toml"\n' + TWO,
    "overlapping prefix": TWO
    + '[[link]]\nends = ["a", "b"]\naddresses = ["10.0.0.0/31", "10.0.0.1/31"]\n'
    + '[[link]]\nends = ["a", "b"]\naddresses = ["10.0.0.0/30", "10.0.0.2/30"]\n',
    "10,000 boxes": "".join(f"[box.b{n}]\n" for n in range(10_000)),
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_gets_one_line_and_makes_nothing(sandbox: Sandbox, text: str) -> None:
    """Exit status 2, one line that names the file, a remedy; no keeper was started for it."""
    (sandbox.project / "bad.toml").write_text(text)
    done = sandbox("up", "bad.toml")
    lines = done.stderr.splitlines()

    assert done.returncode == 2
    assert "bad.toml" in lines[0]
    assert [line.partition(":")[0] for line in lines] == ["loopbox", "hint"]
    assert sandbox.keeper_pid() is None


def test_unknown_links_and_routers_are_named(triangle: Triangle) -> None:
    """Usage errors say what there is."""
    loopbox = triangle.loopbox
    answers = [
        loopbox("link", "cut", "r1-r9", "--lab", "triangle"),
        loopbox("link", "cut", "r1", "r9", "--lab", "triangle"),
        loopbox("link", "cut", "r1", "r2"),
        loopbox("link", "cut", "a", "b", "c"),
        loopbox("router", "r9.triangle"),
        loopbox("link", "mend", "r1-r2", "--lab", "square"),
    ]

    assert [done.returncode for done in answers] == [2, 2, 2, 2, 2, 1]
    assert "r1-r2, r2-r3, r1-r3" in answers[0].stderr


def test_missing_frr_is_said_with_the_remedy(sandbox: Sandbox) -> None:
    """Where FRR's folders are empty, `up` says how to install it and makes nothing."""
    if os.geteuid() != 0:
        pytest.skip("covers FRR's folder by a mount: needs root")
    covered = [path for path in ("/usr/lib/frr", "/usr/libexec/frr") if os.path.isdir(path)]
    cover = "; ".join(f"mount -t tmpfs none {path}" for path in covered)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{cover}; exec "$@"', "sh", "loopbox", "up", TRIANGLE],
        env={**sandbox.env, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "FRR is not installed" in done.stderr
    assert "apt-get install" in done.stderr
    assert sandbox.box_names() == []
