"""FRR's daemons: dead ones are noticed, more than twenty links work, stops leave nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from labworld import LabWorld, has_frr, until

from loopbox.errors import HostError
from loopbox.lab.topology import parse

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: run as root"),
]

ALONE = '[box.r1]\nloopback = ["10.255.0.1/32"]\nospf = true\n'


def test_a_dead_daemon_is_noticed_and_stopping_leaves_nothing() -> None:
    """A killed daemon is named; after the lab no process and no file of it is left."""
    with LabWorld(parse(ALONE, path=Path("alone.toml"))) as world:
        router = world.routers["r1"]
        pids, folder = router.processes(), router.directory
        os.kill(pids[-1], signal.SIGKILL)
        until(lambda: router.dead() == ["ospfd"], seconds=5)
        with pytest.raises(HostError, match="cannot start `ospfd` in `r1`: it ended"):
            router.is_ready("ospfd")

    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not folder.exists()


def test_a_refused_command_is_told() -> None:
    """A word that FRR does not know is an error with FRR's own words."""
    with (
        LabWorld(parse(ALONE, path=Path("alone.toml"))) as world,
        pytest.raises(HostError, match="cannot run `show nonsense` in `zebra`"),
    ):
        world.routers["r1"].ask("zebra", "show nonsense")


def test_the_twenty_first_link_works() -> None:
    """A hub of 22 spokes has 22 neighbours: the group limit of the kernel is raised."""
    count = 22
    text = ALONE + "".join(
        f'[box.s{n}]\nloopback = "auto"\nospf = true\n[[link]]\nends = ["r1", "s{n}"]\n'
        for n in range(count)
    )
    with LabWorld(parse(text, path=Path("hub.toml"))) as world:
        until(lambda: len(world.full("r1")) == count, seconds=30)
