"""Labs off the beaten track: a router's own frr.conf, shaped links, stock timers, boxes ended."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labworld import has_frr

from harness import Sandbox, until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
]

OWN = """\
[box.r1]
loopback = ["10.255.0.1/32"]
config = "r1.conf"
ospf = true
bgp = { as = 65000 }
[box.r2]
loopback = ["10.255.0.2/32"]
ospf = true
bgp = { as = 65000 }
[[link]]
ends = ["r1", "r2"]
interfaces = ["eth7", "eth8"]
rate = "10mbit"
"""
TC = shutil.which("tc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "tc"
"""A plain user's path may not lead there."""
CONF = """\
hostname r1
ip prefix-list MINE seq 5 permit 10.0.0.0/8
interface eth7
 ip ospf network point-to-point
 ip ospf dead-interval minimal hello-multiplier 5
exit
router ospf
 ospf router-id 10.9.9.9
 network 0.0.0.0/0 area 0
exit
router bgp 65000
 timers bgp 1 3
 neighbor 10.255.0.2 remote-as 65000
 neighbor 10.255.0.2 update-source 10.255.0.1
 neighbor 10.255.0.2 timers connect 1
exit
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A lab of one router with its own frr.conf and one without, up."""
    sandbox = Sandbox(tmp_path_factory.mktemp("own"))
    try:
        (sandbox.project / "own.toml").write_text(OWN)
        (sandbox.project / "r1.conf").write_text(CONF)
        sandbox.ok("up", "own.toml")
        yield sandbox
    finally:
        sandbox.close()


def test_a_routers_own_configuration_is_what_runs(own: Sandbox) -> None:
    """Its ID, its prefix list and its session are those of r1.conf, on a device named there."""
    running = own.ok("router", "r1.own", "--", "show", "running-config")
    document = own.json("router", "r1.own")
    [session] = document["bgp"]["sessions"]

    assert "ip prefix-list MINE seq 5 permit 10.0.0.0/8" in running.splitlines()
    assert (document["router_id"], document["router_id_reason"]) == (
        "10.9.9.9",
        "as r1.conf has it",
    )
    assert [item["interface"] for item in document["ospf"]["neighbors"]] == ["eth7"]
    assert (session["box"], session["state"]) == ("r2", "Established")


def test_its_configuration_is_what_is_shown_and_exported(own: Sandbox) -> None:
    """`lab config` prints it; for containerlab the device is renamed in it."""
    shown = own.ok("lab", "config", "own.toml", "r1")
    own.ok("export", "own.toml", "--to", "containerlab", "-o", "out")
    exported = (own.project / "out/r1/frr.conf").read_text()

    assert shown.strip() == CONF.strip()
    assert exported == CONF.replace("eth7", "eth1")


def test_a_link_has_the_rate_that_is_written(own: Sandbox) -> None:
    """Both ends send no faster than the file says."""
    queues = {
        device: own.ok("exec", f"{box}.own", "--", TC, "qdisc", "show", "dev", device)
        for box, device in (("r1", "eth7"), ("r2", "eth8"))
    }

    assert {device: "rate 10Mbit" in text for device, text in queues.items()} == {
        "eth7": True,
        "eth8": True,
    }


def test_a_box_shows_its_addresses_links_and_router(own: Sandbox) -> None:
    """`ls` and `show` tell of a lab's box what the contract's BOX has."""
    shown = own.json("show", "r2.own")
    listed = {box["name"]: box for box in own.json("ls")["boxes"]}
    [link] = shown["links"]

    assert shown["loopback"] == ["127.0.0.1/8", "::1/128", "10.255.0.2/32"]
    assert shown["egress"]["policy"] == "none"
    assert (link["name"], link["peer"], link["state"]) == ("r1-r2", "r1.own", "up")
    assert shown["router"]["router_id"] == "10.255.0.2"
    assert [item["state"] for item in shown["router"]["ospf"]["neighbors"]] == ["Full"]
    assert [item["state"] for item in shown["router"]["bgp"]["sessions"]] == ["Established"]
    assert listed["r1.own"]["links"][0]["peer"] == "r2.own"
    assert listed["r1.own"]["router"]["router_id"] == "10.9.9.9"


def test_links_go_with_a_box_and_the_lab_with_the_last(sandbox: Sandbox) -> None:
    """`down` of one box is told by `link ls`; when none is up the lab is forgotten."""
    (sandbox.project / "three.toml").write_text(
        "".join(f'[box.{name}]\nloopback = "auto"\n' for name in "abc")
        + '[[link]]\nends = ["a", "b"]\n[[link]]\nends = ["b", "c"]\n'
    )
    sandbox.ok("up", "three.toml")
    sandbox.ok("link", "cut", "b-c", "--silent")
    before = states(sandbox)
    sandbox.ok("down", "a.three")
    after = states(sandbox)
    shown = sandbox.json("show", "b.three")["links"]
    again = sandbox.json("up", "three.toml")["changed"]
    anew = states(sandbox)
    sandbox.ok("down", "a.three", "b.three")
    sandbox.ok("down", "c.three")

    assert before == {"a-b": "up", "b-c": "silent"}
    assert after == {"a-b": "gone", "b-c": "silent"}
    assert [(item["peer"], item["state"], item["how"]) for item in shown] == [
        ("a.three", "cut", "gone"),
        ("c.three", "cut", "silent"),
    ]
    assert (again, anew) == (True, {"a-b": "up", "b-c": "up"})
    assert states(sandbox) == {}
    assert not list((sandbox.runtime / "loopbox").glob("labs/*"))


def states(sandbox: Sandbox) -> dict[str, str]:
    """Link to state, as `link ls` has it."""
    return {item["name"]: item["state"] for item in sandbox.json("link", "ls")["links"]}


def test_loss_is_there_or_refused_with_the_remedy(sandbox: Sandbox) -> None:
    """A kernel with netem loses packets; without, `up` says so and leaves nothing."""
    (sandbox.project / "lossy.toml").write_text(
        '[box.a]\nloopback = "auto"\n[box.b]\nloopback = "auto"\n'
        '[[link]]\nends = ["a", "b"]\nloss = 30\ndelay = 5\n'
    )
    done = sandbox("up", "lossy.toml", "--json")
    if done.returncode == 0:
        queue = sandbox.ok("exec", "a.lossy", "--", TC, "qdisc", "show", "dev", "b")

        assert "loss 30%" in queue
        assert "delay 5ms" in queue
    else:
        error = json.loads(done.stdout)["error"]

        assert (done.returncode, error["code"]) == (1, "no-netem")
        assert "modprobe sch_netem" in error["hint"]
        assert sandbox.box_names() == []


def test_stock_timers_are_those_of_frr(sandbox: Sandbox) -> None:
    """`timers = "stock"` leaves FRR's own; a lab that has not converged in time stays up."""
    text = OWN.replace('config = "r1.conf"\n', "").replace('rate = "10mbit"\n', "")
    (sandbox.project / "stock.toml").write_text(f'timers = "stock"\n{text}')
    done = sandbox("up", "stock.toml", "--timeout", "0")
    ospf = vtysh(sandbox, "show ip ospf interface eth7 json")["interfaces"]["eth7"]
    bgp = vtysh(sandbox, "show bgp neighbors 10.255.0.2 json")["10.255.0.2"]

    assert done.returncode == 1
    assert "not up after 0 s: OSPF of `r1` on `eth7`" in done.stderr
    assert (ospf["timerMsecs"], ospf["timerDeadSecs"], ospf["networkType"]) == (
        10_000,
        40,
        "BROADCAST",
    )
    assert (bgp["bgpTimerHoldTimeMsecs"], bgp["bgpTimerKeepAliveIntervalMsecs"]) == (
        180_000,
        60_000,
    )


def vtysh(sandbox: Sandbox, command: str) -> Any:
    """What r1 of the lab `stock` answers to a command that speaks JSON."""
    return json.loads(sandbox.ok("router", "r1.stock", "--", *command.split()))


@pytest.mark.parametrize(
    ("conf", "complaint"),
    [
        (CONF.replace("router ospf", "router opsf"), "line 7: unknown command: `router opsf`"),
        (
            CONF.replace("remote-as 65000", "activate"),
            (
                "line 13: bgpd refuses `neighbor 10.255.0.2 activate`: "
                "Specify remote-as or peer-group commands first"
            ),
        ),
    ],
    ids=["by the shell", "by a daemon"],
)
def test_a_mistake_in_it_is_told_by_its_line(sandbox: Sandbox, conf: str, complaint: str) -> None:
    """Exit status 2, file and line of the frr.conf; nothing is left."""
    (sandbox.project / "own.toml").write_text(OWN)
    path = sandbox.project / "r1.conf"
    path.write_text(conf)
    done = sandbox("up", "own.toml")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"loopbox: cannot read `{Path(path).resolve()}`: {complaint}",
        f"hint: all of it: vtysh -C -f {Path(path).resolve()}",
    ]
    assert sandbox.box_names() == []


def test_what_containerlab_was_given_comes_back_and_runs(sandbox: Sandbox) -> None:
    """Exported and imported again, routers with their own frr.conf find each other."""
    text = OWN.replace('config = "r1.conf"\n', "").replace('rate = "10mbit"\n', "")
    (sandbox.project / "there.toml").write_text(text)
    sandbox.ok("export", "there.toml", "--to", "containerlab", "-o", "clab")
    sandbox.ok("import", "clab/there.clab.yml", "-o", "clab/back.toml")
    sandbox.ok("up", "clab/back.toml")

    def established() -> bool:
        sessions = sandbox.json("router", "r1.there")["bgp"]["sessions"]
        return [item["state"] for item in sessions] == ["Established"]

    until(established, what="the session", deadline=15)
