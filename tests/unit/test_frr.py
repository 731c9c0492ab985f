"""Configuration of FRR: golden files for the examples, rules that hold for all labs.

Write the golden files anew with LOOPBOX_UPDATE_GOLDEN=1, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopbox.lab.frr import daemons, render, render_frr_conf, sysctls
from loopbox.lab.topology import load, parse

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "labs").glob("*.toml"))
GOLDEN = ROOT / "tests" / "golden"


def golden(name: str, text: str) -> str:
    """The golden text `name`; written first when asked for by the environment."""
    path = GOLDEN / name
    if os.environ.get("LOOPBOX_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path.read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_configuration_of_each_example_is_as_reviewed(path: Path) -> None:
    """Every router of every example has the configuration that was read and agreed on."""
    lab = load(path)
    text = "".join(
        f"#### {box.name}: {' '.join(daemons(lab, box))}\n{render_frr_conf(lab, box)}"
        for box in lab.boxes
        if box.is_router
    )

    assert golden(f"frr-{path.stem}.conf", text) == text


@pytest.mark.parametrize("profile", ["fast", "classic", "stock"])
def test_timer_profiles_are_as_reviewed(profile: str) -> None:
    """A pair of routers, once for each timer profile."""
    boxes = "".join(
        f'[box.r{n}]\nloopback = ["10.255.0.{n}/32"]\n'
        "ospf = true\nbgp = { as = 65000 }\nbfd = true\n"
        for n in (1, 2)
    )
    text = f'timers = "{profile}"\n{boxes}[[link]]\nends = ["r1", "r2"]\n'
    lab = parse(text, path=Path("pair.toml"))
    conf = render_frr_conf(lab, lab.box("r1"))

    assert golden(f"frr-timers-{profile}.conf", conf) == conf


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_nothing_of_the_host_loopback_or_a_virtual_address_is_told(path: Path) -> None:
    """No network statement names 127/8 or an address that only lo may know."""
    lab = load(path)
    for box in lab.boxes:
        told = [line for line in render_frr_conf(lab, box).splitlines() if " network " in line]
        hidden = ["127.", *(str(item) for item in box.virtual)]

        assert [line for line in told for item in hidden if item in line] == []


def test_each_daemon_gets_its_own_part() -> None:
    """bgpd reads no OSPF and ospfd no BGP: FRR's daemons complain about lines of others."""
    lab = load(ROOT / "examples" / "labs" / "triangle.toml")
    files = render(lab, lab.box("r1"))

    assert list(files) == ["zebra", "ospfd", "bgpd"]
    assert ("ospf" in files["bgpd"], "router bgp" in files["ospfd"]) == (False, False)


def test_a_box_that_is_no_router_gets_no_daemon() -> None:
    """Plain boxes have no configuration and do not forward."""
    lab = load(ROOT / "examples" / "labs" / "virtual.toml")
    box = lab.box("web1")

    assert (daemons(lab, box), render(lab, box)) == ((), {})
    assert ("net.ipv4.ip_forward", "1") not in sysctls(box)
    assert ("net.ipv4.conf.all.arp_ignore", "1") in sysctls(box)


def test_a_router_may_have_more_than_twenty_links() -> None:
    """The group limit that silently stops OSPF at the 21st link is raised."""
    lab = load(ROOT / "examples" / "labs" / "triangle.toml")

    assert ("net.ipv4.igmp_max_memberships", "1000") in sysctls(lab.box("r1"))
