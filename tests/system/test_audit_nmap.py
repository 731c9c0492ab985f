"""nmap from a neighbouring host finds open exactly what the audit says that neighbour reaches.

Random listeners behind random packet filters, reproducible by seed: 20 hosts of 10 listeners each.
"""

import contextlib
import os
import random
import re
import shutil
from ipaddress import ip_address

import pytest
from audit_world import HOST4, HOST6, PEER4, PEER6, Lan

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
    pytest.mark.skipif(shutil.which("nmap") is None, reason="needs nmap"),
]

ROUNDS, LISTENERS = 20, 10
ALIAS = "10.9.9.9"
BINDS = [
    ("0.0.0.0", {}),
    ("::", {"v6only": 0}),
    ("::", {"v6only": 1}),
    (HOST4, {}),
    (HOST6, {}),
    (ALIAS, {}),
    ("127.0.0.1", {}),
    ("::1", {}),
    ("::ffff:0.0.0.0", {"v6only": 0}),
    ("0.0.0.0", {"device": "lo"}),
    ("0.0.0.0", {"device": "eth0"}),
]


def rule(dice, ports):
    """One random nftables rule about one of the ports."""
    port = dice.choice(ports)
    low, high = sorted(dice.sample(ports, 2))
    matches = [
        f"tcp dport {port}",
        f"tcp dport != {port}",
        f"tcp dport {low}-{high}",
        f"tcp dport {{ {low}, {high} }}",
        f"ip saddr {PEER4} tcp dport {port}",
        "ip saddr 192.168.7.0/30",
        f"ip saddr != {PEER4} tcp dport {port}",
        f"ip6 saddr {PEER6} tcp dport {port}",
        f"ip daddr {HOST4} tcp dport {low}-{high}",
        f"ip daddr {ALIAS}",
        f'iifname "eth*" tcp dport {port}',
        'iif "lo"',
        "ct state established,related",
        f"ct state new tcp dport {port}",
        f"meta nfproto ipv6 tcp dport {low}-{high}",
        "meta l4proto udp",
        "tcp flags & (fin | syn | rst | ack) == syn meta nfproto ipv6",
        "fib daddr type local tcp sport 1-1023",
    ]
    verdict = dice.choice(["accept", "accept", "drop", "reject", "jump odd", "goto odd", "return"])
    return f"{dice.choice(matches)} {verdict}"


def ruleset(dice, ports):
    """A random filter, and sometimes a translation."""
    rules = "\n".join(rule(dice, ports) for _ in range(dice.randint(0, 6)))
    odd = "\n".join(
        rule(dice, ports).replace("jump odd", "drop").replace("goto odd", "accept")
        for _ in range(dice.randint(0, 3))
    )
    policy = dice.choice(["accept", "drop"])
    ways = [
        "",
        f"tcp dport {dice.choice(ports)} redirect to :{dice.choice(ports)}",
        f"tcp dport {dice.choice(ports)} dnat ip to {HOST4}:{dice.choice(ports)}",
    ]
    replies = "ct state established accept" if policy == "drop" else ""
    return (
        "table inet t {\n chain odd {\n" + odd + "\n}\n chain c {\n"
        f" type filter hook input priority 0; policy {policy};\n{replies}\n"
        # Neighbour discovery must work, or nothing IPv6 is tested at all.
        f" meta l4proto icmpv6 accept\n{rules}\n }}\n"
        " chain n {\n type nat hook prerouting priority dstnat;\n"
        f" {dice.choice(ways)}\n }}\n}}\n"
    )


def scan(lan, ports):
    """(address, port) pairs that nmap calls open, from the neighbour."""
    found = set()
    for family, addresses in (("-4", [HOST4, ALIAS]), ("-6", [HOST6])):
        output = lan.peer.run(
            ["nmap", family, "-n", "-Pn", "-sT", "-T5", "--max-retries", "0", "--disable-arp-ping",
             "--max-rtt-timeout", "150ms", "--min-parallelism", "30",
             "-p", ",".join(map(str, ports)), "-oG", "-", *addresses]
        ).stdout  # fmt: skip
        for line in output.splitlines():
            host = re.match(r"Host: (\S+) .*Ports: (.*)", line)
            if host:
                found |= {(host[1], int(port)) for port in re.findall(r"(\d+)/open/tcp", host[2])}
    return found


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_nmap_agrees(seed):
    """For each listener of this random host, nmap's finding is the audit's."""
    dice = random.Random(seed)
    ports = sorted(dice.sample(range(2000, 30000), LISTENERS))
    with contextlib.ExitStack() as stack:
        lan = Lan(stack)
        lan.add_address(ALIAS)
        socks = {
            port: lan.host.listen(address, port, **options)
            for port in ports
            for address, options in [dice.choice(BINDS)]
        }
        lan.host.nft(ruleset(dice, ports))
        judge = lan.reachability()
        opened = {}
        for port, sock in socks.items():
            sock.setblocking(False)
            entry = lan.listener(sock)
            told = {judge.reaches(entry, ip_address(peer)) for peer in (PEER4, PEER6)}
            opened[port] = (
                "open" if "open" in told else "unknown" if "unknown" in told else "closed"
            )
        scanned = scan(lan, ports)
        if "sport" in lan.host.run("nft list ruleset").stdout:
            # A sender chooses the port it sends from: once more from privileged ones.
            lan.peer.sysctl("ipv4/ip_unprivileged_port_start", 500)
            lan.peer.sysctl("ipv4/ip_local_port_range", "600 1001")
            scanned |= scan(lan, ports)
        reached = {port: "open" if is_hit(sock) else "closed" for port, sock in socks.items()}

        rules = lan.host.run("nft list ruleset").stdout

        assert opened == reached, rules
        if "dnat" not in rules and "redirect" not in rules:
            # A translated port is open to nmap without its own listener being reached.
            assert {port for _, port in scanned} == {
                port for port, told in opened.items() if told == "open"
            }


def is_hit(sock):
    """Whether a connection waits at a listener: what nmap opened ended here."""
    try:
        connection, _ = sock.accept()
    except BlockingIOError:
        return False
    connection.close()
    return True
