"""nf_tables' netlink language: the expressions rules are made of, and a table as one batch.

Owns: building expressions, rules and the batch that makes (or replaces) a whole inet table.
Must never: open a socket, know what a rule is for (kernel/nft.py does).

An expression is an attribute list that the kernel runs in order, over registers: most load
something into register 1, `compare` ends the rule unless it fits, a verdict ends the chain.
Sources: linux/netfilter/nf_tables.h, libnftnl (udata.h for comments), `nft --debug=netlink`.

Example::

    rule = Rule("input", (load(META_IIF), compare(lo), verdict(ACCEPT)), 'iif "lo" accept')
    build_table((rule,), table="t", comment="ours", chains=(Chain("input", 1, 0),))
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from loopbox.wire.netlink import (
    ACK,
    APPEND,
    CREATE,
    DUMP,
    EXCL,
    REQUEST,
    build_attribute,
    build_message,
    build_nested,
    parse_attributes,
)

IPV4, IPV6 = 2, 10
META_L4PROTO, META_NFPROTO, META_MARK, META_IIF, META_OIF = 16, 15, 3, 4, 5
EQUAL, UNEQUAL, AT_LEAST = 0, 1, 5
DROP, ACCEPT, GOTO = 0, 1, -4
PREROUTING, POSTROUTING = 0, 4
SOURCE4, TARGET4 = 12, 16
"""Where the addresses are in an IPv4 header."""
SOURCE6, TARGET6 = 8, 24

_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM, _INET = 0x10, 0x11, 10, 1
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _GETRULE = 0, 2, 3, 6, 7
NEWRULE = _SUBSYSTEM << 8 | _NEWRULE

_Message = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: the chain it is appended to, its expressions, its words for a failure."""

    chain: str
    expressions: tuple[bytes, ...]
    text: str
    """As nft(8) would have it written."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; one that the kernel calls has a hook and a priority, and accepts at its end."""

    name: str
    hook: int | None = None
    priority: int = 0


def _big(value: int) -> bytes:
    return struct.pack(">i" if value < 0 else ">I", value)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _expression(name: str, *attributes: bytes) -> bytes:
    return build_nested(1, build_attribute(1, _text(name)), build_nested(2, *attributes))


def load(key: int) -> bytes:
    """`meta KEY` into register 1."""
    return _expression("meta", build_attribute(2, _big(key)), build_attribute(1, _big(1)))


def load_network_header(offset: int, length: int) -> bytes:
    """Bytes of the IP header into register 1."""
    return _expression(
        "payload",
        build_attribute(1, _big(1)),
        build_attribute(2, _big(1)),  # NFT_PAYLOAD_NETWORK_HEADER
        build_attribute(3, _big(offset)),
        build_attribute(4, _big(length)),
    )


def load_address_type(*, with_mark: bool = False) -> bytes:
    """`fib daddr type` into register 1; `with_mark`: the lookup heeds the packet's mark."""
    return _expression(
        "fib",
        build_attribute(3, _big(2 | (4 if with_mark else 0))),  # flags: daddr, mark
        build_attribute(2, _big(3)),  # result: the type
        build_attribute(1, _big(1)),
    )


def compare(value: bytes, how: int = EQUAL) -> bytes:
    """Go on only if register 1 is (not, at least) `value`."""
    data = build_nested(3, build_attribute(1, value))
    return _expression("cmp", build_attribute(1, _big(1)), build_attribute(2, _big(how)), data)


def verdict(code: int, chain: str = "") -> bytes:
    """End here: accept, drop, or go to a chain."""
    parts = [build_attribute(1, _big(code))]
    if chain:
        parts.append(build_attribute(2, _text(chain)))
    data = build_nested(2, build_nested(2, *parts))
    return _expression("immediate", build_attribute(1, _big(0)), data)


def set_mark(mark: int) -> tuple[bytes, ...]:
    """`meta mark set MARK`."""
    data = build_nested(2, build_attribute(1, struct.pack("=I", mark)))
    return (
        _expression("immediate", build_attribute(1, _big(1)), data),
        _expression("meta", build_attribute(2, _big(META_MARK)), build_attribute(3, _big(1))),
    )


def to_transparent_socket(port: int) -> tuple[bytes, ...]:
    """`tproxy to :PORT`, which ends the rule when nobody listens there."""
    data = build_nested(2, build_attribute(1, struct.pack(">H", port)))
    return (
        _expression("immediate", build_attribute(1, _big(1)), data),
        _expression("tproxy", build_attribute(1, _big(0)), build_attribute(3, _big(1))),
    )


def copy_to_log(group: int, *, most: int) -> bytes:
    """`log group GROUP snaplen MOST queue-threshold 1`: the packet's head to NFLOG, at once."""
    return _expression(
        "log",
        build_attribute(1, struct.pack(">H", group)),
        build_attribute(3, _big(most)),
        build_attribute(4, struct.pack(">H", 1)),
    )


def is_family(family: int) -> tuple[bytes, ...]:
    """Go on only for IPV4 or IPV6."""
    return load(META_NFPROTO), compare(bytes([family]))


def is_loopback4(offset: int) -> tuple[bytes, ...]:
    """Go on only for IPv4 with 127/8 at SOURCE4 or TARGET4."""
    return *is_family(IPV4), load_network_header(offset, 1), compare(b"\x7f")


def has_prefix6(offset: int, prefix: bytes) -> tuple[bytes, ...]:
    """Go on only for IPv6 with these first bytes at SOURCE6 or TARGET6."""
    return *is_family(IPV6), load_network_header(offset, len(prefix)), compare(prefix)


def build_table(
    rules: tuple[Rule, ...],
    *,
    table: str,
    comment: str,
    chains: tuple[Chain, ...],
    replace: bool = False,
) -> bytes:
    """The netlink batch that makes an inet table with these rules, all or nothing.

    The table must not be there yet, or must be there with `replace`. Chains come before the
    chains that go to them.
    """
    name = build_attribute(1, _text(table))
    words = _text(comment)
    userdata = build_attribute(6, bytes([0, len(words)]) + words)
    messages: list[_Message] = [(_DELTABLE, 0, name)] if replace else []
    messages.append((_NEWTABLE, CREATE | EXCL, name + build_attribute(2, _big(0)) + userdata))
    for chain in chains:
        payload = name + build_attribute(3, _text(chain.name))
        if chain.hook is not None:
            place = build_attribute(1, _big(chain.hook)) + build_attribute(2, _big(chain.priority))
            payload += build_nested(4, place) + build_attribute(7, _text("filter"))
            payload += build_attribute(5, _big(1))  # policy accept
        messages.append((_NEWCHAIN, CREATE, payload))
    for rule in rules:
        payload = name + build_attribute(2, _text(rule.chain)) + build_nested(4, *rule.expressions)
        messages.append((_NEWRULE, CREATE | APPEND, payload))
    return _build_batch(messages)


def build_rule_dump(table: str) -> bytes:
    """The request for all rules of an inet table."""
    body = struct.pack(">BBH", _INET, 0, 0) + build_attribute(1, _text(table))
    return build_message(_SUBSYSTEM << 8 | _GETRULE, REQUEST | DUMP, 1, body)


def parse_rule(payload: bytes) -> tuple[bytes, bytes]:
    """A dumped rule's chain and what it does, as the kernel words it; its handle is left out."""
    found = parse_attributes(payload[4:])
    return found.get(2, b""), found.get(4, b"")


def build_removal(table: str) -> bytes:
    """The batch that deletes an inet table with all that is in it."""
    return _build_batch([(_DELTABLE, 0, build_attribute(1, _text(table)))])


def _build_batch(messages: list[_Message]) -> bytes:
    """Messages between the marks of a batch; the last one asks for an acknowledgement."""
    generic = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    parts = [build_message(_BATCH_BEGIN, REQUEST, 0, generic)]
    for sequence, (kind, flags, payload) in enumerate(messages, start=1):
        last = ACK if sequence == len(messages) else 0
        body = struct.pack(">BBH", _INET, 0, 0) + payload
        parts.append(build_message(_SUBSYSTEM << 8 | kind, REQUEST | flags | last, sequence, body))
    parts.append(build_message(_BATCH_END, REQUEST, len(messages) + 1, generic))
    return b"".join(parts)
