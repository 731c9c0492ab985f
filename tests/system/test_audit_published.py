"""Published container ports: found without a socket, and confirmed by really connecting.

Three devices: the host, a neighbour on its LAN, and a container behind a bridge of the host.
"""

import contextlib
import os

import pytest
from audit_world import HOST4, Lan, any_connection
from networld import Host, join

from loopbox.kernel.facts import read_network
from loopbox.kernel.firewall import read_firewall
from loopbox.rules.audit.published import published
from loopbox.rules.audit.reach import View

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

CONTAINER = "172.17.0.2"
DNAT = ["iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-m", "addrtype",
        "--dst-type", "LOCAL", "--dport", "8080", "-j", "DNAT",
        "--to-destination", f"{CONTAINER}:80"]  # fmt: skip
LIKE_UFW = [
    "iptables -P INPUT DROP",
    "iptables -A INPUT -i lo -j ACCEPT",
    "iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
]
"""A firewall that edits the input chain only, as most do."""

CASES = {
    # name: (forwarding, commands, expected levels, does the neighbour get through)
    "published": (1, [], ["lan"], True),
    "published-behind-ufw": (1, LIKE_UFW, ["lan"], True),
    "no-forwarding": (0, [], [], False),
    "forward-dropped": (1, ["iptables -P FORWARD DROP"], [], False),
    "forward-of-others": (
        1, ["iptables -A FORWARD -d 172.17.0.9 -j DROP"], ["lan"], True,
    ),
    "docker-user-drops": (
        1,
        ["iptables -N DOCKER-USER", "iptables -A FORWARD -j DOCKER-USER",
         "iptables -A DOCKER-USER -i eth0 -m conntrack --ctstate NEW -j DROP"],
        [], False,
    ),
    "unknown-rule": (
        1,
        ["iptables -P FORWARD DROP", "iptables -A FORWARD -m u32 --u32 0x0=0x0 -j ACCEPT"],
        ["unknown"], False,
    ),
}  # fmt: skip


EVERY_PORT = ["iptables", "-t", "nat", "-A", "PREROUTING", "-d", HOST4, "-j", "DNAT",
              "--to-destination", CONTAINER]  # fmt: skip
BY_CHAIN = ["iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8080",
            "-j", "WEB"]  # fmt: skip


@pytest.fixture
def lan():
    """A host on a LAN, with a container that serves port 80."""
    with contextlib.ExitStack() as stack:
        lan = Lan(stack)
        lan.container = stack.enter_context(Host())
        join(
            lan.host,
            lan.container,
            here="docker0",
            one_has=["172.17.0.1/16"],
            other_has=[f"{CONTAINER}/16"],
        )
        lan.container.run("ip route add default via 172.17.0.1")
        lan.container.listen("0.0.0.0", 80)
        yield lan


@pytest.mark.parametrize("name", CASES)
def test_published_ports(lan, name):
    """A translation to a container is found when, and only when, the neighbour gets through it."""
    forwarding, commands, levels, gets_through = CASES[name]
    lan.host.sysctl("ipv4/ip_forward", forwarding)
    lan.host.run(DNAT)
    for command in commands:
        lan.host.run(command)
    seen = lan.host.do(read_firewall)
    view = View(lan.host.do(read_network), seen.ruleset)

    found = published(view)

    assert levels == [entry.verdict.level for entry in found]
    assert gets_through == lan.peer.do(any_connection, [HOST4], 8080)
    assert all((entry.listener.port, entry.listener.inode) == (8080, 0) for entry in found)
    assert all(CONTAINER in entry.verdict.evidence[0] for entry in found)


@pytest.mark.parametrize(
    ("commands", "dialled", "ports"),
    [
        ([EVERY_PORT], 80, {0}),
        (["iptables -t nat -N WEB",
          f"iptables -t nat -A WEB -p tcp -j DNAT --to-destination {CONTAINER}:80", BY_CHAIN],
         8080, {8080}),
        (["iptables -P FORWARD DROP", "iptables -A FORWARD -p tcp --sport 20:53 -j ACCEPT",
          "iptables -A FORWARD -i docker0 -j ACCEPT", DNAT], None, {8080}),
    ],
    ids=["every-port", "port-named-by-the-jump", "by-source-port"],
)  # fmt: skip
def test_translations_that_are_easily_overlooked(lan, commands, dialled, ports):
    """No port at all, the port in the rule that jumps, a port of the sender's choice."""
    lan.host.sysctl("ipv4/ip_forward", 1)
    for command in commands:
        lan.host.run(command)
    seen = lan.host.do(read_firewall)

    found = published(View(lan.host.do(read_network), seen.ruleset))

    assert ports == {entry.listener.port for entry in found if entry.listener.protocol == "tcp"}
    assert dialled is None or lan.peer.do(any_connection, [HOST4], dialled)
