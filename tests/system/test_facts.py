"""What kernel/facts reads, in namespaces built for it."""

import os
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networld import Host, join, until

from loopbox.kernel import facts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")


@needs_root
def test_a_new_namespace_has_a_loopback_that_is_down():
    """A fresh namespace: lo down and without addresses, found by its flag."""
    with Host(lo_up=False) as host:
        network = host.do(facts.read_network)

        assert ("lo", False, ()) == (
            network.loopback.name,
            network.loopback.is_up,
            network.addresses,
        )


@needs_root
def test_links_addresses_routes_neighbours_and_knobs():
    """Everything configured is read back, lo by its flag under another name."""
    with Host() as host, Host() as peer:
        join(host, peer, one_has=["10.1.0.1/24", "fd00::1/64"], other_has=["10.1.0.2/24"])
        host.run("ip link set lo name lo9")
        host.run("ip addr add 10.9.9.9/32 dev lo9 scope host")
        host.run("ip addr add 10.1.0.7/24 dev eth0")
        host.run("ip route add default via 10.1.0.2 metric 7")
        host.run("ip route add prohibit 10.66.0.0/16")
        host.run("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud reachable")
        host.sysctl("ipv4/conf/eth0/route_localnet", 1)

        network = host.do(facts.read_network)

        eth0 = next(link for link in network.links if link.name == "eth0")
        default = network.default_routes(4)[0]
        assert ("lo9", "veth", True, True) == (
            network.loopback.name,
            eth0.kind,
            eth0.elsewhere,
            eth0.carrier,
        )
        assert {("10.9.9.9", 32, "host", False), ("10.1.0.7", 24, "global", True)} <= {
            (str(entry.address), entry.prefix, entry.scope, entry.secondary)
            for entry in network.addresses
        }
        assert (ip_address("10.1.0.2"), 7, "unicast", eth0.index) == (
            default.gateway,
            default.metric,
            default.type,
            default.index,
        )
        assert (ip_network("10.66.0.0/16"), "prohibit") in {
            (route.destination, route.type) for route in network.routes
        }
        assert [(ip_address("10.1.0.2"), "reachable")] == [
            (entry.address, entry.state)
            for entry in network.neighbours
            if entry.address.version == 4
        ]
        assert ("1", "0") == (
            network.knob("ipv4/conf/eth0/route_localnet"),
            network.knob("ipv4/ip_forward"),
        )


@needs_root
def test_the_cable_is_out():
    """When the far end goes down, the carrier is gone and routes say so."""
    with Host() as host, Host() as peer:
        join(host, peer, one_has=["10.1.0.1/24"])
        peer.run("ip link set eth0 down")

        def seen():
            network = host.do(facts.read_network)
            eth0 = next(link for link in network.links if link.name == "eth0")
            dead = [route.dead for route in network.routes if route.index == eth0.index]
            return (eth0.carrier, eth0.is_up, True in dead) == (False, True, True)

        assert until(seen)


@given(st.binary(max_size=200))
def test_no_payload_breaks_the_readers(payload):
    """Whatever bytes a message holds, each parser answers a value or None."""
    for parse in (facts.parse_link, facts.parse_address, facts.parse_route, facts.parse_neighbour):
        parse(payload)
