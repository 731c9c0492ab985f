"""The triangle with real routers: loopback sessions stay up when links go down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labworld import LabWorld, has_frr, until

from loopbox.lab.topology import load

TRIANGLE = Path(__file__).parents[2] / "examples" / "labs" / "triangle.toml"
LOOPBACK_SESSIONS = {"r1-r2", "r1-r3", "r2-r3"}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
]


@pytest.fixture(scope="module")
def triangle() -> Iterator[LabWorld]:
    """Three routers, converged."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: run as root")
    with LabWorld(load(TRIANGLE)) as world:
        until(lambda: world.established() == set(world.sessions()), seconds=20)
        yield world


def test_router_ids_are_the_loopbacks(triangle: LabWorld) -> None:
    """Each daemon runs under the ID that the rule predicted."""
    expected = {box.name: str(box.router_id.value) for box in triangle.lab.boxes if box.router_id}
    found = {name: triangle.ask(name, "ospf")["routerId"] for name in triangle.routers}

    assert expected == found


def test_loopbacks_are_stub_hosts_and_127_stays_home(triangle: LabWorld) -> None:
    """The router LSA has the loopback as a stub /32 and nothing of 127/8."""
    text = triangle.routers["r1"].ask("ospfd", "show ip ospf database router self-originate")

    assert "(Link ID) Net: 10.255.0.1\n     (Link Data) Network Mask: 255.255.255.255" in text
    assert "127." not in text


@pytest.mark.parametrize(
    ("name", "silent"),
    [("r1-r2", False), ("r2-r3", False), ("r1-r3", False), ("r1-r2", True)],
    ids=["r1-r2", "r2-r3", "r1-r3", "r1-r2-silent"],
)
def test_a_cut_link_keeps_loopback_sessions_and_drops_its_own(
    triangle: LabWorld, name: str, silent: bool
) -> None:
    """Loopback sessions keep their uptime; the session on the link's addresses falls."""
    before = triangle.sessions()
    link = triangle.lab.link(name)
    triangle.cut(link, silent=silent)
    until(lambda: f"{name} on {name}" not in triangle.established(), seconds=10)
    after = triangle.sessions()
    left, right = name.split("-")
    reached = triangle.pings(
        left,
        str(triangle.lab.box(right).source_address()),
        source=str(triangle.lab.box(left).source_address()),
    )
    triangle.mend(link)
    until(lambda: triangle.established() == set(before), seconds=20)

    assert {key: [end.established for end in before[key]] for key in LOOPBACK_SESSIONS} == {
        key: [end.established for end in after[key]] for key in LOOPBACK_SESSIONS
    }
    assert reached


def test_cutting_all_paths_ends_the_sessions_and_mending_brings_them_back(
    triangle: LabWorld,
) -> None:
    """Alone, r1 loses its sessions within the hold time, keeps its lo, and returns."""
    links = triangle.lab.links_of("r1")
    triangle.cut(*links)
    until(lambda: triangle.established() == {"r2-r3", "r2-r3 on r2-r3"}, seconds=5)
    own_lo = triangle.pings("r1", "10.255.0.1")
    triangle.mend(*links)
    until(lambda: triangle.established() == set(triangle.sessions()), seconds=20)

    assert own_lo


def test_a_plain_user_runs_the_same_triangle() -> None:
    """Without root, in a user namespace with the identity map, the triangle converges too."""
    command = [sys.executable, str(Path(__file__).with_name("rootless_triangle.py")), str(TRIANGLE)]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    if result.returncode == 3:
        pytest.skip(f"no user namespaces here: {result.stderr.strip()}")

    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"converged": True, "held": True, "dropped": True}
