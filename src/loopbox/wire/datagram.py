"""IP packets as a box's way out needs them: UDP made whole, ICMP answers, what NFLOG hands over.

Owns: building UDP datagrams with a foreign source address (a reply must come from where the box
sent to), ICMP and ICMPv6 errors and echo replies; reading an echo request; checksums.
Must never: open a socket, or judge an address.

Sources: RFC 791, 768, 792, 1071 (checksum), 8200, 4443; linux/netfilter/nfnetlink_log.h.

Example::

    build_udp(Endpoint(ip_address("1.1.1.1"), 443), Endpoint(ip_address("198.18.0.1"), 5000), b"hi")
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from loopbox.wire.netlink import parse_attributes, parse_messages

Address = IPv4Address | IPv6Address

ICMP, UDP, ICMP6 = 1, 17, 58
LARGEST_UDP = 65507
"""Payload of the largest UDP datagram over IPv4; over IPv6 20 bytes more would fit."""

_HOP_LIMIT = 64
_LOG_PAYLOAD = 9  # NFULA_PAYLOAD
_LOG_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET

UNREACHABLE = {
    "port": {4: (3, 3), 6: (1, 4)},
    "host": {4: (3, 1), 6: (1, 3)},
    "prohibited": {4: (3, 13), 6: (1, 1)},
}
"""Reason to (type, code), by IP version (RFC 792, 1812 section 5.2.7.1; RFC 4443 section 3.1)."""

_ECHO = {4: (8, 0), 6: (128, 129)}
"""(request, reply) types, by IP version (RFC 792, RFC 4443 section 4)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a flow."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet without options or extension headers."""

    source: Address
    target: Address
    protocol: int
    body: bytes
    """Everything after the IP header."""


@dataclass(frozen=True, slots=True)
class Echo:
    """What an echo request (ping) and its reply have in common."""

    identifier: int
    sequence: int
    data: bytes


def checksum(data: bytes) -> int:
    """The internet checksum of RFC 1071.

    A sum of 16-bit words in ones' complement is the remainder by 65535 of the bytes read as one
    big number, so that Python's integers do the loop.
    """
    if len(data) % 2:
        data += b"\0"
    number = int.from_bytes(data)
    remainder = number % 0xFFFF
    return 0xFFFF - remainder if remainder or not number else 0


def build_packet(source: Address, target: Address, protocol: int, body: bytes) -> bytes:
    """An IP packet. The kernel fills in IPv4's checksum, identification and length (raw(7))."""
    if source.version == 4:
        header = struct.pack(
            ">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, _HOP_LIMIT, protocol, 0
        )
    else:
        header = struct.pack(">IHBB", 6 << 28, len(body), protocol, _HOP_LIMIT)
    return header + source.packed + target.packed + body


def build_udp(source: Endpoint, target: Endpoint, payload: bytes) -> bytes:
    """A UDP datagram with its IP header."""
    length = 8 + len(payload)
    header = struct.pack(">HHHH", source.port, target.port, length, 0)
    total = _transport_checksum(source.address, target.address, UDP, header + payload)
    header = header[:6] + struct.pack(">H", total or 0xFFFF)  # 0 would mean "none" (RFC 768)
    return build_packet(source.address, target.address, UDP, header + payload)


def build_unreachable(original: bytes, reason: str) -> bytes:
    """The ICMP error that tells the sender of `original` (an IP packet) that it went nowhere.

    It comes from where the packet went to; `reason` is one of UNREACHABLE.
    """
    packet = parse_packet(original)
    version = packet.source.version
    kind, code = UNREACHABLE[reason][version]
    quoted = original[: 576 - 28] if version == 4 else original[: 1280 - 48]
    return _icmp(packet.target, packet.source, kind=kind, code=code, rest=bytes(4), data=quoted)


def build_echo_reply(request: Packet, echo: Echo) -> bytes:
    """The reply to an echo request, from where it went to."""
    rest = struct.pack(">HH", echo.identifier, echo.sequence)
    kind = _ECHO[request.source.version][1]
    return _icmp(request.target, request.source, kind=kind, code=0, rest=rest, data=echo.data)


def build_echo_request(version: int, echo: Echo) -> bytes:
    """The ICMP message to send through a ping socket or a raw one.

    A ping socket puts in an identifier of its own; IPv6's checksum is always the kernel's work,
    for it covers the addresses (icmp(7), RFC 3542 section 3.1).
    """
    body = struct.pack(">BBHHH", _ECHO[version][0], 0, 0, echo.identifier, echo.sequence)
    body += echo.data
    if version == 6:
        return body
    return body[:2] + struct.pack(">H", checksum(body)) + body[4:]


def parse_echo_reply(version: int, message: bytes) -> Echo | None:
    """An ICMP message (without IP header) as an echo reply; None when it is anything else."""
    if len(message) < 8:
        return None
    kind, code, _, identifier, sequence = struct.unpack_from(">BBHHH", message)
    if (kind, code) != (_ECHO[version][1], 0):
        return None
    return Echo(identifier, sequence, message[8:])


def _icmp(
    source: Address, target: Address, *, kind: int, code: int, rest: bytes, data: bytes
) -> bytes:
    """`rest` is the second word of the ICMP header."""
    body = struct.pack(">BBH", kind, code, 0) + rest + data
    if source.version == 4:
        total, protocol = checksum(body), ICMP
    else:
        total, protocol = _transport_checksum(source, target, ICMP6, body), ICMP6
    return build_packet(source, target, protocol, body[:2] + struct.pack(">H", total) + body[4:])


def _transport_checksum(source: Address, target: Address, protocol: int, body: bytes) -> int:
    """Over the pseudo-header too (RFC 768, RFC 8200 section 8.1)."""
    pseudo = source.packed + target.packed + struct.pack(">II", len(body), protocol)
    return checksum(pseudo + body)


def parse_packet(data: bytes) -> Packet:
    """An IP packet. Raises ValueError when it is cut short or is neither version."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        header = (data[0] & 0xF) * 4
        if not 20 <= header <= len(data):
            raise ValueError(f"bad IPv4 header length: {header}")
        return Packet(IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[9], data[header:])
    if version == 6 and len(data) >= 40:
        return Packet(IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[6], data[40:])
    raise ValueError(f"no IP packet: {data[:8].hex()}")


def parse_echo(packet: Packet) -> Echo | None:
    """The echo request in a packet; None when it holds anything else."""
    wanted = ICMP if packet.source.version == 4 else ICMP6
    if packet.protocol != wanted or len(packet.body) < 8:
        return None
    kind, code, _, identifier, sequence = struct.unpack_from(">BBHHH", packet.body)
    if (kind, code) != (_ECHO[packet.source.version][0], 0):
        return None
    return Echo(identifier, sequence, packet.body[8:])


def parse_logged(data: bytes) -> list[bytes]:
    """The IP packets in one datagram from an NFLOG socket."""
    packets = []
    for message in parse_messages(data):
        if message.kind == _LOG_PACKET:
            payload = parse_attributes(message.payload[4:]).get(_LOG_PAYLOAD)
            if payload:
                packets.append(payload)
    return packets
