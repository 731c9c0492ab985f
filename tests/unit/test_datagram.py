"""Packets by bytes: checksums, whole datagrams, pings and refusals."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.wire.datagram import (
    UNREACHABLE,
    Address,
    Echo,
    Endpoint,
    Packet,
    build_echo_reply,
    build_echo_request,
    build_packet,
    build_udp,
    build_unreachable,
    checksum,
    parse_echo,
    parse_echo_reply,
    parse_logged,
    parse_packet,
)
from loopbox.wire.netlink import build_attribute, build_message

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
PAIRS = st.one_of(st.tuples(V4, V4), st.tuples(V6, V6))
PORTS = st.integers(0, 65535)
ECHOES = st.builds(Echo, st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=80))


def slow_sum(data: bytes) -> int:
    """RFC 1071 as it is written: 16-bit words, carries added in."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet: Packet) -> bytes:
    """The pseudo-header of RFC 8200 section 8.1, good for IPv4 too."""
    words = struct.pack(">II", len(packet.body), packet.protocol)
    return packet.source.packed + packet.target.packed + words


@given(st.one_of(st.binary(max_size=300), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff\xff"])))
def test_checksum_is_rfc_1071s(data: bytes) -> None:
    """The big-number remainder equals the loop over words."""
    assert checksum(data) == slow_sum(data) ^ 0xFFFF


@given(PAIRS, PORTS, PORTS, st.binary(max_size=200))
def test_udp_is_whole(ends: tuple[Address, Address], here: int, there: int, data: bytes) -> None:
    """Header, length, checksum and payload say the same as was put in."""
    packet = parse_packet(build_udp(Endpoint(ends[0], here), Endpoint(ends[1], there), data))

    assert (packet.source, packet.target, packet.protocol) == (*ends, 17)
    assert struct.unpack_from(">HHH", packet.body) == (here, there, 8 + len(data))
    assert packet.body[8:] == data
    assert slow_sum(pseudo(packet) + packet.body) == 0xFFFF


@given(ECHOES, PAIRS)
def test_pings_survive(echo: Echo, ends: tuple[Address, Address]) -> None:
    """A request is recognised, and its reply goes back the other way with the same content."""
    version = ends[0].version
    request = Packet(*ends, 1 if version == 4 else 58, build_echo_request(version, echo))
    reply = parse_packet(build_echo_reply(request, echo))

    assert parse_echo(request) == echo
    assert (reply.source, reply.target) == (ends[1], ends[0])
    assert parse_echo_reply(version, reply.body) == echo
    covered = reply.body if version == 4 else pseudo(reply) + reply.body
    assert slow_sum(covered) == 0xFFFF


def test_requests_and_replies_are_not_taken_for_each_other() -> None:
    """A reply is no request, a request no reply, a short message neither."""
    request = build_echo_request(4, Echo(1, 2, b"x"))
    packet = Packet(IPv4Address(1), IPv4Address(2), 1, b"\0" + request[1:])

    assert parse_echo_reply(4, request) is None
    assert parse_echo(packet) is None
    assert parse_echo_reply(6, b"\x81\0\0") is None


@pytest.mark.parametrize("reason", UNREACHABLE)
@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_a_refusal_quotes_what_it_refuses(reason: str, ends: tuple[str, str]) -> None:
    """The error comes from where the packet went, with its head, and a right checksum."""
    source, target = (ip_address(text) for text in ends)
    original = build_udp(Endpoint(source, 1111), Endpoint(target, 2222), b"hello")
    packet = parse_packet(build_unreachable(original, reason))

    assert (packet.source, packet.target) == (target, source)
    assert tuple(packet.body[:2]) == UNREACHABLE[reason][source.version]
    assert packet.body[8:] == original
    covered = packet.body if source.version == 4 else pseudo(packet) + packet.body
    assert slow_sum(covered) == 0xFFFF


@pytest.mark.parametrize(("version", "most"), [(4, 576), (6, 1280)])
def test_a_refusal_is_never_too_long(version: int, most: int) -> None:
    """Quotes are cut to what RFC 1812 and RFC 4443 allow."""
    ends = (IPv4Address(1), IPv4Address(2)) if version == 4 else (IPv6Address(1), IPv6Address(2))

    assert len(build_unreachable(build_packet(*ends, 17, bytes(5000)), "port")) == most


@given(st.binary(max_size=100))
def test_garbage_is_a_value_error(data: bytes) -> None:
    """Any bytes parse to a packet or raise ValueError, and a log datagram to packets or none."""
    try:
        packet = parse_packet(data)
    except ValueError:
        return
    assert parse_echo(packet) is None or len(packet.body) >= 8


@given(st.binary(max_size=100))
def test_logged_garbage_is_ignored(data: bytes) -> None:
    """What is no NFLOG message gives no packet."""
    assert all(isinstance(packet, bytes) for packet in parse_logged(data))


def test_logged_packets_are_found() -> None:
    """NFULA_PAYLOAD of NFULNL_MSG_PACKET, several in one datagram, other messages skipped."""
    body = bytes(4) + build_attribute(1, bytes(4)) + build_attribute(9, b"packet")
    other = build_message(4 << 8 | 1, 0, 0, bytes(4))
    data = build_message(4 << 8, 0, 0, body) + other + build_message(4 << 8, 0, 1, body)

    assert parse_logged(data) == [b"packet", b"packet"]
