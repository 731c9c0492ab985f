"""Every listener situation of research, its verdict, and the neighbour's own experience.

Each case: what the host looks like, what listens, the audit's level, and whether a neighbour that
knows every address gets through. A verdict that says "reachable" or "not" wrongly fails here.
"""

import contextlib
import os
import socket

import pytest
from audit_world import HOST4, HOST6, PEER4, PUBLIC4, Lan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PORT = 8080


@pytest.fixture
def lan():
    """A host and its neighbour."""
    with contextlib.ExitStack() as stack:
        yield Lan(stack)


def nothing(_lan):
    """The plain host."""


def chain(hook, *rules, policy="accept", kind="filter", priority="0"):
    """A setup that loads one nftables base chain."""

    def load(lan):
        body = "\n".join(rules)
        lan.host.nft(
            f"table inet t {{\n chain c {{\n type {kind} hook {hook} priority {priority}; "
            f"policy {policy};\n{body}\n }}\n}}\n"
        )

    return load


def iptables(*rules):
    """A setup of iptables commands."""

    def load(lan):
        for rule in rules:
            lan.host.run(["iptables", *rule.split()])

    return load


def localnet(*names):
    """route_localnet on the named interfaces, and a neighbour that exploits it."""

    def setup(lan):
        for name in names:
            lan.host.sysctl(f"ipv4/conf/{name}/route_localnet", 1)
        lan.dial_loopback("127.0.0.1", "127.0.0.2")

    return setup


def alias(address, **options):
    """An alias the neighbour has a route to."""
    return lambda lan: lan.add_address(address, **options)


def both(*setups):
    """Several setups, in order."""

    def run_all(lan):
        for setup in setups:
            setup(lan)

    return run_all


def public(lan):
    """A public address on the NIC and a default route."""
    lan.host.run(f"ip addr add {PUBLIC4}/32 dev eth0")
    lan.host.run(f"ip route add default via {PEER4}")
    lan.learn(PUBLIC4)


def anyip(lan):
    """A whole network made local by a route."""
    lan.host.run("ip route add local 10.44.0.0/16 dev lo")
    lan.learn("10.44.0.1")


def lo_down(lan):
    """The loopback is down (it was up)."""
    lan.host.run("ip link set lo down")


def no_nic(lan):
    """The cable's interface is switched off."""
    lan.host.run("ip link set eth0 down")


def legacy_gap(lan):
    """A rule of an extension nobody can evaluate drops everything new."""
    iptables("-A INPUT -i eth0 -m u32 --u32 0x0=0x0 -j ACCEPT")(lan)


DROP_ETH = chain("input", 'iifname "eth0" drop')
DROP_NEW = chain("input", "ct state established,related accept", 'iif "lo" accept', policy="drop")

CASES = {
    # name: (setup, address, options, level, does a neighbour get through)
    "loopback4": (nothing, "127.0.0.1", {}, "loopback", False),
    "loopback4-other": (nothing, "127.9.9.9", {}, "loopback", False),
    "loopback6": (nothing, "::1", {}, "loopback", False),
    "loopback-mapped": (nothing, "::ffff:127.0.0.1", {}, "loopback", False),
    "loopback-udp": (nothing, "127.0.0.1", {"kind": UDP}, "loopback", False),
    "wildcard4": (nothing, "0.0.0.0", {}, "lan", True),
    "wildcard-dual": (nothing, "::", {"v6only": 0}, "lan", True),
    "wildcard-v6only": (nothing, "::", {"v6only": 1}, "lan", True),
    "wildcard-mapped": (nothing, "::ffff:0.0.0.0", {"v6only": 0}, "lan", True),
    "wildcard-udp4": (nothing, "0.0.0.0", {"kind": UDP}, "lan", True),
    "wildcard-udp6": (nothing, "::", {"kind": UDP, "v6only": 0}, "lan", True),
    "nic-address4": (nothing, HOST4, {}, "lan", True),
    "nic-address6": (nothing, HOST6, {}, "lan", True),
    "nic-address-mapped": (nothing, f"::ffff:{HOST4}", {"v6only": 0}, "lan", True),
    "public-address": (public, "0.0.0.0", {}, "internet", True),
    "public-loopback-only": (public, "127.0.0.1", {}, "loopback", False),
    "public-dual": (public, "::", {"v6only": 0}, "internet", True),
    "bound-to-lo": (nothing, "0.0.0.0", {"device": "lo"}, "loopback", False),
    "bound-to-lo-dual": (nothing, "::", {"device": "lo", "v6only": 0}, "loopback", False),
    "bound-to-eth": (nothing, "0.0.0.0", {"device": "eth0"}, "lan", True),
    "loopback-on-eth": (nothing, "127.0.0.1", {"device": "eth0"}, "unreachable", False),
    "loopback-on-eth-localnet": (localnet("eth0"), "127.0.0.1", {"device": "eth0"}, "link", True),
    "freebind": (nothing, "203.0.113.9", {"free": True}, "unreachable", False),
    "alias4": (alias("10.9.9.9"), "10.9.9.9", {}, "link", True),
    "alias6": (alias("fd99::9"), "fd99::9", {}, "link", True),
    "alias-loopback-only": (alias("10.9.9.9"), "127.0.0.1", {}, "loopback", False),
    "anyip": (anyip, "10.44.0.1", {}, "link", True),
    "localnet-eth": (localnet("eth0"), "127.0.0.1", {}, "link", True),
    "localnet-all": (localnet("all"), "127.0.0.1", {}, "link", True),
    "localnet-lo-only": (localnet("lo"), "127.0.0.1", {}, "loopback", False),
    "localnet-other-address": (localnet("eth0"), "127.0.0.2", {}, "link", True),
    "localnet-ipv6": (localnet("eth0"), "::1", {}, "loopback", False),
    "localnet-filtered": (
        both(localnet("eth0"), chain("input", "ip daddr 127.0.0.0/8 iif != lo drop")),
        "127.0.0.1", {}, "blocked", False,
    ),
    "firewall-interface": (DROP_ETH, "0.0.0.0", {}, "blocked", False),
    "firewall-interface-dual": (DROP_ETH, "::", {"v6only": 0}, "blocked", False),
    "firewall-interface-udp": (DROP_ETH, "0.0.0.0", {"kind": UDP}, "blocked", False),
    "firewall-policy": (DROP_NEW, "0.0.0.0", {}, "blocked", False),
    "firewall-policy-loopback": (DROP_NEW, "127.0.0.1", {}, "loopback", False),
    "firewall-port-open": (
        chain("input", f"tcp dport {PORT} accept", policy="drop"), "0.0.0.0", {}, "lan", True,
    ),
    "firewall-other-port": (
        chain("input", "tcp dport 22 accept", policy="drop"), "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-ipv4-only": (
        chain("input", "meta nfproto ipv4 drop"), "::", {"v6only": 0}, "lan", True,
    ),
    "firewall-address-misses-alias": (
        both(alias("10.9.9.9"), chain("input", f"ip daddr {HOST4} drop")),
        "0.0.0.0", {}, "link", True,
    ),
    "firewall-source": (
        chain("input", f"ip saddr {PEER4} accept", policy="drop"), "0.0.0.0", {}, "lan", True,
    ),
    "firewall-other-source": (
        chain("input", "ip saddr 192.168.7.77 accept", policy="drop"), "0.0.0.0", {}, "lan", False,
    ),
    "firewall-prerouting": (
        chain("prerouting", f"tcp dport {PORT} drop", priority="raw"),
        "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-output": (
        chain("output", f"tcp sport {PORT} drop"), "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-jump": (
        lambda lan: lan.host.nft(
            "table ip t {\n chain bad {\n tcp dport 8000-9000 drop\n }\n chain c {\n"
            " type filter hook input priority 0;\n jump bad\n }\n}\n"
        ),
        "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-set": (
        lambda lan: lan.host.nft(
            "table inet t {\n set shut {\n type inet_service; flags interval;\n"
            " elements = { 1-79, 8000-9000 }\n }\n chain c {\n type filter hook input priority 0;\n"
            " tcp dport @shut drop\n }\n}\n"
        ),
        "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-vmap": (
        chain("input", f"tcp dport vmap {{ 22 : accept, {PORT} : drop }}"),
        "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-reject": (
        chain("input", f"tcp dport {PORT} reject with tcp reset"), "0.0.0.0", {}, "blocked", False,
    ),
    "firewall-on-lo": (chain("input", 'iif "lo" drop'), "127.0.0.1", {}, "blocked", False),
    "firewall-rate-limit": (
        chain("input", f"tcp dport {PORT} limit rate 50/second accept", policy="drop"),
        "0.0.0.0", {}, "lan", True,
    ),
    "iptables-drop": (iptables("-A INPUT -i eth0 -p tcp -j DROP"), "0.0.0.0", {}, "blocked", False),
    "iptables-multiport": (
        iptables(f"-A INPUT -p tcp -m multiport --dports 22,{PORT} -j DROP"),
        "0.0.0.0", {}, "blocked", False,
    ),
    "iptables-state": (
        iptables(
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A INPUT -i lo -j ACCEPT", "-P INPUT DROP",
        ),
        "0.0.0.0", {}, "blocked", False,
    ),
    "iptables-not-ipv6": (iptables("-P INPUT DROP"), "::", {"v6only": 0}, "lan", True),
    "unknown-match": (
        both(iptables("-P INPUT DROP"), legacy_gap), "0.0.0.0", {}, "unknown", None,
    ),
    "unknown-nft": (
        chain("input", "meta cpu 0 accept", policy="drop"), "0.0.0.0", {}, "unknown", None,
    ),
    "dnat-to-loopback": (
        both(
            chain("prerouting", f"tcp dport 80 dnat ip to 127.0.0.1:{PORT}",
                  kind="nat", priority="dstnat"),
            lambda lan: lan.host.sysctl("ipv4/conf/eth0/route_localnet", 1),
        ),
        "127.0.0.1", {"dial": 80}, "lan", True,
    ),
    "dnat-to-loopback-without-localnet": (
        chain("prerouting", f"tcp dport 80 dnat ip to 127.0.0.1:{PORT}",
              kind="nat", priority="dstnat"),
        "127.0.0.1", {"dial": 80}, "loopback", False,
    ),
    "dnat-localnet-on-lo": (
        both(
            chain("prerouting", f"tcp dport 80 dnat ip to 127.0.0.1:{PORT}",
                  kind="nat", priority="dstnat"),
            lambda lan: lan.host.sysctl("ipv4/conf/lo/route_localnet", 1),
        ),
        "127.0.0.1", {"dial": 80}, "loopback", False,
    ),
    "dnat-ipv6-to-loopback": (
        chain("prerouting", f"tcp dport 80 dnat ip6 to [::1]:{PORT}",
              kind="nat", priority="dstnat"),
        "::1", {"dial": 80}, "loopback", False,
    ),
    "redirect-misses-loopback": (
        chain("prerouting", f"tcp dport 80 redirect to :{PORT}", kind="nat", priority="dstnat"),
        "127.0.0.1", {"dial": 80}, "loopback", False,
    ),
    "redirect-past-a-filter": (
        both(
            chain("prerouting", f"tcp dport 80 redirect to :{PORT}", kind="nat", priority="dstnat"),
            lambda lan: lan.host.nft(
                "table inet u {\n chain c {\n type filter hook input priority 0;\n"
                " meta l4proto tcp ct original proto-dst 8080 drop\n }\n}\n"
            ),
        ),
        "0.0.0.0", {"dial": 80}, "unknown", True,
    ),
    "redirect-to-nic": (
        chain("prerouting", f"tcp dport 80 redirect to :{PORT}", kind="nat", priority="dstnat"),
        HOST4, {"dial": 80}, "lan", True,
    ),
    "lo-down": (lo_down, "127.0.0.1", {}, "unreachable", False),
    "no-nic": (no_nic, "0.0.0.0", {}, "loopback", False),
    "multicast": (nothing, "224.0.0.251", {"kind": UDP}, "link", None),
    "broadcast": (nothing, "192.168.7.255", {"kind": UDP}, "link", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict_and_experience(lan, name):
    """The audit's level for a listener is what a neighbour with every address finds."""
    setup, address, options, level, gets_through = CASES[name]
    options = dict(options)
    dial = options.pop("dial", None)
    setup(lan)
    sock = lan.host.listen(address, PORT, **options)

    verdict = lan.verdict(sock)

    assert level == verdict.level, verdict.evidence
    assert verdict.evidence
    if gets_through is not None:
        assert gets_through == lan.answers(sock, port=dial)
