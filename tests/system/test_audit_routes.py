"""Hosts with several cables: answers by another way, tables apart, several gateways.

Each case is tried for real from the neighbour or from a second one on a cable of its own.
"""

import contextlib
import os

import pytest
from audit_world import HOST4, PEER4, Lan
from networld import Host, join
from test_audit_attacks import PORT, dial

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

OTHER_HOST, OTHER_PEER = "192.168.8.1", "192.168.8.2"
FAR, SITE = "9.9.9.9", "8.8.7.1"
SHUT_ETH0 = 'table inet t { chain c { type filter hook input priority 0; iif "eth0" drop; }; }'


@pytest.fixture
def lan():
    """A host with a neighbour on eth0 and a second one, `far`, on eth1."""
    with contextlib.ExitStack() as stack:
        lan = Lan(stack)
        lan.far = stack.enter_context(Host())
        join(
            lan.host, lan.far, here="eth1",
            one_has=[f"{OTHER_HOST}/24"], other_has=[f"{OTHER_PEER}/24", f"{FAR}/32"],
        )  # fmt: skip
        lan.far.run(f"ip route add 192.168.7.0/24 via {OTHER_HOST}")
        yield lan


def from_far(address, **options):
    """The second neighbour dials."""

    def attempt(lan, sock):
        lan.peer, near = lan.far, lan.peer
        try:
            return dial(address, **options)(lan, sock)
        finally:
            lan.peer = near

    return attempt


def two_gateways(lan):
    """A default route by each cable, eth0's preferred; strict filters on eth0."""
    lan.host.run(f"ip route add default via {PEER4} metric 100")
    lan.host.run(f"ip route add default via {OTHER_PEER} metric 200")
    lan.host.nft(SHUT_ETH0)


def table_apart(lan):
    """What comes from eth1's own address is answered by a table of its own."""
    lan.host.run(f"ip route add default via {PEER4}")
    lan.host.run(f"ip route add default via {OTHER_PEER} table 100")
    lan.host.run(f"ip rule add from {OTHER_HOST} lookup 100")
    lan.host.nft(SHUT_ETH0.replace("drop;", "drop; ip saddr 192.168.0.0/16 drop;", 1))
    lan.far.run(f"ip route add 8.8.7.0/24 via {OTHER_HOST} src {FAR}")
    lan.far.run(f"ip route replace {OTHER_HOST}/32 dev eth0 src {FAR}")


def both_ways_at_once(lan):
    """One default route with two ways."""
    lan.host.run(
        ["ip", "route", "add", "default", "nexthop", "via", PEER4, "nexthop", "via", OTHER_PEER]
    )
    lan.host.nft(SHUT_ETH0)


def answered_elsewhere(lan):
    """A neighbour with legs in both networks sends by eth1 and is answered by eth0."""
    lan.host.nft(
        "table inet t { chain c { type filter hook input priority 0; "
        'iif "eth0" drop; iif "eth1" ip saddr 192.168.8.0/24 drop; }; }'
    )
    join(
        lan.host, lan.far, here="eth2", there="eth2", one_has=["192.168.9.1/24"],
        other_has=["192.168.9.2/24"],
    )  # fmt: skip
    for name in ("all", "eth0", "eth2"):
        lan.far.sysctl(f"ipv4/conf/{name}/rp_filter", 0)
    lan.host.nft(
        'table inet u { chain c { type filter hook input priority 0; iif "eth2" drop; }; }'
    )
    lan.far.run(f"ip route replace {OTHER_HOST}/32 dev eth0 src 192.168.9.2")


def strictly(setup):
    """The same where the kernel insists on the way back."""

    def strict(lan):
        setup(lan)
        lan.host.sysctl("ipv4/conf/all/rp_filter", 1)

    return strict


def no_gateway(lan):
    """A public address and a default route without a gateway, as of a dial-up line."""
    lan.host.run(f"ip addr add {SITE}/32 dev eth0")
    lan.host.run("ip route add default dev eth0")
    lan.peer.run(f"ip route add {SITE} via {HOST4}")


def point_to_point(lan):
    """A cable between two addresses and no more, as labs have; ours is the second of them."""
    lan.host.run("ip addr flush dev eth0")
    lan.host.run("ip addr add 10.254.0.1/31 dev eth0")
    lan.peer.run("ip addr flush dev eth0")
    lan.peer.run("ip addr add 10.254.0.0/31 dev eth0")
    lan.host.run("ip link set eth1 down")


CASES = {
    # name: (setup, address, dial, level, does anybody get through)
    "second-gateway": (
        two_gateways, "0.0.0.0", from_far(OTHER_HOST), "lan", True,
    ),
    "table-apart": (table_apart, OTHER_HOST, from_far(OTHER_HOST), "lan", True),
    "two-ways-of-one-route": (both_ways_at_once, "0.0.0.0", from_far(OTHER_HOST), "lan", True),
    "answered-by-another-cable": (
        answered_elsewhere, "0.0.0.0", from_far(OTHER_HOST), "lan", True,
    ),
    "answered-by-another-cable-strict": (
        strictly(answered_elsewhere), "0.0.0.0", from_far(OTHER_HOST), "blocked", False,
    ),
    "point-to-point": (point_to_point, "0.0.0.0", dial("10.254.0.1"), "lan", True),
    "no-gateway": (no_gateway, "0.0.0.0", dial(SITE), "internet", True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_way_in_is_seen(lan, name):
    """The level stands, and a neighbour's own try agrees with it."""
    setup, address, attempt, level, gets_through = CASES[name]
    setup(lan)
    sock = lan.host.listen(address, PORT)

    verdict = lan.verdict(sock)

    assert gets_through == attempt(lan, sock), verdict
    assert level == verdict.level, verdict.evidence
