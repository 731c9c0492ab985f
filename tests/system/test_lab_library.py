"""`loopbox.lab()` and the fixture `loopbox_lab`, as a network engineer's own tests use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from labworld import has_frr

import loopbox
from harness import Sandbox, until
from loopbox.errors import ConfigError, UsageError

TRIANGLE = Path(__file__).parents[2] / "examples" / "labs" / "triangle.toml"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
]


@pytest.fixture
def at_home(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """This process talks to the sandbox's keeper."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, sandbox.env[variable])
    monkeypatch.chdir(sandbox.project)
    return sandbox


def test_a_lab_is_cut_watched_and_gone(at_home: Sandbox) -> None:
    """The loopback session survives a cut link, the link's own does not; nothing is left."""
    with loopbox.lab(TRIANGLE) as lab:
        r1 = lab["r1"].router
        before = r1.bgp("r2")
        lab.link("r1", "r2").cut()
        until(lambda: r1.bgp("r2", source="link").state != "Established", deadline=15)
        after = r1.bgp("r2")
        states = {name: link.state for name, link in lab.links.items()}
        ping = lab["r1"].run(
            ["ping", "-c1", "-W2", "-I", "10.255.0.1", "10.255.0.2"], stdout=subprocess.DEVNULL
        )
        with ping:
            reached = ping.wait(10) == 0
        lab.link("r1-r2").mend()
        lab.wait_converged(timeout=20)

        assert list(lab.boxes) == ["r1", "r2", "r3"]
        assert r1.router_id == "10.255.0.1"

    assert (before.state, after.state) == ("Established", "Established")
    assert before.drops == after.drops
    assert states == {"r1-r2": "cut", "r2-r3": "up", "r1-r3": "up"}
    assert reached
    assert at_home.box_names() == []


def test_sockets_live_in_a_labs_boxes(at_home: Sandbox) -> None:
    """A listener on one router's loopback is reached from another's, through the lab."""
    with (
        loopbox.lab(TRIANGLE) as lab,
        lab["r2"].listen(5432, host="10.255.0.2") as listener,
        lab["r1"].socket() as client,
    ):
        client.settimeout(5)
        client.connect(("10.255.0.2", 5432))
        accepted, peer = listener.accept()
        accepted.close()

    assert peer[0] == "10.255.0.1" or peer[0].startswith("10.254.")


def test_two_labs_of_one_file_are_up_at_once(at_home: Sandbox) -> None:
    """By another name the same file is another lab; what is cut in one is not in the other."""
    with loopbox.lab(TRIANGLE, name="one") as one, loopbox.lab(TRIANGLE, name="two") as two:
        one.link("r2", "r3").cut()
        states = (one.link("r2", "r3").state, two.link("r2", "r3").state)

    assert states == ("cut", "up")


def test_a_lab_that_was_up_stays(at_home: Sandbox) -> None:
    """The context takes down only what it brought up."""
    at_home.ok("up", str(TRIANGLE))
    with loopbox.lab(TRIANGLE) as lab:
        inside = sorted(box.name for box in lab.boxes.values())

    assert sorted(at_home.box_names()) == inside
    at_home.ok("down", "triangle")


def test_mistakes_are_the_librarys_errors(at_home: Sandbox) -> None:
    """A bad file is a ConfigError that names it; an unknown link or box says so."""
    Path("bad.toml").write_text('[box.a]\n[[link]]\nends = ["a", "b"]\n')
    with pytest.raises(ConfigError, match=r"bad\.toml"), loopbox.lab("bad.toml"):
        pass
    Path("plain.toml").write_text('[box.a]\n[box.b]\n[[link]]\nends = ["a", "b"]\n')
    with loopbox.lab("plain.toml") as lab:
        with pytest.raises(UsageError, match="no router"):
            _ = lab["a"].router
        with pytest.raises(UsageError, match="cannot find link"):
            lab.link("a-c")
        with pytest.raises(KeyError):
            _ = lab["c"]


SUITE = """
def test_it(loopbox_lab):
    lab = loopbox_lab("pair.toml")
    lab.link("r1", "r2").cut()
    assert lab["r1"].router.router_id == "10.255.0.1"

def test_again(loopbox_lab):
    assert loopbox_lab("pair.toml").link("r1", "r2").state == "up"
"""
PAIR = """
[box.r1]
loopback = "auto"
ospf = true
[box.r2]
loopback = "auto"
ospf = true
[[link]]
ends = ["r1", "r2"]
"""


def test_the_fixture_gives_each_test_its_own(at_home: Sandbox, tmp_path: Path) -> None:
    """Two tests of one file, side by side in two workers, each with a lab of its own."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pair.toml").write_text(PAIR)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"),
            *(str(tmp_path / "test_suite.py"), "-c", os.devnull, f"--rootdir={tmp_path}"),
        ],
        env={**os.environ, **at_home.env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert at_home.box_names() == []
