"""FRR's daemons: dead ones are noticed, more than twenty links work, stops leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from labworld import LabWorld, has_frr, until

from loopbox.errors import HostError
from loopbox.lab.frr import render
from loopbox.lab.frr_daemons import find_folder
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


@pytest.mark.parametrize("timers", ["fast", "classic", "stock"])
def test_every_line_that_is_rendered_is_known_to_frr(timers: str, tmp_path: Path) -> None:
    """The daemons themselves find no fault with any configuration, BFD and static routes included.

    `-C` ends with status 0 whatever it finds, so its words are looked at.
    """
    text = f'timers = "{timers}"\n' + "".join(
        f'[box.r{n}]\nloopback = "auto"\nospf = {{ passive = ["lan"] }}\nbfd = true\n'
        f"bgp = {{ as = {65000 + n % 2}, reflector = true, source = 'both', multihop = 3, "
        f'advertise = ["loopback"] }}\nstatic = [{{ to = "198.51.100.{n}/32" }}]\n'
        for n in range(3)
    )
    text += '[[link]]\nends = ["r0", "r2"]\n[[link]]\nends = ["r0", "r1"]\nunnumbered = true\n'
    text += '[[link]]\nname = "lan"\nends = ["r0", "r1", "r2"]\n'
    lab = parse(text, path=Path("all.toml"))
    said = ""
    for daemon, config in render(lab, lab.box("r0")).items():
        path = tmp_path / f"{daemon}.conf"
        path.write_text(config)
        argv = [str(find_folder() / daemon), "-C", "-u", "root", "-g", "frrvty", "-f", str(path)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
        said += result.stdout + result.stderr

    assert [line for line in said.splitlines() if "config line" in line or "rror" in line] == []
