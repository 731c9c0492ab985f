"""The doctor on macOS, the BSDs and Windows, on recorded output (hand-written recordings)."""

import ast
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.kernel.checkup_elsewhere import Hands, examine_elsewhere
from loopbox.rules.doctor import inward, naming, outward
from loopbox.rules.doctor.ladder import climb, has_passed
from loopbox.rules.doctor.naming import KNOWN
from loopbox.rules.doctor.observed import Attempt, ServerSeen
from loopbox.rules.doctor.targets import TARGETS, parse_remote
from loopbox.rules.foreign import paths, windows
from loopbox.rules.foreign.remedies import reworded

sys.path.insert(0, str(Path(__file__).with_name("recordings")))
import freebsd as freebsd_says
import macos as macos_says
import windows as windows_says

SYSTEMS = ("macos", "freebsd", "openbsd", "netbsd", "solaris", "aix", "windows")
TRUE = {name: tuple(sorted(found)) for name, found in KNOWN.items()}


def mac(**changed):
    """A Mac's tools; `changed` are other answers, by the tool's name."""
    answers = {
        "ifconfig": macos_says.IFCONFIG,
        "netstat": macos_says.ROUTES,
        "arp": macos_says.ARP,
        "ndp": macos_says.NDP,
        "scutil": macos_says.SCUTIL,
        "ping": macos_says.PING,
        "ping6": macos_says.PING,
    } | changed

    def run(argv):
        if argv[0] == "route":
            return changed.get("route", macos_says.ROUTE_GET).get(argv[-1], "")
        return answers[argv[0]]

    return run


def bsd(argv):
    """FreeBSD's tools."""
    if argv[0] == "route":
        return freebsd_says.ROUTE_GET.get(argv[-1], "")
    answers = {
        "ifconfig": freebsd_says.IFCONFIG,
        "netstat": freebsd_says.ROUTES,
        "arp": freebsd_says.ARP,
        "ping": freebsd_says.PING,
        "ping6": freebsd_says.PING,
    }
    return answers.get(argv[0], "")


def pc(**changed):
    """Windows' PowerShell; `changed` are other answers, by the first word of the query."""
    answers = {
        "Get-NetIPAddress": windows_says.ADDRESSES,
        "Get-NetAdapter": windows_says.ADAPTERS,
        "Get-NetRoute": windows_says.ROUTES,
        "Get-NetNeighbor": windows_says.NEIGHBOURS,
        "Get-DnsClientServerAddress": windows_says.SERVERS,
        "(New-Object": windows_says.PING,
    } | changed
    return lambda argv: answers[argv[-1].split()[0]]


FILES = {
    "mac": {"/etc/hosts": macos_says.HOSTS},
    "bsd": {
        "/etc/hosts": freebsd_says.HOSTS,
        "/etc/resolv.conf": freebsd_says.RESOLV_CONF,
        "/etc/nsswitch.conf": freebsd_says.NSSWITCH,
    },
    "pc": {r"C:\Windows\System32\drivers\etc\hosts": windows_says.HOSTS},
}


def hands(run, files, **changed):
    """A machine on which everything works, but for what is changed."""
    localhost = ("::1", "127.0.0.1")
    well = Hands(
        run=run,
        tcp=lambda _address: Attempt("ok", 0.1),
        udp=lambda _address: Attempt("ok", 0.1),
        remote=lambda targets: [Attempt("ok", 9.0) for _ in targets],
        look_up=lambda name: ((localhost if name == "localhost" else TRUE[name]), None),
        ask_server=lambda server, _names: ServerSeen(server, "ok", TRUE),
        leaks=lambda _server: False,
        read=files.get,
        environment={},
    )
    return replace(well, **changed)


def rungs(platform, machine, **options):
    """The ladder by rung."""
    return {one.id: one for one in climb(examine_elsewhere(platform, hands=machine, **options))}


@pytest.mark.parametrize(
    ("platform", "run", "files"),
    [("darwin", mac(), "mac"), ("freebsd14", bsd, "bsd"), ("win32", pc(), "pc")],
)
def test_a_healthy_machine_is_green(platform, run, files):
    """Every rung passes, but for boxes, which is Linux only and skipped."""
    found = rungs(platform, hands(run, FILES[files]))

    assert {"boxes": "skip"} | dict.fromkeys(list(found)[:-1], "pass") == {
        name: rung.state for name, rung in found.items()
    }
    assert "Linux only" == found["boxes"].cause
    assert has_passed(tuple(found.values()))


def silent(_targets):
    """Nobody out there answers."""
    return [Attempt("timeout", 3000.0) for _ in _targets]


def without(text, word):
    """The recording without the lines that hold a word."""
    return "".join(line for line in text.splitlines(keepends=True) if word not in line)


DEAD = Attempt("timeout", 1500.0)
MAC_FAULTS = {
    # name: (other answers of tools, other hands, rung, state, cause, fix)
    "lo-down": (
        {
            "ifconfig": macos_says.IFCONFIG.replace(
                "flags=8049<UP,LOOPBACK", "flags=8048<LOOPBACK"
            ),
            "route": {"1.1.1.1": macos_says.ROUTE_GET["1.1.1.1"]},
        },
        {}, "loopback-interface", "fail", "lo0 is down", "sudo ifconfig lo0 up",
    ),
    "127-missing": (
        {"ifconfig": without(macos_says.IFCONFIG, "127.0.0.1"),
         "route": {"::1": macos_says.ROUTE_GET["::1"]}},
        {}, "loopback-ipv4", "fail", "127.0.0.1/8 is missing from lo0",
        "sudo ifconfig lo0 inet 127.0.0.1 netmask 255.0.0.0 alias",
    ),
    "one-missing": (
        {"ifconfig": without(macos_says.IFCONFIG, "inet6 ::1 "),
         "route": {"127.0.0.1": macos_says.ROUTE_GET["127.0.0.1"]}},
        {}, "loopback-ipv6", "fail", "::1 is missing from lo0",
        "sudo ifconfig lo0 inet6 ::1 prefixlen 128 alias",
    ),
    "pf-on-lo": (
        {}, {"tcp": lambda _a: DEAD, "udp": lambda _a: DEAD}, "loopback-ipv4", "fail",
        "a packet filter on lo0 drops TCP and UDP to 127.0.0.1", "sudo pfctl -sr",
    ),
    "localhost-elsewhere": (
        {}, {"look_up": lambda name: (("10.9.9.9",) if name == "localhost" else TRUE[name], None)},
        "localhost-name", "fail",
        "localhost means 10.9.9.9, which is not the loopback (by DNS)",
        "correct the localhost lines of /etc/hosts",
    ),
    "cable-out": (
        {"ifconfig": macos_says.IFCONFIG.replace("status: active", "status: inactive")},
        {"remote": silent}, "link", "fail", "no carrier on en0",
        "plug in the cable, or join the wireless network (en0)",
    ),
    "no-lease": (
        {"ifconfig": without(macos_says.IFCONFIG, "192.168.1.23")},
        {"remote": silent}, "own-address", "fail", "en0 has no address",
        "sudo ipconfig set en0 DHCP, or: sudo ifconfig en0 inet ADDRESS netmask MASK",
    ),
    "no-default-route": (
        {"netstat": without(macos_says.ROUTES, "default")}, {"remote": silent},
        "gateway", "fail", "there is no default route",
        "sudo ipconfig set IF DHCP, or: sudo route add default GATEWAY",
    ),
    "gateway-absent": (
        {"arp": macos_says.ARP.replace("a4:b1:c1:0:0:1", "(incomplete)"),
         "ping": macos_says.NO_PING}, {"remote": silent}, "gateway", "fail",
        "192.168.1.1 does not answer ARP on en0",
        "check the address in the default route, and whether the gateway is on",
    ),
    "gateway-silent": (
        {"ping": macos_says.NO_PING}, {"remote": silent}, "gateway", "warn",
        "192.168.1.1 was there lately and is silent now", "ping 192.168.1.1",
    ),
    "nothing-beyond": (
        {}, {"remote": silent}, "remote", "fail",
        "packets to 1.1.1.1:443 are lost beyond the gateway: filtered, or no way onward",
        "ask who runs the network, or try --remote HOST",
    ),
    "pf-blocks-out": (
        {}, {"remote": lambda targets: [Attempt("filtered") for _ in targets]}, "remote", "fail",
        "this machine's own packet filter refuses packets to 1.1.1.1:443", "sudo pfctl -sr",
    ),
    "no-servers": (
        {"scutil": "DNS configuration\n\nNo DNS configuration available\n"}, {}, "dns", "fail",
        "no name server is configured", "networksetup -setdnsservers SERVICE ADDRESS",
    ),
    "dns-dead": (
        {}, {"ask_server": lambda server, _n: ServerSeen(server, "timeout")}, "dns", "fail",
        "name server 192.168.1.1 does not answer", "networksetup -setdnsservers SERVICE ADDRESS",
    ),
    "proxy": (
        {}, {"environment": {"http_proxy": "http://10.0.0.1:3128"}}, "localhost-name", "warn",
        "http_proxy set without NO_PROXY for localhost: requests to it go to the proxy",
        "export NO_PROXY=localhost,127.0.0.1,::1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAC_FAULTS)
def test_faults_of_a_mac(name):
    """Each is named by the right rung, with a remedy in the Mac's own words, and nothing below."""
    tools, changed, rung, state, cause, fix = MAC_FAULTS[name]
    found = rungs("darwin", hands(mac(**tools), FILES["mac"], **changed))
    one = found[rung]

    assert (state, cause, fix) == (one.state, one.cause, one.fix)
    failed = [entry.id for entry in found.values() if entry.state == "fail"]
    assert failed[:1] == ([rung] if state == "fail" else failed[:1])


WINDOWS_FAULTS = {
    "cable-out": (
        {"Get-NetAdapter": windows_says.ADAPTERS.replace(
            '"Ethernet", "MediaConnectionState": 1', '"Ethernet", "MediaConnectionState": 2')},
        {"remote": silent}, "link", "fail", "no carrier on Ethernet",
    ),
    "switched-off": (
        {"Get-NetAdapter": windows_says.ADAPTERS.replace(
            '1, "InterfaceAdminStatus": 1', '1, "InterfaceAdminStatus": 2')},
        {"remote": silent}, "link", "fail", "Ethernet is switched off",
    ),
    "gateway-absent": (
        {"Get-NetNeighbor": windows_says.NEIGHBOURS.replace("5}", "0}"),
         "(New-Object": windows_says.NO_PING},
        {"remote": silent}, "gateway", "fail", "192.168.1.1 does not answer ARP on Ethernet",
    ),
    "no-servers": (
        {"Get-DnsClientServerAddress": ""}, {}, "dns", "fail", "no name server is configured",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS_FAULTS)
def test_faults_of_windows(name):
    """The adapters' switches, the neighbour table and the name servers tell as on Linux."""
    tools, changed, rung, state, cause = WINDOWS_FAULTS[name]
    found = rungs("win32", hands(pc(**tools), FILES["pc"], **changed))

    assert (state, cause) == (found[rung].state, found[rung].cause)


def test_a_broken_loopback_is_not_probed():
    """Where the system would send 127.0.0.1 elsewhere, no packet is aimed at it, nor DNS at it."""
    dialled = []

    def tcp(address):
        dialled.append(address)
        return Attempt("ok")

    scutil = "DNS configuration\n\nresolver #1\n  nameserver[0] : 127.0.0.1\n"
    machine = hands(
        mac(route={"127.0.0.1": macos_says.ROUTE_GET["1.1.1.1"]}, scutil=scutil),
        {},
        tcp=tcp,
        look_up=lambda name: dialled.append(name) or ((), "asked"),
        ask_server=lambda server, _names: dialled.append(server) or ServerSeen(server, "ok"),
    )
    found = rungs("darwin", machine)

    assert ["192.168.1.23"] == [place for place in dialled if place != "10.9.9.9"]
    assert "fail" == found["loopback-ipv4"].state


def test_a_gateway_that_drops_ping_is_there_when_hosts_beyond_answer():
    """Silence to ping alone is no fault."""
    found = rungs("darwin", hands(mac(ping=macos_says.NO_PING), FILES["mac"]))

    assert "pass" == found["gateway"].state


def test_the_users_target_is_tried():
    """--remote replaces the usual targets, on every system."""
    asked = []

    def remote(targets):
        asked.extend(targets)
        return [Attempt("refused") for _ in targets]

    machine = hands(mac(), FILES["mac"], remote=remote)
    found = rungs("darwin", machine, remote=parse_remote("192.0.2.7:8443"))

    assert [("192.0.2.7", 8443)] == asked
    assert "pass" == found["remote"].state


def test_targets_are_told_in_the_documentation():
    """Every outside address that is contacted unasked stands in README and docs."""
    root = Path(__file__).resolve().parents[2]
    for page in ("README.md", "docs/doctor.md"):
        text = (root / page).read_text()

        assert all(address in text for address, _port in TARGETS)


# -- the tools' dialects --------------------------------------------------------------------------


def test_routes_told_one_by_one():
    """Interface, gateway and flags, of macOS and OpenBSD; no output is no route."""
    way = paths.parse_route_get(macos_says.ROUTE_GET["1.1.1.1"])

    assert ("en0", "192.168.1.1", True) == (
        way.interface, str(way.gateway), "GATEWAY" in way.flags
    )  # fmt: skip
    assert "lo0" == paths.parse_route_get(freebsd_says.OPENBSD_ROUTE_GET).interface
    assert None is paths.parse_route_get("")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (macos_says.ARP, [("192.168.1.1", "stale"), ("192.168.1.9", "incomplete"),
                          ("224.0.0.251", "permanent")]),
        (macos_says.NDP, [("::1", "incomplete"), ("fe80::1", "incomplete"), ("fe80::1", "stale")]),
        (freebsd_says.ARP, [("10.0.2.2", "stale"), ("10.0.2.15", "permanent")]),
        (freebsd_says.OPENBSD_ARP, [("10.0.2.2", "stale"), ("10.0.2.15", "permanent"),
                                    ("10.0.2.99", "incomplete")]),
    ],
)  # fmt: skip
def test_neighbours(text, expected):
    """Each dialect of arp and ndp; an entry with a hardware address may be long dead."""
    indexes = {"lo0": 1, "en0": 4, "em0": 1}

    assert expected == [
        (str(entry.address), entry.state) for entry in paths.parse_neighbours(text, indexes)
    ]


def test_name_servers_of_a_mac():
    """Those an ordinary look-up asks: not one domain's, not one interface's."""
    assert ["192.168.1.1", "fe80::1%en0"] == paths.parse_scutil(macos_says.SCUTIL)


def test_name_servers_of_windows():
    """The made-up fec0:: defaults are left out."""
    assert ["192.168.1.1"] == windows.parse_servers(windows_says.SERVERS)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [(macos_says.PING, "ok"), (macos_says.NO_PING, "timeout"), ("", "not-tried"),
     ("ping: socket: Operation not permitted", "not-permitted")],
)  # fmt: skip
def test_pings(text, outcome):
    """ping's own count decides."""
    assert outcome == paths.parse_ping(text).outcome


def _advice():
    """Every text the judges could print, with NAME for what is filled in."""
    for module in (inward, outward, naming):
        nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        parts = {part for node in joined for part in node.values}
        for node in nodes:
            if node in parts:
                continue
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("{target}", "NAME")


LINUX_ONLY = re.compile(r"\b(?:ip (?:-6 )?(?:addr|link|route)|nft|getent ahosts)\b")


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_remedy_is_linux_only(system):
    """Whatever a judge advises, no command of Linux alone is left in it elsewhere."""
    texts = [text for text in _advice() if "\n" not in text]

    assert any(LINUX_ONLY.search(text) for text in texts)
    assert [] == [text for text in texts if LINUX_ONLY.search(reworded(text, system))]


def test_linux_keeps_its_words():
    """The table is for the others."""
    assert "sudo ip link set lo up" == reworded("sudo ip link set lo up", "linux")


LINES = [
    *"".join(macos_says.ROUTE_GET.values()).splitlines(), *macos_says.ARP.splitlines(),
    *macos_says.NDP.splitlines(), *macos_says.PING.splitlines(), *macos_says.SCUTIL.splitlines(),
    *freebsd_says.OPENBSD_ARP.splitlines(), *freebsd_says.OPENBSD_ROUTE_GET.splitlines(),
]  # fmt: skip
mangled = st.lists(
    st.one_of(st.sampled_from(LINES), st.text(max_size=40)).flatmap(
        lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut] + line[cut + 1 :])
    ),
    max_size=12,
).map("\n".join)


@given(mangled)
def test_mangled_output_never_breaks_the_readers(text):
    """Recorded lines with characters missing, in any order: values or nothing."""
    paths.parse_route_get(text)
    paths.parse_neighbours(text, {"en0": 1, "em0": 2})
    paths.parse_ping(text)
    assert len(set(paths.parse_scutil(text))) == len(paths.parse_scutil(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 70000) | st.sampled_from(["::1", "Up"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["ifIndex", "Name", "MediaConnectionState", "InterfaceAdminStatus", "IPAddress",
                 "State", "ServerAddresses", "Status", "RoundtripTime"]
            ),
            inner,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_odd_json_never_breaks_the_windows_readers(document):
    """Whatever PowerShell prints, values or nothing come out."""
    text = json.dumps(document)

    links = windows.parse_adapters(text, [])
    assert len({link.index for link in links}) == len(links)
    windows.parse_neighbours(text)
    windows.parse_servers(text)
    assert windows.parse_ping(text).outcome in (
        "ok",
        "timeout",
        "no-host",
        "unreachable",
        "not-tried",
    )
