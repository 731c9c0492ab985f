"""Networks of containers that a neighbour reaches by a route: found, confirmed, shut.

Three devices: the host, a neighbour on its LAN, and a container behind a bridge of the host.
"""

import contextlib
import os
import shlex

import pytest
from audit_world import HOST4, HOST6, PEER4, Lan, any_connection
from networld import Host, join

from loopbox.kernel.facts import read_network
from loopbox.kernel.firewall import read_firewall
from loopbox.rules.audit.published import published
from loopbox.rules.audit.routed import routed
from loopbox.rules.audit.view import View

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

CONTAINER, CONTAINER6 = "172.17.0.2", "fd17::2"
WEB, OTHER = 80, 5432
DOCKER_27 = [
    "iptables -P FORWARD DROP",
    "iptables -N DOCKER",
    "iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "iptables -A FORWARD -o docker0 -j DOCKER",
    "iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    f"iptables -A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p tcp --dport {WEB} -j ACCEPT",
    f"iptables -t nat -A PREROUTING -p tcp -d 127.0.0.1 -j DNAT --to-destination {CONTAINER}:{WEB}",
]
"""What Docker 27 makes of `-p 127.0.0.1:8080:80`."""
DOCKER_28 = [
    *DOCKER_27,
    f"iptables -t raw -A PREROUTING -d {CONTAINER}/32 ! -i docker0 -j DROP",
]
WHOLE = ("172.17.0.0/16 behind docker0: neighbours reach it by adding a route", "link")

CASES = {
    # name: (forwarding, commands, findings as (title, reach), web reached, other port reached)
    "accepting": (1, [], [WHOLE], True, True),
    "not-forwarding": (0, [], [], False, False),
    "policy-drop": (1, ["iptables -P FORWARD DROP"], [], False, False),
    "like-ufw": (
        1, ["iptables -P INPUT DROP", "iptables -A INPUT -i lo -j ACCEPT"], [WHOLE], True, True,
    ),
    "docker-27": (
        1, DOCKER_27,
        [(f"tcp port {WEB} of {CONTAINER} behind docker0: neighbours reach it by adding a route",
          "link")],
        True, False,
    ),
    "docker-28": (1, DOCKER_28, [], False, False),
    "no-answers": (
        1, ["iptables -A FORWARD -i docker0 -m conntrack --ctstate ESTABLISHED -j DROP"], [],
        False, False,
    ),
    "unknown-rule": (
        1,
        ["iptables -P FORWARD DROP", "iptables -A FORWARD -i docker0 -j ACCEPT",
         "iptables -A FORWARD -m u32 --u32 0x0=0x0 -j ACCEPT"],
        [("172.17.0.0/16 behind docker0: neighbours may reach it by adding a route", "unknown")],
        False, False,
    ),
}  # fmt: skip


@pytest.fixture
def lan():
    """A host on a LAN, with a container behind a bridge, and a neighbour that knows the way."""
    with contextlib.ExitStack() as stack:
        lan = Lan(stack)
        lan.container = stack.enter_context(Host())
        lan.host.run("ip link add docker0 type bridge")
        lan.host.run("ip addr add 172.17.0.1/16 dev docker0")
        lan.host.sysctl("ipv6/conf/docker0/accept_dad", 0)
        lan.host.run("ip addr add fd17::1/64 dev docker0 nodad")
        lan.host.run("ip link set docker0 up")
        join(
            lan.host,
            lan.container,
            here="vethc",
            other_has=[f"{CONTAINER}/16", f"{CONTAINER6}/64"],
        )
        lan.host.run("ip link set vethc master docker0")
        lan.host.run(f"ip route add default via {PEER4}")
        lan.container.run("ip route add default via 172.17.0.1")
        lan.container.run("ip -6 route add default via fd17::1")
        lan.container.listen("::", WEB, v6only=False)
        lan.container.listen("0.0.0.0", OTHER)
        lan.peer.run(f"ip route add 172.17.0.0/16 via {HOST4}")
        lan.peer.run(f"ip route add fd17::/64 via {HOST6}")
        yield lan


def look(lan):
    """What the audit finds."""
    seen = lan.host.do(read_firewall)
    view = View(lan.host.do(read_network), seen.ruleset, seen.is_complete)
    return routed(view, where="host"), view


def reaches(lan, address, port):
    """Whether the neighbour really connects."""
    return lan.peer.do(any_connection, [address], port)


@pytest.mark.parametrize("name", CASES)
def test_networks_a_neighbour_can_route_to(lan, name):
    """Found when, and only when, the neighbour gets through to the container by a route."""
    forwarding, commands, expected, web, other = CASES[name]
    lan.host.sysctl("ipv4/ip_forward", forwarding)
    for command in commands:
        lan.host.run(command)

    found, _view = look(lan)

    assert expected == [(entry.title, entry.reach) for entry in found]
    assert web == reaches(lan, CONTAINER, WEB)
    assert other == reaches(lan, CONTAINER, OTHER)


def test_the_fix_shuts_it_and_spares_published_ports(lan):
    """The command of the finding ends it; a port published to the LAN goes on working."""
    lan.host.sysctl("ipv4/ip_forward", 1)
    lan.host.run(
        f"iptables -t nat -A PREROUTING -i eth0 -p tcp --dport 8080 -j DNAT"
        f" --to-destination {CONTAINER}:{WEB}"
    )
    (before,), _ = look(lan)
    lan.host.run(shlex.split(before.fix.removeprefix("sudo ")))

    after, view = look(lan)

    assert (True, []) == (before.fix.startswith("sudo iptables -I FORWARD -i eth0"), after)
    assert (False, True) == (reaches(lan, CONTAINER, WEB), reaches(lan, HOST4, 8080))
    assert ["lan"] == [entry.verdict.level for entry in published(view)]


def test_ipv6_is_forwarded_by_its_own_setting(lan):
    """fd17::/64 is found once IPv6 forwarding is on, and reached."""
    before, _ = look(lan)
    lan.host.sysctl("ipv6/conf/all/forwarding", 1)

    found, _ = look(lan)

    assert ([], ["fd17::/64"]) == (before, [entry.subnet for entry in found])
    assert reaches(lan, CONTAINER6, WEB)
    assert found[0].fix.startswith("sudo ip6tables")


def test_evidence_names_the_route(lan):
    """A person can try it: the route to add, the setting, and the known report."""
    lan.host.sysctl("ipv4/ip_forward", 1)
    (found,), _ = look(lan)
    document = found.as_json()

    assert ("routed-subnet", "172.17.0.0/16", 0) == (
        document["code"], document["subnet"], document["listener"]["port"]
    )  # fmt: skip
    assert f"ip route add 172.17.0.0/16 via {HOST4}" in found.evidence[0]
    assert any("moby/moby#45610" in text for text in found.evidence)


def test_a_router_between_cables_is_no_fault(lan):
    """Where the way out is itself the other network, nothing is reported."""
    lan.host.sysctl("ipv4/ip_forward", 1)
    lan.host.run("ip route replace default via 172.17.0.2 dev docker0")

    assert [] == [entry.title for entry in look(lan)[0] if "docker0" in entry.title]
