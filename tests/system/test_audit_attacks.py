"""Rulesets made to fool the audit: each lets a neighbour in by a way that is easily overlooked.

Every case is tried for real. A verdict that calls a listener shut while the neighbour connects is
the worst fault the audit can have; here every one of those that was found stands as a case.
"""

import contextlib
import os
import socket
import struct

import pytest
from audit_world import HOST4, HOST6, PEER4, WAIT, Lan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

UDP = socket.SOCK_DGRAM
PORT = 8080
IP_TRANSPARENT = 19
IPV6_HOPOPTS = 54


@pytest.fixture
def lan():
    """A host and its neighbour."""
    with contextlib.ExitStack() as stack:
        yield Lan(stack)


def chain(*rules, hook="input", policy="drop", kind="filter", priority="0", extra=""):
    """One base chain of an inet table, with sets and further chains in `extra`."""
    body = "\n".join(rules)
    return (
        f"table inet t {{\n{extra}\n chain c {{\n type {kind} hook {hook} priority {priority}; "
        f"policy {policy};\n{body}\n }}\n}}\n"
    )


def nft(*texts):
    """Load scripts."""

    def load(lan):
        for text in texts:
            lan.host.nft(text)

    return load


def iptables(*rules, program="iptables"):
    """Run iptables commands."""

    def load(lan):
        for rule in rules:
            lan.host.run([program, *rule.split()])

    return load


def sysctl(path, value):
    """A setting of the host."""
    return lambda lan: lan.host.sysctl(path, value)


def both(*setups):
    """Several setups, in order."""

    def run_all(lan):
        for setup in setups:
            setup(lan)

    return run_all


def dial(address=HOST4, port=PORT, *, sport=None, options=b""):
    """A TCP connection from the neighbour: does it come about?"""

    def attempt():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.settimeout(WAIT)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HOPOPTS, options)
            if sport:
                sock.bind(("", sport))
            try:
                sock.connect((address, port))
            except OSError:
                return False
            return True

    return lambda lan, _sock: lan.peer.do(attempt)


def knock_and_dial(lan, sock):
    """The neighbour knocks at port 7000 first."""
    dial(port=7000)(lan, sock)
    return dial()(lan, sock)


def send(address=HOST4, port=PORT):
    """A datagram from the neighbour: does it arrive?"""

    def attempt():
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.sendto(b"audit", (address, port))

    def arrives(lan, sock):
        lan.peer.do(attempt)
        sock.settimeout(WAIT)
        try:
            return sock.recv(64) == b"audit"
        except OSError:
            return False

    return arrives


def transparent(listener):
    """The listener takes what a transparent proxy gives it."""
    listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def policy_route(lan):
    """The usual route by which a transparent proxy makes everything local, in a table apart."""
    lan.host.run("ip rule add fwmark 1 lookup 100")
    lan.host.run("ip route add local 0.0.0.0/0 dev lo table 100")


MANY = ", ".join(str(port) for port in range(1, 80))
NAT = {"hook": "prerouting", "policy": "accept", "kind": "nat", "priority": "dstnat"}
DROP_8080 = chain(f"tcp dport {PORT} drop", policy="accept")

CASES = {
    # name: (setup, address, options, dial, level, does the neighbour get through)
    "source-port": (nft(chain("tcp sport 53 accept")), "0.0.0.0", {}, dial(sport=53), "lan", True),
    "source-port-iptables": (
        iptables("-A INPUT -p tcp --sport 20:53 -j ACCEPT", "-P INPUT DROP"),
        "0.0.0.0", {}, dial(sport=53), "lan", True,
    ),
    "not-tracked": (
        nft(
            chain(f"tcp dport {PORT} notrack", hook="prerouting", priority="raw", policy="accept"),
            "table inet u { chain c { type filter hook input priority 0; ct state new drop; }; }",
        ),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "not-tracked-iptables": (
        iptables(
            "-t raw -A PREROUTING -p tcp -j CT --notrack",
            "-A INPUT -m conntrack --ctstate NEW -j DROP",
        ),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "state-before-tracking": (
        nft(chain("ct state new drop", hook="prerouting", priority="raw", policy="accept")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "count-of-connections": (
        nft(chain(f"tcp dport {PORT} ct count over 20 reject", policy="accept")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "quota": (
        nft(chain(f"tcp dport {PORT} quota over 10 mbytes drop", policy="accept")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "meter": (
        nft(
            chain(
                f"tcp dport {PORT} meter flood {{ ip saddr limit rate over 10/second }} drop",
                policy="accept",
            )
        ),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "vmap-of-pairs": (
        nft(chain(f"ip saddr . tcp dport vmap {{ {PEER4} . {PORT} : accept }}")),
        "0.0.0.0", {}, dial(), "unknown", True,
    ),
    "set-of-pairs": (
        nft(chain(f"ip saddr . tcp dport {{ {PEER4} . {PORT} }} accept")),
        "0.0.0.0", {}, dial(), "unknown", True,
    ),
    "vmap-catch-all": (
        nft(chain("tcp dport vmap { 22 : drop, * : accept }")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "vmap-by-interface": (
        nft(
            chain(
                'iifname vmap { "lo" : accept, "eth0" : jump lan }',
                extra=f"chain lan {{\n tcp dport {PORT} accept\n }}",
            )
        ),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "knocking": (
        nft(
            chain(
                "tcp dport 7000 add @open { ip saddr }", "ip saddr @open accept",
                extra="set open { type ipv4_addr; flags dynamic, timeout; timeout 1m; }",
            )
        ),
        "0.0.0.0", {}, knock_and_dial, "unknown", True,
    ),
    "queue-without-anybody": (
        iptables("-A INPUT -p tcp -j NFQUEUE --queue-num 7 --queue-bypass", "-P INPUT DROP"),
        "0.0.0.0", {}, dial(), "unknown", None,
    ),
    "rewritten-port": (
        nft(
            DROP_8080.replace("hook input priority 0", "hook prerouting priority -310"),
            "table inet u { chain c { type filter hook prerouting priority -300;"
            f" udp dport 80 udp dport set {PORT}; }}; }}",
        ),
        "0.0.0.0", {"kind": UDP}, send(port=80), "lan", True,
    ),
    "rewritten-port-past-a-filter": (
        nft(
            f"table inet a {{ chain c {{ type filter hook prerouting priority -310;"
            f" udp dport {PORT} drop; }}; }}",
            "table inet u { chain c { type filter hook prerouting priority -300;"
            f" udp dport 80 udp dport set {PORT}; }}; }}",
        ),
        "0.0.0.0", {"kind": UDP}, send(port=80), "lan", True,
    ),
    "tproxy-keeps-the-port": (
        both(
            nft(
                DROP_8080,
                "table inet u { chain c { type filter hook prerouting priority mangle;"
                f" tcp dport 80 tproxy ip to :{PORT} meta mark set 1 accept; }}; }}",
            ),
            policy_route,
        ),
        "0.0.0.0", {"after": transparent}, dial(port=80), "lan", True,
    ),
    "tproxy-to-loopback": (
        both(
            nft(
                "table inet u { chain c { type filter hook prerouting priority mangle;"
                f" tcp dport 80 tproxy ip to 127.0.0.1:{PORT} meta mark set 1 accept; }}; }}",
            ),
            policy_route,
        ),
        "127.0.0.1", {"after": transparent}, dial(port=80), "lan", True,
    ),
    "tproxy-route-and-wildcard": (policy_route, "0.0.0.0", {}, dial(), "lan", True),
    "tproxy-elsewhere-only": (
        both(
            nft(
                DROP_8080,
                "table inet u { chain c { type filter hook prerouting priority mangle;"
                f" fib daddr type != local tcp dport 80 tproxy ip to :{PORT} meta mark set 1"
                " accept; }; }",
            ),
            policy_route,
            lambda lan: lan.peer.run(f"ip route add 198.51.100.0/24 via {HOST4}"),
        ),
        "0.0.0.0", {"after": transparent}, dial("198.51.100.7", 80), "link", True,
    ),
    "dnat-of-far-addresses": (
        both(
            nft(
                DROP_8080.replace(f"tcp dport {PORT}", "ct status & dnat == 0"),
                "table ip n { chain c { type nat hook prerouting priority dstnat;"
                f" ip daddr 10.96.0.1 tcp dport 443 dnat to {HOST4}:{PORT}; }}; }}",
            ),
            lambda lan: lan.peer.run(f"ip route add 10.96.0.1 via {HOST4}"),
        ),
        "0.0.0.0", {}, dial("10.96.0.1", 443), "link", True,
    ),
    "first-translation-counts": (
        both(
            nft(
                "table ip a { chain c { type nat hook prerouting priority -110;"
                f" tcp dport 80 dnat to 127.0.0.1:{PORT}; }}; }}",
                "table ip b { chain c { type nat hook prerouting priority -90;"
                f" tcp dport {PORT} dnat to 127.0.0.1:9; }}; }}",
                "table ip g { chain c { type filter hook prerouting priority raw;"
                " ip daddr 127.0.0.0/8 drop; }; }",
            ),
            sysctl("ipv4/conf/eth0/route_localnet", 1),
        ),
        "127.0.0.1", {}, dial(port=80), "lan", True,
    ),
    "dnat-by-map": (
        nft(
            DROP_8080.replace(f"tcp dport {PORT}", "ct status & dnat == 0"),
            "table ip n { chain c { type nat hook prerouting priority dstnat;"
            f" dnat to tcp dport map {{ 80 : {HOST4} . {PORT} }}; }}; }}",
        ),
        "0.0.0.0", {}, dial(port=80), "unknown", True,
    ),
    "dnat-by-number": (
        nft(
            DROP_8080.replace(f"tcp dport {PORT}", "ct status & dnat == 0"),
            "table ip n { chain c { type nat hook prerouting priority dstnat;"
            f" tcp dport 80 dnat to numgen inc mod 1 map {{ 0 : {HOST4} }}:{PORT}; }}; }}",
        ),
        "0.0.0.0", {}, dial(port=80), "unknown", True,
    ),
    "dnat-by-number-past-the-first-port": (
        nft(
            "table inet t { chain c { type filter hook input priority 0; tcp dport 80 drop;"
            f" tcp dport {PORT} ct status & dnat == 0 drop; }}; }}",
            "table ip n { chain c { type nat hook prerouting priority dstnat;"
            f" tcp dport 80 dnat to numgen inc mod 1 map {{ 0 : {HOST4} }}:{PORT}; }}; }}",
        ),
        "0.0.0.0", {}, dial(port=80), "unknown", True,
    ),
    "dnat-to-one-of-several-ports": (
        nft(
            "table inet t { chain c { type filter hook input priority 0; tcp dport 8079 drop;"
            f" tcp dport {PORT} ct status & dnat == 0 drop; }}; }}",
            "table ip n { chain c { type nat hook prerouting priority dstnat;"
            f" tcp dport 80 dnat to {HOST4}:8079-{PORT}; }}; }}",
        ),
        "0.0.0.0", {}, dial(port=80), "unknown", None,
    ),
    "many-named-ports": (
        nft(
            chain(f"tcp dport {{ {MANY} }} drop", "ct status dnat accept"),
            "table ip n { chain c { type nat hook prerouting priority dstnat;"
            f" tcp dport 5000 dnat to {HOST4}:{PORT}; }}; }}",
        ),
        "0.0.0.0", {}, dial(port=5000), "lan", True,
    ),
    "extra-chain-in-iptables-table": (
        both(
            iptables("-t nat -A PREROUTING -j ACCEPT",
                     "-t nat -I PREROUTING -m u32 --u32 0x0=0x0 -j ACCEPT"),
            nft(
                "table ip nat { chain mine { type nat hook prerouting priority -110;"
                f" tcp dport 80 dnat to {HOST4}:{PORT}; }}; }}",
                DROP_8080.replace(f"tcp dport {PORT}", "ct status & dnat == 0"),
            ),
        ),
        "0.0.0.0", {}, dial(port=80), "lan", True,
    ),
    "next-header": (
        nft(chain("meta nfproto ipv6 ip6 nexthdr tcp drop", policy="accept")),
        "::", {"v6only": 1}, dial(HOST6, options=struct.pack("8B", 0, 0, 1, 4, 0, 0, 0, 0)),
        "lan", True,
    ),
    "syn-ack-has-syn": (
        nft(chain("tcp sport 8080 tcp flags & syn == syn accept", "tcp sport 8080 drop",
                  hook="output", policy="accept")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "drop-of-syn-answers": (
        nft(chain("tcp flags & syn == syn drop", hook="output", policy="accept")),
        "0.0.0.0", {}, dial(), "blocked", False,
    ),
    "no-flags": (
        iptables("-A INPUT -p tcp --tcp-flags ALL NONE -j DROP",
                 "-A INPUT -p tcp --tcp-flags ALL ALL -j DROP",
                 "-A INPUT -p tcp --tcp-flags SYN,FIN SYN,FIN -j DROP"),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "no-flags-nft": (
        nft(chain("tcp flags & (fin|syn|rst|psh|ack|urg) == 0x0 drop",
                  "tcp flags & (fin|syn) == (fin|syn) drop", policy="accept")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "reverse-path": (
        nft(chain("fib saddr . mark . iif oif missing drop", hook="prerouting",
                  policy="accept", priority="-290")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "reverse-path-iptables": (
        iptables("-t mangle -A PREROUTING -m rpfilter --invert -j DROP"),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "routing-header": (
        iptables("-A INPUT -m rt --rt-type 0 -j DROP", program="ip6tables"),
        "::", {"v6only": 1}, dial(HOST6), "lan", True,
    ),
    "ufw-limit": (
        iptables(
            "-A INPUT -p tcp -m conntrack --ctstate NEW -m recent --set --name DEFAULT",
            "-A INPUT -p tcp -m conntrack --ctstate NEW -m recent --update --seconds 30"
            " --hitcount 6 --name DEFAULT -j REJECT",
            f"-A INPUT -p tcp --dport {PORT} -j ACCEPT", "-P INPUT DROP",
        ),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "firewalld": (
        nft(
            "table inet firewalld { chain ok { tcp dport 22 accept; }; chain public { jump ok;"
            f" tcp dport {PORT} ct state {{ new, untracked }} accept;"
            " meta l4proto { icmp, ipv6-icmp } accept; }; chain zones { goto public; };"
            " chain pre { type filter hook prerouting priority -140;"
            " meta nfproto ipv6 fib saddr . mark . iif oif missing drop; };"
            " chain c { type filter hook input priority 10;"
            " ct state { established, related } accept; ct status dnat accept;"
            ' iifname "lo" accept; ct state invalid drop; jump zones;'
            " reject with icmpx admin-prohibited; }; }"
        ),
        "::", {"v6only": 0}, dial(HOST6), "lan", True,
    ),
    "ttl": (iptables("-A INPUT -m ttl --ttl-lt 5 -j DROP"), "0.0.0.0", {}, dial(), "lan", True),
    "legacy-drop": (
        iptables("-A INPUT -p tcp -j DROP", program="iptables-legacy"),
        "0.0.0.0", {}, dial(), "blocked", False,
    ),
    "legacy-source-port": (
        iptables("-A INPUT -p tcp --sport 53 -j ACCEPT", "-P INPUT DROP",
                 program="iptables-legacy"),
        "0.0.0.0", {}, dial(sport=53), "lan", True,
    ),
    "socket-match": (
        iptables("-A INPUT -p tcp -m socket --nowildcard -j DROP"),
        "0.0.0.0", {}, dial(), "unknown", None,
    ),
    "accept-in-one-drop-in-the-next": (
        nft(chain(f"tcp dport {PORT} accept", policy="accept", priority="-10"),
            "table inet u { chain c { type filter hook input priority 0; policy drop; }; }"),
        "0.0.0.0", {}, dial(), "blocked", False,
    ),
    "dormant-table": (
        nft(chain().replace("table inet t {", "table inet t { flags dormant;")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "goto-and-policy": (
        nft(chain("goto other", policy="accept", extra="chain other {\n tcp dport 22 drop\n }")),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "nat-input-chain": (
        nft("table ip n { chain c { type nat hook input priority 100; policy accept;"
            f" tcp dport {PORT} snat to 192.168.7.99; tcp dport {PORT} drop; }}; }}"),
        "0.0.0.0", {}, dial(), "lan", True,
    ),
    "type-of-link": (
        nft(chain("iiftype ether accept")), "0.0.0.0", {}, dial(), "unknown", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_ruleset_fools_the_audit(lan, name):
    """The level stands, and the neighbour's own try agrees with it."""
    setup, address, options, attempt, level, gets_through = CASES[name]
    options = dict(options)
    after = options.pop("after", None)
    setup(lan)
    sock = lan.host.listen(address, PORT, **options)
    if after is not None:
        after(sock)

    verdict = lan.verdict(sock)

    if gets_through is not None:
        assert gets_through == attempt(lan, sock), verdict
    assert level == verdict.level, verdict.evidence
