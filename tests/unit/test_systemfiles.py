"""hosts, resolv.conf, nsswitch.conf and sockstat as bytes in and values or bytes out."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loopbox.wire import systemfiles
from loopbox.wire.systemfiles import HostsEntry, ResolvConf, SocketCounts

V4 = IPv4Address("10.0.0.1")
LINES = ["127.64.1.2 shop.localhost", "127.64.1.3 fix-ui.shop.localhost"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"10.0.0.1 a b", [HostsEntry(V4, ("a", "b"))]),
        (b"\t 10.0.0.1\ta # c", [HostsEntry(V4, ("a",))]),
        (b"10.0.0.1 a#b", [HostsEntry(V4, ("a",))]),
        (b"10.0.0.1 a\r", [HostsEntry(V4, ("a",))]),
        (b"::1 a", [HostsEntry(IPv6Address("::1"), ("a",))]),
        (b"10.0.0.1 A_b.\n10.0.0.1 c", [HostsEntry(V4, ("A_b.",)), HostsEntry(V4, ("c",))]),
        (b"10.0.0.1", []),
        (b"# 10.0.0.1 a", []),
        (b"\xef\xbb\xbf10.0.0.1 a", []),
        (b"127.1 a", []),
        (b"10.0.0.1/8 a", []),
        (b"fe80::1%lo a", []),
        (b"010.0.0.1 a", []),
        (b"", []),
    ],
)
def test_hosts_are_read_as_glibc_reads_them(line: bytes, expected: list[HostsEntry]) -> None:
    """What glibc accepts is an entry, what it ignores is not."""
    assert expected == systemfiles.parse_hosts(line)


def test_box_hosts_keep_the_hosts_names() -> None:
    """The host's lines stay as they are, localhost is on both families, mappings come first."""
    host = (
        b"127.0.0.1\tlocalhost.localdomain localhost # local\r\n"
        b"::1 ip6-localhost\n"
        b"10.1.1.1   printer  shop.example.com\n"
        b"# loopbox begin (made by loopbox, edits are lost)\n"
        b"127.64.1.2 shop.localhost\n"
        b"# loopbox end\n"
        b"fe80::1 caf\xc3\xa9"
    )

    expected = (
        b"127.0.0.1 localhost\n"
        b"::1 localhost ip6-localhost ip6-loopback\n"
        b"127.0.0.1 shop.example.com\n"
        b"127.0.0.1 localhost.localdomain # local\r\n"
        b"10.1.1.1 printer\n"
        b"fe80::1 caf\xc3\xa9\n"
    )
    assert expected == systemfiles.build_hosts(
        host, mappings=[("shop.example.com", IPv4Address("127.0.0.1"))]
    )


@given(st.binary())
def test_box_hosts_always_know_localhost(host: bytes) -> None:
    """Whatever the host's file says, localhost is 127.0.0.1 and ::1 and nothing else."""
    entries = systemfiles.parse_hosts(systemfiles.build_hosts(host))

    found = [str(e.address) for e in entries if "localhost" in (n.lower() for n in e.names)]
    assert found == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"BLOCK"),
        (b"127.0.0.1 localhost\n", b"127.0.0.1 localhost\nBLOCK"),
        (b"a\r\nb", b"a\r\nb\r\nBLOCK"),
    ],
)
def test_new_block_comes_at_the_end(before: bytes, after: bytes) -> None:
    """The block is appended with the file's own line ends."""
    edited = systemfiles.edit_block(before, lines=["127.64.1.2 shop.localhost"])

    ending = b"\r\n" if b"\r" in before else b"\n"
    mark = b" +" if before and not before.endswith(b"\n") else b""
    block = ending.join(
        [
            systemfiles.BLOCK_BEGIN + mark,
            b"127.64.1.2 shop.localhost",
            systemfiles.BLOCK_END,
            b"",
        ]
    )
    assert after.replace(b"BLOCK", block) == edited


def test_block_stays_where_it_is() -> None:
    """Lines that someone wrote after the block stay after it."""
    data = systemfiles.edit_block(b"a\n", lines=LINES) + b"b\n"

    edited = systemfiles.edit_block(data, lines=LINES[:1])

    assert (LINES[:1], True, True) == (
        systemfiles.read_block(edited),
        edited.startswith(b"a\n#"),
        edited.endswith(b"end\nb\n"),
    )


def test_block_without_an_end_takes_only_our_lines() -> None:
    """Someone deleted the end mark: what we did not write is kept."""
    data = systemfiles.BLOCK_BEGIN + b"\n127.64.1.2 shop.localhost\n10.0.0.1 printer\n"

    assert systemfiles.edit_block(data, lines=[]) == b"10.0.0.1 printer\n"


@given(st.binary(), st.lists(st.sampled_from(LINES), max_size=3))
@example(b"a\r\nb\r", LINES)
@example(b"a\nb\r", LINES)
@example(b"\n" + systemfiles.BLOCK_BEGIN[:-1], LINES)
def test_block_comes_and_goes_without_a_trace(data: bytes, lines: list[str]) -> None:
    """Adding, repeating, changing and removing the block gives the same bytes back."""
    once = systemfiles.edit_block(data, lines=lines)

    assert once == systemfiles.edit_block(once, lines=lines)
    assert lines == systemfiles.read_block(once)
    changed = systemfiles.edit_block(once, lines=LINES)
    assert systemfiles.read_block(changed) == LINES
    assert data == systemfiles.edit_block(changed, lines=[])


@given(st.binary(), st.binary())
def test_bytes_around_the_block_are_kept(before: bytes, after: bytes) -> None:
    """Everything outside the block keeps every byte, whatever it is."""
    assume(systemfiles.BLOCK_BEGIN not in before + b"\n" + after)  # that would be a block of ours
    head = before + b"\n"
    data = systemfiles.edit_block(head, lines=LINES) + after

    assert head + after == systemfiles.edit_block(data, lines=[])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ResolvConf()),
        (
            b"# x\nnameserver 10.0.0.1\nnameserver ::1 # y\noptions ndots:2\noptions rotate",
            ResolvConf(("10.0.0.1", "::1"), (), ("ndots:2", "rotate")),
        ),
        (b"search a b\ndomain c\r\n", ResolvConf((), ("c",))),
        (b"domain c\nsearch a b\n", ResolvConf((), ("a", "b"))),
        (b" nameserver 10.0.0.1\n;nameserver 10.0.0.2\n", ResolvConf()),
        (b"nameserver 1.2\nnameserver\nnameserverX 10.0.0.1\n", ResolvConf()),
        (b"nameserver fe80::1%eth0", ResolvConf(("fe80::1%eth0",))),
        (b"nameserver 10.0.0.1\n" * 5, ResolvConf(("10.0.0.1",) * 3)),
    ],
)
def test_resolv_conf_is_read_as_glibc_reads_it(data: bytes, expected: ResolvConf) -> None:
    """Keywords at the line's beginning, three servers, the last search list."""
    assert expected == systemfiles.parse_resolv_conf(data)


@given(st.binary())
def test_resolv_conf_never_fails_and_survives_a_round_trip(data: bytes) -> None:
    """Any bytes are understood, and what was understood is written so that it is read again."""
    conf = systemfiles.parse_resolv_conf(data)

    assert conf == systemfiles.parse_resolv_conf(systemfiles.write_resolv_conf(conf))


def test_box_asks_only_its_own_name_server() -> None:
    """The host's servers go, its search list and its ndots stay."""
    host = b"nameserver 127.0.0.53\nsearch corp.example\noptions edns0 trust-ad ndots:2\n"

    expected = b"nameserver 198.18.0.53\nsearch corp.example\noptions ndots:2\n"
    assert expected == systemfiles.build_resolv_conf(host, "198.18.0.53")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b"passwd: files systemd\nhosts:   files mymachines resolve [!UNAVAIL=return] dns\nx",
            b"passwd: files systemd\nhosts:   files dns\nx",
        ),
        (b"hosts:files\r\n", b"hosts: files dns\r\n"),
        (b"  hosts : files", b"  hosts : files dns"),
        (b"#hosts: files\n", b"#hosts: files\nhosts: files dns\n"),
        (b"", b"hosts: files dns\n"),
        (b"group: x", b"group: x\nhosts: files dns\n"),
    ],
)
def test_nsswitch_changes_only_the_hosts_line(before: bytes, after: bytes) -> None:
    """`hosts` becomes `files dns`, all else keeps every byte."""
    assert after == systemfiles.build_nsswitch(before)


@given(st.binary())
def test_nsswitch_is_stable(data: bytes) -> None:
    """Doing it twice is doing it once."""
    once = systemfiles.build_nsswitch(data)

    assert once == systemfiles.build_nsswitch(once)


def test_sockstat_counters() -> None:
    """The counters of both families' files have the same meaning."""
    v4 = b"sockets: used 9\nTCP: inuse 5 orphan 0 tw 2\nUDP: inuse 3 mem 0\nRAW: inuse 1\n"
    v6 = b"TCP6: inuse 2\nUDP6: inuse 4\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n"

    assert SocketCounts(5, 3, 1) == systemfiles.parse_sockstat(v4)
    assert SocketCounts(2, 4, 0) == systemfiles.parse_sockstat(v6)
    assert SocketCounts() == systemfiles.parse_sockstat(b"")
