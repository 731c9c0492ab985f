"""Faults injected one at a time: the doctor names each by the right rung, with the right cause.

All patients are examined side by side, once, since most of the time is waiting for silence.
"""

import contextlib
import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from doctor_world import GATEWAY4, GATEWAY6, HOST4, HOST6, Clinic, truth

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
RUNGS = [
    "loopback-interface", "loopback-ipv4", "loopback-ipv6", "localhost-name", "own-address",
    "link", "gateway", "remote", "dns", "boxes",
]  # fmt: skip


def run(*commands):
    """A fault made of commands on the patient."""

    def injure(clinic):
        for command in commands:
            clinic.host.run(command)

    return injure


def at_gateway(*commands):
    """A fault made of commands on the gateway."""

    def injure(clinic):
        for command in commands:
            clinic.gateway.run(command)

    return injure


def sysctl(path, value):
    """A setting of the patient."""
    return lambda clinic: clinic.host.sysctl(path, value)


def etc(name, text):
    """A file of the patient's /etc."""
    return lambda clinic: clinic.write(name, text)


def nft(hook, *rules, where="host"):
    """A packet filter on the patient or the gateway."""
    body = "\n".join(rules)
    text = f"table inet t {{\n chain c {{\n type filter hook {hook} priority 0;\n{body}\n }}\n}}\n"
    return lambda clinic: getattr(clinic, where).nft(text)


def resolver(answer):
    """A DNS server with other ideas."""
    injure = lambda clinic: clinic.serve_dns(answer)  # noqa: E731
    injure.replaces_dns = True
    return injure


def no_resolver(clinic):
    """Nobody answers: the packets are dropped."""
    nft("input", "udp dport 53 drop", where="gateway")(clinic)


def port_shut(_clinic):
    """Nothing listens on port 53."""


no_resolver.replaces_dns = port_shut.replaces_dns = True


def never_up(clinic):
    """A loopback as in a fresh namespace."""
    clinic.host.run("ip link set lo down")
    clinic.host.run("ip addr flush dev lo")


def gateway_absent(clinic):
    """The default route names an address nobody has."""
    clinic.host.run("ip route replace default via 192.168.7.99")
    clinic.host.run("ip -6 route del default")


def gateway_stale(clinic):
    """The gateway was there a moment ago and is gone."""
    clinic.host.run("ip -6 route del default")
    clinic.forget_neighbours()
    clinic.host.run(f"ip neigh replace {GATEWAY4} lladdr 02:00:00:00:00:99 dev eth0 nud stale")
    clinic.gateway.nft(
        "table arp t {\n chain c {\n type filter hook input priority 0;\n drop\n }\n}\n"
    )
    clinic.gateway.nft(
        "table inet t {\n chain c {\n type filter hook input priority 0;\n drop\n }\n}\n"
    )


def gateway_silent(clinic):
    """The gateway answers ARP and nothing else, and forwards nothing."""
    clinic.host.run("ip -6 route del default")
    clinic.forget_neighbours()
    nft("input", "ip protocol { tcp, udp, icmp } drop", where="gateway")(clinic)


def neighbours_unknown(clinic):
    """A healthy machine that must first ask for its gateway's address."""
    clinic.forget_neighbours()


def proxied(clinic):
    """A proxy variable without exceptions."""
    clinic.environment = {"http_proxy": "http://proxy.example:3128"}


def proxied_with_exceptions(clinic):
    """A proxy variable that leaves localhost alone."""
    clinic.environment = {
        "http_proxy": "http://proxy.example:3128",
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }


def as_nobody(clinic):
    """A plain user who may not ping."""
    clinic.before = NOBODY


def default(kind):
    """A default route of a forbidding type, in both families."""
    return run(
        "ip route del default", "ip -6 route del default",
        f"ip route add {kind} default", f"ip -6 route add {kind} default",
    )  # fmt: skip


def remote_route(kind):
    """Routes that forbid every known target, the default route being fine."""
    targets = ("1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700:4700::1111")
    return run(*(f"ip route add {kind} {target}" for target in targets))


def to(target):
    """A remote target of the user's."""

    def choose(clinic):
        clinic.words = ["--remote", target]

    return choose


def both(*injuries):
    """Several at once."""

    def injure(clinic):
        for injury in injuries:
            injury(clinic)

    injure.replaces_dns = any(getattr(injury, "replaces_dns", False) for injury in injuries)
    return injure


def captive(name):
    """Every name is the portal."""
    return ["10.0.0.1"]


def liar(name):
    """Known names lead elsewhere."""
    return ["10.6.6.6"] if name != "this-name-cannot-exist.invalid" else "NXDOMAIN"


def no_user_namespaces(clinic):
    """A plain user where the sysctl forbids user namespaces, as far as that user can see."""
    clinic.before = [
        "unshare", "-U", "--map-root-user", "sh", "-c",
        (
            "for kind in user net; do echo 0 > /proc/sys/user/max_${kind}_namespaces; done;"
            ' exec "$0" "$@"'
        ),
    ]  # fmt: skip


V6_OFF = both(sysctl("ipv6/conf/all/disable_ipv6", 1))
FAULTS = {
    # name: (injury, rung, state, words of the cause)
    "lo-never-up": (never_up, "loopback-interface", "fail", "never up"),
    "lo-down": (run("ip link set lo down"), "loopback-interface", "fail", "lo is down"),
    "127.0.0.1-removed": (
        run("ip addr del 127.0.0.1/8 dev lo"), "loopback-ipv4", "fail", "127.0.0.1/8 is missing",
    ),
    "127-narrowed": (
        run("ip addr add 127.0.0.1/32 dev lo", "ip addr del 127.0.0.1/8 dev lo"),
        "loopback-ipv4", "warn", "without /8",
    ),
    "loopback-dns-without-loopback": (
        both(etc("resolv.conf", "nameserver 127.0.0.53\n"), run("ip link set lo down")),
        "loopback-interface", "fail", "lo is down",
    ),
    "local-route-gone": (
        run("ip route del local 127.0.0.0/8 dev lo table local",
            "ip route del local 127.0.0.1 dev lo table local"),
        "loopback-ipv4", "fail", "does not deliver 127.0.0.1",
    ),
    "::1-gone": (run("ip -6 addr del ::1/128 dev lo"), "loopback-ipv6", "fail", "::1 is missing"),
    "ipv6-off": (V6_OFF, "loopback-ipv6", "warn", "disable_ipv6=1 on all"),
    "ipv6-off-on-lo": (
        sysctl("ipv6/conf/lo/disable_ipv6", 1), "loopback-ipv6", "warn", "disable_ipv6=1 on lo",
    ),
    "ping-off": (
        sysctl("ipv4/icmp_echo_ignore_all", 1), "loopback-ipv4", "warn", "icmp_echo_ignore_all",
    ),
    "ping6-off": (
        sysctl("ipv6/icmp/echo_ignore_all", 1), "loopback-ipv6", "warn", "ping is switched off",
    ),
    "filter-on-lo": (
        nft("input", 'iif "lo" meta nfproto ipv4 drop'), "loopback-ipv4", "fail",
        "drops TCP and UDP",
    ),
    "filter-tcp-on-lo": (
        nft("input", 'iif "lo" ip protocol tcp drop'), "loopback-ipv4", "fail", "drops TCP to",
    ),
    "filter-udp-on-lo": (
        nft("output", 'oif "lo" ip protocol udp drop'), "loopback-ipv4", "fail", "drops UDP to",
    ),
    "filter6-on-lo": (
        nft("input", 'iif "lo" ip6 daddr ::1 drop'), "loopback-ipv6", "fail", "drops TCP and UDP",
    ),
    "hosts-without-localhost": (
        etc("hosts", f"{HOST4} me\n"), "localhost-name", "fail", "has no line for localhost",
    ),
    "hosts-missing": (etc("hosts", None), "localhost-name", "fail", "/etc/hosts is missing"),
    "hosts-wrong": (
        etc("hosts", "10.0.0.5 localhost\n"), "localhost-name", "fail", "localhost means 10.0.0.5",
    ),
    "nsswitch-without-files": (
        etc("nsswitch.conf", "hosts: dns\n"), "localhost-name", "fail",
        "does not ask the hosts file",
    ),
    "localhost-by-dns": (
        both(etc("hosts", ""), resolver(lambda n: ["127.0.0.1"] if n == "localhost" else truth(n))),
        "localhost-name", "warn", "a DNS server was asked",
    ),
    "proxy-catches-localhost": (
        proxied, "localhost-name", "warn", "http_proxy set without NO_PROXY",
    ),
    "no-carrier": (
        at_gateway("ip link set eth0 down"), "link", "fail", "no carrier on eth0",
    ),
    "nic-down": (run("ip link set eth0 down"), "link", "fail", "eth0 is switched off"),
    "no-nic": (run("ip link del eth0"), "link", "fail", "no network interface besides"),
    "no-address": (
        run("ip addr flush dev eth0"), "own-address", "fail", "eth0 has no address",
    ),
    "no-default-route": (
        run("ip route del default", "ip -6 route del default"),
        "gateway", "fail", "no default route",
    ),
    "default-prohibit": (default("prohibit"), "gateway", "fail", "is `prohibit`"),
    "default-blackhole": (default("blackhole"), "gateway", "fail", "is `blackhole`"),
    "default-unreachable": (default("unreachable"), "gateway", "fail", "is `unreachable`"),
    "gateway-absent": (gateway_absent, "gateway", "fail", "does not answer ARP on eth0"),
    "gateway-just-gone": (gateway_stale, "gateway", "fail", "does not answer ARP on eth0"),
    "gateway-silent": (gateway_silent, "remote", "fail", "lost beyond the gateway"),
    "remote-filtered": (
        nft("input", "tcp dport 443 drop", where="gateway"),
        "remote", "fail", "filtered, or no way",
    ),
    "remote-rejected": (
        nft("input", "tcp dport 443 reject with tcp reset", where="gateway"),
        "remote", "fail", "something refuses",
    ),
    "remote-admin-prohibited": (
        nft("input", "tcp dport 443 reject with icmpx type admin-prohibited", where="gateway"),
        "remote", "fail", "a router says",
    ),
    "remote-prohibited": (remote_route("prohibit"), "remote", "fail", "a route prohibits"),
    "remote-blackholed": (remote_route("blackhole"), "remote", "fail", "black-holes"),
    "remote-chosen-dead": (
        both(to("9.9.9.9:444"), nft("input", "tcp dport 444 drop", where="gateway")),
        "remote", "fail", "9.9.9.9:444",
    ),
    "own-filter-drops": (
        nft("output", "tcp dport 443 drop"), "remote", "fail", "",
    ),
    "dns-dead": (no_resolver, "dns", "fail", "does not answer"),
    "dns-refused": (port_shut, "dns", "fail", "nothing listens for DNS"),
    "dns-wrong": (resolver(liar), "dns", "fail", "is not 10.6.6.6"),
    "dns-captive": (resolver(captive), "dns", "fail", "captive portal"),
    "dns-servfail": (resolver(lambda _n: "SERVFAIL"), "dns", "fail", "SERVFAIL"),
    "dns-policy": (resolver(lambda _n: "REFUSED"), "dns", "fail", "refuses to answer"),
    "dns-closed-network": (
        resolver(lambda _n: "NXDOMAIN"), "dns", "warn", "does not know public names",
    ),
    "dns-no-server": (etc("resolv.conf", ""), "dns", "fail", "no name server in"),
    "dns-no-file": (etc("resolv.conf", None), "dns", "fail", "no /etc/resolv.conf"),
    "dns-first-dead": (
        both(
            etc("resolv.conf", f"nameserver 192.168.7.77\nnameserver {GATEWAY4}\n"),
            run("ip neigh replace 192.168.7.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent"),
        ),
        "dns", "warn", "192.168.7.77 is dead",
    ),
    "dns-not-asked": (etc("nsswitch.conf", "hosts: files\n"), "dns", "fail", "does not ask DNS"),
    "boxes-forbidden": (no_user_namespaces, "boxes", "fail", "namespaces"),
}  # fmt: skip

HEALTHY = {
    # what looks odd and is no fault
    "healthy": lambda _clinic: None,
    "neighbours-unknown": neighbours_unknown,
    "ping-not-permitted": as_nobody,
    "hosts-ipv4-only": etc("hosts", "127.0.0.1 localhost\n"),
    "gateway-drops-ping": nft(
        "input", "icmp type echo-request drop", "icmpv6 type echo-request drop", where="gateway"
    ),
    "gateway-closed": both(
        neighbours_unknown,
        nft("input", "ip daddr 192.168.7.2 udp dport != 53 drop", where="gateway"),
    ),
    "ipv4-only": run("ip -6 route del default", "ip -6 addr flush dev eth0"),
    "proxy-with-exceptions": proxied_with_exceptions,
    "lo-renamed": run("ip link set lo down", "ip link set lo name lo9", "ip link set lo9 up",
                      ),
    "chosen-remote-refuses": to("9.9.9.9:4444"),
    "chosen-remote-by-name": to("dns.google"),
    "a-bridge-without-carrier": run("ip link add br0 type bridge", "ip link set br0 up"),
    "default-in-two-halves": run(
        "ip route del default", f"ip route add 0.0.0.0/1 via {GATEWAY4}",
        f"ip route add 128.0.0.0/1 via {GATEWAY4}",
    ),
    "default6-of-public-space": run(
        "ip -6 route del default", f"ip -6 route add 2000::/3 via {GATEWAY6}",
    ),
    "two-ways-of-one-default": run(
        f"ip route replace default nexthop via {GATEWAY4} nexthop via {GATEWAY4} weight 2",
    ),
    "gateway6": run(f"ip -6 route replace default via {GATEWAY6} metric 5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Fault name to (exit status, document, seconds, loopback pairs seen on the wire)."""

    # With xdist each worker comes here: the first examines, the others read what it found.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with open(shared / "doctor.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = shared / "doctor.json"
        if not kept.exists():
            kept.write_text(json.dumps(examine_all(tmp_path_factory.mktemp("doctor"))))
        return json.loads(kept.read_text())


def examine_all(base):
    """Every patient's report, ten at a time."""

    def treat(item):
        name, injure = item
        etc_of_its_own = base / name
        etc_of_its_own.mkdir(mode=0o755)
        with contextlib.ExitStack() as stack:
            clinic = Clinic(stack, etc_of_its_own)
            if not getattr(injure, "replaces_dns", False):
                clinic.serve_dns()
            injure(clinic)
            watches = "eth0" in clinic.gateway.run("ip -br link show up").stdout
            if watches:
                clinic.watch_the_wire()
            start = time.monotonic()
            status, document = clinic.examine()
            seconds = time.monotonic() - start
            leaks = clinic.loopback_on_the_wire() if watches else []
            return name, (status, document, seconds, leaks)

    cases = {name: entry[0] for name, entry in FAULTS.items()} | HEALTHY
    with ThreadPoolExecutor(max_workers=10) as pool:
        return dict(pool.map(treat, cases.items()))


def rungs(document):
    """Rung id to rung."""
    return {rung["id"]: rung for rung in document["rungs"]}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_right_rung_with_the_right_cause(reports, fault):
    """Exactly one rung is red (or yellow, for what still works), and its cause names the fault."""
    _, rung, state, words = FAULTS[fault]
    status, document, *_ = reports[fault]
    found = rungs(document)
    odd = {name: entry["state"] for name, entry in found.items() if entry["state"] == state}
    red = [name for name, entry in found.items() if entry["state"] == "fail"]

    assert odd == {rung: state}, document
    assert words in found[rung]["cause"]
    assert found[rung]["fix"] or fault == "no-nic"
    assert (status, document["passed"], len(red)) == (
        (1, False, 1) if state == "fail" else (0, True, 0)
    )


def test_offline_sends_nothing_beyond_the_gateway(tmp_path):
    """No frame has another destination than the gateway or the link, and none asks a name."""
    with contextlib.ExitStack() as stack:
        etc_folder = tmp_path / "etc"
        etc_folder.mkdir()
        clinic = Clinic(stack, etc_folder)
        clinic.serve_dns()
        clinic.watch_the_wire()
        clinic.words = ["--offline"]

        status, document = clinic.examine()

        states = {rung["id"]: rung["state"] for rung in document["rungs"]}
        assert (0, "skip", "skip", "pass") == (
            status, states["remote"], states["dns"], states["gateway"]
        )  # fmt: skip
        assert clinic.destinations() <= {GATEWAY4, GATEWAY6, HOST4, HOST6}


@pytest.mark.parametrize("case", HEALTHY)
def test_no_false_alarm(reports, case):
    """What looks odd and works is green: nothing red, nothing yellow."""
    status, document, *_ = reports[case]

    assert {} == {
        rung["id"]: rung["cause"]
        for rung in document["rungs"]
        if rung["state"] not in ("pass", "skip")
    }
    assert (status, document["passed"]) == (0, True)


def test_every_report_has_the_ladder_in_order(reports):
    """All ten rungs, always, in the contract's order, each with what the contract says."""
    for status, document, *_ in reports.values():
        assert RUNGS == [rung["id"] for rung in document["rungs"]]
        assert all(
            {"id", "title", "state", "cause", "fix", "evidence", "ms"} == set(rung)
            for rung in document["rungs"]
        )
        assert status in (0, 1)


def test_never_longer_than_fifteen_seconds(reports):
    """Even when everything is silent, and ten patients share two processors."""
    assert max(seconds for _, _, seconds, _ in reports.values()) < 15


def test_probing_puts_no_loopback_packet_on_the_wire(reports):
    """Whatever is broken, the far end of the cable sees nothing of 127/8 or ::1."""
    assert {} == {name: leaks for name, (*_, leaks) in reports.items() if leaks}


def test_consequences_are_marked(reports):
    """With the cable out, what hangs on it is skipped and says so."""
    found = rungs(reports["no-carrier"][1])

    assert {"gateway", "remote", "dns"} == {
        name for name, rung in found.items() if rung["cause"] == "consequence of link"
    }
