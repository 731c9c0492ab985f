"""Netlink messages: bytes to values and back.

Owns: the codec of messages, attributes and the kernel's verdicts with its own words (extended
acks). Numbers are of this machine's byte order, as netlink wants it.
Must never: open a socket (kernel/netlink.py does), know a subsystem (wire/rtnetlink.py and
wire/nftables.py do), beyond the route types that several of them need.

Sources: linux/netlink.h, netlink(7).

Example::

    build_message(16, REQUEST | ACK, 7, payload)      # bytes for the kernel
    next(parse_messages(answer)).error                # (17, "ipv4: Address already assigned")
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ROUTE_TYPES = (
    "unspecified",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "nat",
)
"""rtnetlink(7), `rtm_type`, by number."""

# linux/netlink.h
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE, APPEND, EXCL = 0x400, 0x800, 0x200
_CAPPED, _ACK_TLVS = 0x100, 0x200
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_EXT_ACK_TEXT = 1
_header = struct.Struct("=IHHII")
_attribute_header = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Request:
    """One netlink message to send, with the words for its failure."""

    act: str
    """Infinitive, as in "cannot ACT OBJECT"."""
    target: str
    kind: int
    """nlmsg_type."""
    flags: int
    payload: bytes
    """Everything after the header."""

    def build(self, sequence: int, *, extra_flags: int = 0) -> bytes:
        """The message as the kernel reads it (padded to 4)."""
        return build_message(self.kind, self.flags | extra_flags, sequence, self.payload)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an answer."""

    kind: int
    flags: int
    sequence: int
    payload: bytes

    @property
    def error(self) -> tuple[int, str] | None:
        """(errno, the kernel's text) of an NLMSG_ERROR; errno 0 is an acknowledgement."""
        if self.kind != ERROR:
            return None
        (number,) = struct.unpack_from("=i", self.payload)
        text = ""
        if self.flags & _ACK_TLVS:
            start = 4 + _header.size
            if not self.flags & _CAPPED:  # the request follows in full
                (length,) = struct.unpack_from("=I", self.payload, 4)
                start = 4 + _aligned(max(length, _header.size))
            text = text_of(parse_attributes(self.payload[start:]).get(_EXT_ACK_TEXT, b""))
        return -number, text


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def text_of(data: bytes) -> str:
    """A string attribute, up to its NUL."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def build_attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes (netlink(7))."""
    length = 4 + len(value)
    return _attribute_header.pack(length, kind) + value + bytes(_aligned(length) - length)


def build_nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute made of attributes."""
    return build_attribute(kind | _NESTED, b"".join(attributes))


def build_message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message, padded to 4 bytes."""
    length = _header.size + len(payload)
    padding = bytes(_aligned(length) - length)
    return _header.pack(length, kind, flags, sequence, 0) + payload + padding


def parse_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. A truncated tail is left out."""
    offset = 0
    while offset + _header.size <= len(data):
        length, kind, flags, sequence, _ = _header.unpack_from(data, offset)
        if length < _header.size or offset + length > len(data):
            return
        yield Message(kind, flags, sequence, data[offset + _header.size : offset + length])
        offset += _aligned(length)


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Attribute number to value; of repeated ones the last. A truncated tail is left out."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _attribute_header.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += _aligned(length)
    return found
