"""The nftables table of a box, as one prepared netlink batch.

Owns: the rules that keep 127/8 and ::1 off every wire (the guard), and those that lead what a box
sends to the wide world to the keeper's transparent sockets (the way out); the little of
nf_tables' netlink language they need. The whole batch is the same for every box, so it is encoded
once per process and a box costs one send (about 0.1 ms).
Must never: touch a table that is not ours, decide which box gets which part, run `nft`.

How a packet on `lo` is judged, cheapest first: 127/8 and ::1 pass (two comparisons; no connection
tracking is ever switched on). Other addresses of the box pass by asking the routing table. IPv4
asks only the local table (net/ipv4/fib_frontend.c, __inet_dev_addr_type). IPv6 would also find
the way out's own `local default`, so it asks with a mark that hides that route (see the rule with
`without_mark` in keeper/wayout.py). The rest is the wide world: TCP and UDP to the transparent
sockets, anything else copied to the keeper (NFLOG) and dropped: without the drop lo would answer
a ping to every address on earth.

Sources: linux/netfilter/nf_tables.h, nft(8), libnftnl's udata.h for comments.

Example, on a thread that stands in the box::

    install(with_way_out=True)          # `nft list ruleset` prints it back
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address

from loopbox.errors import HostError
from loopbox.kernel.netlink import KernelError, open_netlink
from loopbox.wire.netlink import (
    ACK,
    APPEND,
    CREATE,
    EXCL,
    REQUEST,
    build_attribute,
    build_message,
    build_nested,
    parse_messages,
)

TABLE = "loopbox"
COMMENT = "made by loopbox; do not edit"

BOX_ADDRESS6 = IPv6Address("fd6c:6f6f:7062::1")
"""What a box sends from over IPv6: a unique local address that only exists inside boxes."""
WAY_OUT_PORT = 64999
"""Where the transparent sockets listen: above every usual range of ephemeral ports."""
WORLDLESS_MARK = 1 << 28
"""The mark bit under which the IPv6 routing table is asked without the way out's own route."""
LOG_GROUP = 0x6C62
"""NFLOG group of packets that are neither TCP nor UDP."""
LOG_BYTES = 2048
"""How much of such a packet is copied: enough for any ping a person types."""

# linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 0x10, 0x11, 10
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_INET, _IPV4, _IPV6 = 1, 2, 10
_META_L4PROTO, _META_NFPROTO, _META_MARK, _META_IIF, _META_OIF = 16, 15, 3, 4, 5
_EQUAL, _UNEQUAL, _AT_LEAST = 0, 1, 5
_DROP, _ACCEPT, _GOTO = 0, 1, -4
_PREROUTING, _POSTROUTING = 0, 4
_MANGLE = -150  # TPROXY's usual place (nft(8)); before any nat
_LAST = 300  # after any nat: what is judged is what would really leave
_LO = struct.pack("=I", 1)  # interface index
_UNICAST, _LOCAL = struct.pack("=I", 1), struct.pack("=I", 2)  # RTN_UNICAST, RTN_LOCAL
_TCP, _UDP = bytes([6]), bytes([17])
_MISSING = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: the chain it is appended to, its expressions, its words for a failure."""

    chain: str
    expressions: tuple[bytes, ...]
    text: str
    """As nft(8) would have it written."""


# --- expressions: each an attribute list that nf_tables runs in order ------------------------


def _big(value: int) -> bytes:
    return struct.pack(">i" if value < 0 else ">I", value)


def _expression(name: str, *attributes: bytes) -> bytes:
    body = build_nested(2, *attributes)
    return build_nested(1, build_attribute(1, name.encode() + b"\0"), body)


def _load(key: int) -> bytes:
    return _expression("meta", build_attribute(2, _big(key)), build_attribute(1, _big(1)))


def _compare(value: bytes, how: int = _EQUAL) -> bytes:
    data = build_nested(3, build_attribute(1, value))
    return _expression("cmp", build_attribute(1, _big(1)), build_attribute(2, _big(how)), data)


def _network_header(offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        build_attribute(1, _big(1)),
        build_attribute(2, _big(1)),  # NFT_PAYLOAD_NETWORK_HEADER
        build_attribute(3, _big(offset)),
        build_attribute(4, _big(length)),
    )


def _verdict(code: int, chain: str = "") -> bytes:
    parts = [build_attribute(1, _big(code))]
    if chain:
        parts.append(build_attribute(2, chain.encode() + b"\0"))
    data = build_nested(2, build_nested(2, *parts))
    return _expression("immediate", build_attribute(1, _big(0)), data)


def _set_mark(mark: int) -> tuple[bytes, ...]:
    data = build_nested(2, build_attribute(1, struct.pack("=I", mark)))
    return (
        _expression("immediate", build_attribute(1, _big(1)), data),
        _expression("meta", build_attribute(2, _big(_META_MARK)), build_attribute(3, _big(1))),
    )


def _address_type(*, with_mark: bool = False) -> bytes:
    """`fib daddr type` (3: the type, flag 2: of the destination, flag 4: asked with the mark)."""
    return _expression(
        "fib",
        build_attribute(3, _big(2 | (4 if with_mark else 0))),
        build_attribute(2, _big(3)),
        build_attribute(1, _big(1)),
    )


def _to_transparent_socket(port: int) -> tuple[bytes, ...]:
    """`tproxy to :PORT`, which ends the rule when nobody listens there."""
    data = build_nested(2, build_attribute(1, struct.pack(">H", port)))
    return (
        _expression("immediate", build_attribute(1, _big(1)), data),
        _expression("tproxy", build_attribute(1, _big(0)), build_attribute(3, _big(1))),
    )


def _copy_to_keeper() -> bytes:
    return _expression(
        "log",
        build_attribute(1, struct.pack(">H", LOG_GROUP)),
        build_attribute(3, _big(LOG_BYTES)),
        build_attribute(4, struct.pack(">H", 1)),  # hand every packet over at once
    )


def _is_family(family: int) -> tuple[bytes, ...]:
    return _load(_META_NFPROTO), _compare(bytes([family]))


_V4_SOURCE, _V4_TARGET = 12, 16
_V6_SOURCE, _V6_TARGET = 8, 24


def _v4_loopback(offset: int) -> tuple[bytes, ...]:
    return *_is_family(_IPV4), _network_header(offset, 1), _compare(b"\x7f")


def _v6_prefix(offset: int, prefix: bytes) -> tuple[bytes, ...]:
    return *_is_family(_IPV6), _network_header(offset, len(prefix)), _compare(prefix)


_ONE = IPv6Address("::1").packed
_MAPPED = IPv6Address("::ffff:0:0").packed[:12]
_FIRST_LINK_LOCAL = IPv6Address("fe80::").packed

# --- the rules -----------------------------------------------------------------------------

_DROPPED, _ACCEPTED = _verdict(_DROP), _verdict(_ACCEPT)

GUARD: tuple[Rule, ...] = (
    Rule(
        "prerouting",
        (_load(_META_IIF), _compare(_LO, _UNEQUAL), _verdict(_GOTO, "wire")),
        'iif != "lo" goto wire',
    ),
    Rule(
        "postrouting",
        (_load(_META_OIF), _compare(_LO, _UNEQUAL), _verdict(_GOTO, "wire")),
        'oif != "lo" goto wire',
    ),
    *(
        Rule("wire", (*match, _DROPPED), text)
        for match, text in (
            (_v4_loopback(_V4_TARGET), "ip daddr 127.0.0.0/8 drop"),
            (_v4_loopback(_V4_SOURCE), "ip saddr 127.0.0.0/8 drop"),
            (_v6_prefix(_V6_TARGET, _ONE), "ip6 daddr ::1 drop"),
            (_v6_prefix(_V6_SOURCE, _ONE), "ip6 saddr ::1 drop"),
            # The kernel lets such UDP in, and its sender then reads as 127.x (facts.md 1.4).
            (_v6_prefix(_V6_SOURCE, _MAPPED), "ip6 saddr ::ffff:0.0.0.0/96 drop"),
        )
    ),
)
"""What keeps loopback addresses off the wire, in both directions."""

WAY_OUT: tuple[Rule, ...] = (
    Rule("prerouting", (*_v4_loopback(_V4_TARGET), _ACCEPTED), "ip daddr 127.0.0.0/8 accept"),
    Rule("prerouting", (*_v6_prefix(_V6_TARGET, _ONE), _ACCEPTED), "ip6 daddr ::1 accept"),
    Rule(
        "prerouting",
        # The kernel enters an IPv6 address into its tables a moment after it was added (a work
        # item, net/ipv6/addrconf.c); without this rule what comes home in that moment is lost.
        (*_v6_prefix(_V6_TARGET, BOX_ADDRESS6.packed), _ACCEPTED),
        f"ip6 daddr {BOX_ADDRESS6} accept",
    ),
    Rule(
        "prerouting",
        # 1 is RTN_UNICAST: local, broadcast and multicast are the box's own affair.
        (*_is_family(_IPV4), _address_type(), _compare(_UNICAST, _UNEQUAL), _ACCEPTED),
        "meta nfproto ipv4 fib daddr type != unicast accept",
    ),
    Rule(
        "prerouting",
        (
            *_is_family(_IPV6),
            _network_header(_V6_TARGET, 16),
            _compare(_FIRST_LINK_LOCAL, _AT_LEAST),
            _ACCEPTED,
        ),
        "ip6 daddr >= fe80:: accept",
    ),
    Rule(
        "prerouting",
        # What goes on to the next rules keeps the mark: nothing after them reads it.
        (
            *_is_family(_IPV6),
            *_set_mark(WORLDLESS_MARK),
            _address_type(with_mark=True),
            _compare(_LOCAL),
            *_set_mark(0),
            _ACCEPTED,
        ),
        f"meta nfproto ipv6 meta mark set {WORLDLESS_MARK:#010x} "
        "fib daddr . mark type local meta mark set 0x00000000 accept",
    ),
    *(
        Rule(
            "prerouting",
            (
                _load(_META_L4PROTO),
                _compare(number),
                *_to_transparent_socket(WAY_OUT_PORT),
                _ACCEPTED,
            ),
            f"meta l4proto {word} tproxy to :{WAY_OUT_PORT} accept",
        )
        for word, number in (("tcp", _TCP), ("udp", _UDP))
    ),
    Rule(
        "prerouting",
        (_copy_to_keeper(), _DROPPED),
        f"log group {LOG_GROUP} snaplen {LOG_BYTES} queue-threshold 1 drop",
    ),
)
"""What leads the wide world to the keeper; only `lo` comes this far, see the guard's first rule."""

_CHAINS: tuple[tuple[str, tuple[int, int] | None], ...] = (
    ("wire", None),
    ("prerouting", (_PREROUTING, _MANGLE)),
    ("postrouting", (_POSTROUTING, _LAST)),
)
"""Name, and for those the kernel calls: (hook, priority)."""


# --- the batch -----------------------------------------------------------------------------


def build_batch(rules: tuple[Rule, ...], *, replace: bool = False) -> bytes:
    """The netlink batch that makes our table with these rules, all or nothing.

    The table must not be there yet, or must be there with `replace`.
    """
    name = build_attribute(1, TABLE.encode() + b"\0")
    comment = COMMENT.encode() + b"\0"
    userdata = build_attribute(6, bytes([0, len(comment)]) + comment)
    messages = [(_DELTABLE, 0, name)] if replace else []
    messages.append((_NEWTABLE, CREATE | EXCL, name + build_attribute(2, _big(0)) + userdata))
    for chain, hook in _CHAINS:
        payload = name + build_attribute(3, chain.encode() + b"\0")
        if hook is not None:
            number, priority = hook
            where = build_attribute(1, _big(number)) + build_attribute(2, _big(priority))
            payload += build_nested(4, where) + build_attribute(7, b"filter\0")
            payload += build_attribute(5, _big(1))  # policy accept
        messages.append((_NEWCHAIN, CREATE, payload))
    for rule in rules:
        place = build_attribute(2, rule.chain.encode() + b"\0")
        payload = name + place + build_nested(4, *rule.expressions)
        messages.append((_NEWRULE, CREATE | APPEND, payload))
    return _wrap(messages)


def _wrap(messages: list[tuple[int, int, bytes]]) -> bytes:
    """Messages between the marks of a batch; the last one asks for an acknowledgement."""
    generic = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    parts = [build_message(_BATCH_BEGIN, REQUEST, 0, generic)]
    for sequence, (kind, flags, payload) in enumerate(messages, start=1):
        last = ACK if sequence == len(messages) else 0
        header = struct.pack(">BBH", _INET, 0, 0)
        parts.append(
            build_message(
                _SUBSYSTEM << 8 | kind, REQUEST | flags | last, sequence, header + payload
            )
        )
    parts.append(build_message(_BATCH_END, REQUEST, len(messages) + 1, generic))
    return b"".join(parts)


@cache
def _prepared(*, with_way_out: bool, replace: bool) -> tuple[bytes, tuple[str, ...]]:
    """The batch, and for each message by sequence number less one what it was to add."""
    rules = (*GUARD, *WAY_OUT) if with_way_out else GUARD
    words = (
        *((f"table `{TABLE}` anew",) if replace else ()),
        f"table `{TABLE}`",
        *(f"chain `{chain}`" for chain, _ in _CHAINS),
        *(f"rule `{rule.text}`" for rule in rules),
    )
    return build_batch(rules, replace=replace), words


# --- hands ---------------------------------------------------------------------------------


def fresh_batch() -> bytes:
    """The batch that makes our table, guard and way out, where there is none yet."""
    return _prepared(with_way_out=True, replace=False)[0]


def install(*, with_way_out: bool) -> None:
    """Make our table in the calling thread's network namespace, or make it anew.

    Raises HostError with code `no-tproxy` when this kernel lacks what the way out needs (the
    guard alone may still work: nothing was changed), `no-nftables` when it lacks nftables, and
    KernelError for anything else.
    """
    try:
        try:
            _send(*_prepared(with_way_out=with_way_out, replace=False))
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise
            _send(*_prepared(with_way_out=with_way_out, replace=True))
    except KernelError as error:
        if error.number not in _MISSING:
            raise
        if error.target.startswith("rule `meta l4proto"):
            raise HostError(
                "cannot give boxes a way out: this kernel has no transparent proxying for nftables",
                hint="load it: sudo modprobe nft_tproxy",
                code="no-tproxy",
            ) from error
        raise HostError(
            f"cannot set up the guard of a box: this kernel lacks part of nftables: {error}",
            hint="load it: sudo modprobe nf_tables nft_fib_inet",
            code="no-nftables",
        ) from error


def remove() -> bool:
    """Delete our table here, whatever is in it. False when there was none."""
    name = build_attribute(1, TABLE.encode() + b"\0")
    try:
        _send(_wrap([(_DELTABLE, 0, name)]), (f"table `{TABLE}`",))
    except KernelError as error:
        if error.number != errno.ENOENT:
            raise
        return False
    return True


def _send(batch: bytes, words: tuple[str, ...]) -> None:
    try:
        netlink = open_netlink(_NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError("open", "a netfilter socket", error.errno or errno.EIO) from error
    with netlink:
        netlink.send(batch)
        while True:  # nf_tables answers before send(2) returns: every failure, then the ack
            for message in parse_messages(netlink.recv(65536)):
                if message.error is None:
                    continue
                number, text = message.error
                if number:
                    place = message.sequence - 1
                    target = words[place] if 0 <= place < len(words) else f"table `{TABLE}`"
                    raise KernelError("add", target, number, text)
                if message.sequence == len(words):
                    return
