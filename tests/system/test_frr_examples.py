"""Each lab under examples/labs does what its header says, with real routers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_interface
from pathlib import Path

import pytest
from labworld import LabWorld, has_frr, until

from loopbox.kernel.netlink import LOOPBACK_INDEX, add_address, delete_address
from loopbox.lab.predict import Predictor
from loopbox.lab.topology import load, parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "labs"
ANYCAST = "10.99.0.53/32"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not has_frr(), reason="FRR is not installed: apt-get install frr"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: run as root"),
]


@contextmanager
def running(name: str) -> Iterator[LabWorld]:
    """An example that has converged: sessions and loopbacks as predicted."""
    lab = load(EXAMPLES / f"{name}.toml")
    predictor = Predictor(lab)
    with LabWorld(lab) as world:
        until(lambda: world.established() == predictor.standing, seconds=20)
        wanted: dict[str, set[IPv4Address]] = {}
        for source, _, address in predictor.reached_before:
            wanted.setdefault(source, set()).add(address)
        until(
            lambda: {name: world.reach(name, wanted[name]) for name in wanted} == wanted, seconds=15
        )
        yield world


def test_reflector_spreads_what_the_edge_advertises() -> None:
    """Clients hear 192.0.2.0/24 through the reflectors, and lose it when the edge goes."""
    with running("reflector") as world:
        until(lambda: "192.0.2.0/24" in world.routes("access"), seconds=10)
        world.cut(*world.lab.links_of("edge"))
        until(lambda: "192.0.2.0/24" not in world.routes("access"), seconds=10)


def test_anycast_follows_the_health_check() -> None:
    """The nearest healthy server answers; when its address is withdrawn, the other does."""
    with running("anycast") as world:
        until(lambda: world.routes("r1").get(ANYCAST) == ("near",), seconds=10)
        item = ip_interface(ANYCAST)
        world.apply("near", [delete_address(LOOPBACK_INDEX, item)])
        until(lambda: world.routes("r1").get(ANYCAST) == ("far",), seconds=10)
        reached = world.reach("client", {IPv4Address("10.99.0.53")})
        world.apply("near", [add_address(LOOPBACK_INDEX, item)])
        until(lambda: world.routes("r1").get(ANYCAST) == ("near",), seconds=10)

    assert reached


@pytest.mark.parametrize("arp", ["quiet", "normal"])
def test_virtual_address_is_served_and_answered_for_only_without_quiet_arp(arp: str) -> None:
    """Servers take packets for the virtual address; the ARP settings keep them silent about it."""
    text = (EXAMPLES / "virtual.toml").read_text()
    text = text.replace("virtual = [", f'arp = "{arp}"\nvirtual = [')
    with LabWorld(parse(text, path=Path("virtual.toml"))) as world:
        until(lambda: "10.50.0.100/32" in world.routes("director"), seconds=10)
        answered = world.reach("client", {IPv4Address("10.50.0.100")})
        # Ask for the address on the wire itself, as a neighbour would who thinks it is on link.
        world.run("director", "ip", "route", "add", "10.50.0.100/32", "dev", "farm", "metric", "1")
        world.reach("director", {IPv4Address("10.50.0.100")})
        neighbours = world.run("director", "ip", "neigh", "show", "10.50.0.100").stdout

    assert answered == {IPv4Address("10.50.0.100")}
    assert ("lladdr" in neighbours) == (arp == "normal")


def test_leaf_spine_needs_no_addresses_on_its_links() -> None:
    """BGP over link-local addresses: no link has an IPv4 address, every leaf has two ways."""
    with running("leaf-spine") as world:
        until(lambda: world.routes("leaf1")["10.255.0.4/32"] == ("spine1", "spine2"), seconds=10)
        addresses = world.run("leaf1", "ip", "-4", "-brief", "address").stdout

    assert [line.split()[0] for line in addresses.splitlines() if "." in line] == ["lo"]


def test_two_as_session_survives_either_link() -> None:
    """The external session between loopbacks keeps its uptime through the loss of each link."""
    with running("two-as") as world:
        before = world.sessions()["a2-b2"]
        for name in ("north", "south"):
            link = world.lab.link(name)
            world.cut(link)
            until(lambda: len(world.routes("a2")["10.2.0.2/32"]) == 1, seconds=10)
            world.mend(link)
            until(lambda: len(world.routes("a2")["10.2.0.2/32"]) == 2, seconds=10)
        after = world.sessions()["a2-b2"]

    assert [end.established for end in before] == [end.established for end in after]
