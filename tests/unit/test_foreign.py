"""The adapters of macOS, the BSDs and Windows, on recorded output (hand-written recordings)."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.cli.audit_commands import findings_of
from loopbox.kernel import foreign
from loopbox.kernel.survey import survey_elsewhere
from loopbox.rules.foreign import holders, unix, windows

sys.path.insert(0, str(Path(__file__).with_name("recordings")))
import freebsd as freebsd_says
import macos as macos_says
import windows as windows_says


def mac(argv):
    """A Mac's tools."""
    return {
        ("ifconfig", "-a"): macos_says.IFCONFIG,
        ("netstat", "-rn"): macos_says.ROUTES,
        ("netstat", "-anW"): macos_says.NETSTAT,
    }.get(tuple(argv), macos_says.LSOF if argv[0] == "lsof" else "")


def pc(argv):
    """Windows' PowerShell."""
    answers = {
        "Get-NetIPAddress": windows_says.ADDRESSES,
        "Get-NetAdapter": windows_says.ADAPTERS,
        "Get-NetTCPConnection": windows_says.TCP,
        "Get-NetUDPEndpoint": windows_says.UDP,
        "Get-NetRoute": windows_says.ROUTES,
        "Get-Process": windows_says.PROCESSES,
    }
    return answers[argv[-1].split()[0]]


def verdicts(platform, run):
    """(endpoint, reach, first holder's command) of each listener."""
    found = findings_of({"host": survey_elsewhere(platform, run)})
    return {
        (entry.as_json()["listener"]["at"], entry.listener.protocol): (
            entry.reach,
            entry.as_json()["listener"]["command"],
        )
        for entry in found
    }


def test_audit_of_a_mac():
    """Wildcards are exposed, loopback is not, tcp46 is dual-stack, holders come from lsof."""
    found = verdicts("darwin", mac)

    assert ("lan", "redis-server") == found["0.0.0.0:6379", "tcp"]
    assert ("loopback", "postgres") == found["127.0.0.1:5432", "tcp"]
    assert ("loopback", "postgres") == found["[::1]:5432", "tcp"]
    assert ("lan", "node") == found["[::]:8080", "tcp"]
    assert ("link", None) == found["10.9.9.9:9000", "tcp"]
    assert ("0.0.0.0:5353", "udp") in found


def test_audit_of_windows():
    """All of 127/8 is loopback there; wildcards are exposed; processes have names."""
    found = verdicts("win32", pc)

    assert ("lan", "svchost") == found["0.0.0.0:135", "tcp"]
    assert ("loopback", "C:\\pg\\bin\\postgres.exe") == found["127.0.0.1:5432", "tcp"]
    assert "loopback" == found["127.0.0.2:8080", "tcp"][0]
    assert "lan" == found["0.0.0.0:5353", "udp"][0]


def test_the_filter_is_never_taken_as_read():
    """Elsewhere nobody reads the packet filter, and each exposure says so."""
    found = findings_of({"host": survey_elsewhere("darwin", mac)})
    exposed = [entry for entry in found if entry.reach == "lan"]

    assert exposed
    assert all(any("was not read" in text for text in entry.evidence) for entry in exposed)


@pytest.mark.parametrize(
    ("text", "loopback", "nic"),
    [
        (macos_says.IFCONFIG, ("lo0", 4), ("en0", "192.168.1.23", 24)),
        (freebsd_says.IFCONFIG, ("lo0", 3), ("em0", "10.0.2.15", 24)),
        (freebsd_says.NETBSD_IFCONFIG, ("lo0", 2), ("wm0", "10.0.2.16", 24)),
        (freebsd_says.OPENBSD_IFCONFIG, ("lo0", 3), ("em0", "10.0.2.17", 24)),
        (freebsd_says.ILLUMOS_IFCONFIG, ("lo0", 1), ("e1000g0", "10.0.2.18", 24)),
    ],
)
def test_ifconfig_dialects(text, loopback, nic):
    """The loopback is found by its flag, and both ways to write a prefix are read."""
    links, addresses = unix.parse_ifconfig(text)
    device = next(link for link in links if link.is_loopback)
    card = next(link for link in links if link.name == nic[0])

    assert loopback == (device.name, sum(entry.index == device.index for entry in addresses))
    assert (nic[1], nic[2]) in {
        (str(entry.address), entry.prefix) for entry in addresses if entry.index == card.index
    }


def test_an_inactive_interface_has_no_carrier():
    """`status: inactive` is a cable that is out."""
    links, _ = unix.parse_ifconfig(macos_says.IFCONFIG)

    assert {"en1"} == {link.name for link in links if not link.carrier}


def test_freebsd_lists_each_family():
    """tcp4 and tcp6 on the same port are two sockets."""
    found = unix.parse_listeners(freebsd_says.NETSTAT)

    assert [
        ("tcp", "ipv4", 22),
        ("tcp", "ipv6", 22),
        ("tcp", "ipv4", 25),
        ("udp", "ipv4", 514),
    ] == [(entry.protocol, entry.family, entry.port) for entry in found]


def test_more_columns_and_cut_addresses():
    """Further columns are passed over; a cut address is taken for every address, never left out."""
    found = unix.parse_listeners(macos_says.NETSTAT_VERBOSE)

    assert [("127.0.0.1", 8021), ("::", 5948), ("::", 3000)] == [
        (str(entry.address), entry.port) for entry in found
    ]


def test_holders_by_sockstat():
    """FreeBSD has no lsof: its own table names them; connected sockets are not listed."""
    found = holders.parse_sockstat(freebsd_says.SOCKSTAT)
    listeners = unix.parse_listeners(freebsd_says.NETSTAT)

    assert [("*:22", 854), ("*:22", 854), ("127.0.0.1:25", 812), ("*:514", 700),
            ("[fe80::1%lo0]:123", 690)] == [(one.endpoint, one.pid) for one in found]  # fmt: skip
    assert [{"sshd"}, {"sshd"}, {"sendmail"}, {"syslogd"}] == [
        {one.command for one in found if unix.same_end(entry, one)} for entry in listeners
    ]


def test_holders_by_fstat():
    """OpenBSD has fstat, with a kernel address or without."""
    found = holders.parse_fstat(freebsd_says.FSTAT)
    listeners = unix.parse_listeners(freebsd_says.OPENBSD_NETSTAT)

    assert [{"sshd"}, {"node"}, {"unbound"}, {"sshd"}] == [
        {one.command for one in found if unix.same_end(entry, one)} for entry in listeners
    ]
    assert ("[fe80::1%lo0]:79", 60) == (found[-1].endpoint, found[-1].pid)


def test_routes_of_a_mac():
    """Shortened destinations are completed by their classes as netstat shortens them."""
    links, _ = unix.parse_ifconfig(macos_says.IFCONFIG)

    assert {"0.0.0.0/0", "127.0.0.0/8", "192.168.1.0/24", "::1/128"} <= {
        str(route.destination) for route in unix.parse_routes(macos_says.ROUTES, links)
    }


@pytest.mark.parametrize(
    ("platform", "name"),
    [("darwin", "macos"), ("freebsd14", "freebsd"), ("win32", "windows"), ("linux", None)],
)
def test_platform_names(platform, name):
    """sys.platform leads to the plan table; Linux needs no adapter."""
    assert name == foreign.system_name(platform)


LINES = [
    *macos_says.IFCONFIG.splitlines(), *macos_says.NETSTAT.splitlines(),
    *macos_says.ROUTES.splitlines(), *macos_says.LSOF.splitlines(),
    *freebsd_says.NETBSD_IFCONFIG.splitlines(), *freebsd_says.SOCKSTAT.splitlines(),
    *freebsd_says.FSTAT.splitlines(),
]  # fmt: skip
mangled = st.lists(
    st.one_of(st.sampled_from(LINES), st.text(max_size=40)).flatmap(
        lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut] + line[cut + 1 :])
    ),
    max_size=12,
).map("\n".join)


@given(mangled)
def test_mangled_output_never_breaks_the_unix_readers(text):
    """Recorded lines with characters missing, in any order: values or nothing."""
    links, _ = unix.parse_ifconfig(text)
    unix.parse_routes(text, links)
    for entry in unix.parse_listeners(text):
        opened = unix.parse_lsof(text) + holders.parse_sockstat(text) + holders.parse_fstat(text)
        for one in opened:
            unix.same_end(entry, one)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 70000) | st.sampled_from(["::1", "x"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["IPAddress", "PrefixLength", "InterfaceIndex", "InterfaceAlias", "LocalAddress",
                 "LocalPort", "OwningProcess", "DestinationPrefix", "NextHop", "ifIndex", "Id"]
            ),
            inner,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_odd_json_never_breaks_the_windows_readers(document):
    """Whatever PowerShell prints, values or nothing come out."""
    import json  # noqa: PLC0415

    for text in (json.dumps(document), str(document)):
        windows.parse_addresses(text)
        windows.parse_listeners(text, protocol="tcp")
        windows.parse_routes(text)
        windows.parse_processes(text)
