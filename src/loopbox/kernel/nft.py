"""The nftables table of a box, as one prepared netlink batch.

Owns: the rules that keep 127/8 and ::1 off every wire (the guard), and those that lead what a box
sends to the wide world to the keeper's transparent sockets (the way out). The whole batch is the
same for every box, so it is encoded once per process and a box costs one send (about 0.2 ms).
Must never: touch a table that is not ours, decide which box gets which part, run `nft`.

How a packet on `lo` is judged, cheapest first: 127/8 and ::1 pass (two comparisons; no connection
tracking is ever switched on). Other addresses of the box pass by asking the routing table. IPv4
asks only the local table (net/ipv4/fib_frontend.c, __inet_dev_addr_type). IPv6 would also find
the way out's own `local default`, so it asks with a mark that hides that route (see the rule with
`without_mark` in kernel/transparent.py). The rest is the wide world: TCP and UDP to the transparent
sockets, anything else copied to the keeper (NFLOG) and dropped: without the drop lo would answer
a ping to every address on earth.

Sources: nft(8), net/netfilter/nft_fib.c, net/ipv4/netfilter/nft_fib_ipv4.c.

Example, on a thread that stands in the box::

    install(with_way_out=True)          # `nft list ruleset` prints it back
"""

from __future__ import annotations

import errno
import struct
from functools import cache
from ipaddress import IPv6Address

from loopbox.errors import HostError
from loopbox.kernel.netlink import KernelError, open_netlink
from loopbox.wire.netlink import DONE, parse_messages
from loopbox.wire.nftables import (
    ACCEPT,
    AT_LEAST,
    DROP,
    GOTO,
    IPV4,
    IPV6,
    META_IIF,
    META_L4PROTO,
    META_OIF,
    NEWRULE,
    POSTROUTING,
    PREROUTING,
    SOURCE4,
    SOURCE6,
    TARGET4,
    TARGET6,
    UNEQUAL,
    Chain,
    Rule,
    build_removal,
    build_rule_dump,
    build_table,
    compare,
    copy_to_log,
    has_prefix6,
    is_family,
    is_loopback4,
    load,
    load_address_type,
    load_network_header,
    parse_rule,
    set_mark,
    to_transparent_socket,
    verdict,
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

_NETLINK_NETFILTER = 12
_MANGLE = -150  # TPROXY's usual place (nft(8)); before any nat
_LAST = 300  # after any nat: what is judged is what would really leave
_LO = struct.pack("=I", 1)  # interface index
_UNICAST, _LOCAL = struct.pack("=I", 1), struct.pack("=I", 2)  # RTN_UNICAST, RTN_LOCAL
_TCP, _UDP = bytes([6]), bytes([17])
_MISSING = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
_ONE = IPv6Address("::1").packed
_MAPPED = IPv6Address("::ffff:0:0").packed[:12]
_FIRST_LINK_LOCAL = IPv6Address("fe80::").packed

# --- the rules -----------------------------------------------------------------------------

_DROPPED, _ACCEPTED = verdict(DROP), verdict(ACCEPT)

GUARD: tuple[Rule, ...] = (
    Rule(
        "prerouting",
        (load(META_IIF), compare(_LO, UNEQUAL), verdict(GOTO, "wire")),
        'iif != "lo" goto wire',
    ),
    Rule(
        "postrouting",
        (load(META_OIF), compare(_LO, UNEQUAL), verdict(GOTO, "wire")),
        'oif != "lo" goto wire',
    ),
    *(
        Rule("wire", (*match, _DROPPED), text)
        for match, text in (
            (is_loopback4(TARGET4), "ip daddr 127.0.0.0/8 drop"),
            (is_loopback4(SOURCE4), "ip saddr 127.0.0.0/8 drop"),
            (has_prefix6(TARGET6, _ONE), "ip6 daddr ::1 drop"),
            (has_prefix6(SOURCE6, _ONE), "ip6 saddr ::1 drop"),
            # The kernel lets such UDP in, and its sender then reads as 127.x (facts.md 1.4).
            (has_prefix6(SOURCE6, _MAPPED), "ip6 saddr ::ffff:0.0.0.0/96 drop"),
        )
    ),
)
"""What keeps loopback addresses off the wire, in both directions."""

WAY_OUT: tuple[Rule, ...] = (
    Rule("prerouting", (*is_loopback4(TARGET4), _ACCEPTED), "ip daddr 127.0.0.0/8 accept"),
    Rule("prerouting", (*has_prefix6(TARGET6, _ONE), _ACCEPTED), "ip6 daddr ::1 accept"),
    Rule(
        "prerouting",
        # The kernel enters an IPv6 address into its tables a moment after it was added (a work
        # item, net/ipv6/addrconf.c); without this rule what comes home in that moment is lost.
        (*has_prefix6(TARGET6, BOX_ADDRESS6.packed), _ACCEPTED),
        f"ip6 daddr {BOX_ADDRESS6} accept",
    ),
    Rule(
        "prerouting",
        # 1 is RTN_UNICAST: local, broadcast and multicast are the box's own affair.
        (*is_family(IPV4), load_address_type(), compare(_UNICAST, UNEQUAL), _ACCEPTED),
        "meta nfproto ipv4 fib daddr type != unicast accept",
    ),
    Rule(
        "prerouting",
        (
            *is_family(IPV6),
            load_network_header(TARGET6, 16),
            compare(_FIRST_LINK_LOCAL, AT_LEAST),
            _ACCEPTED,
        ),
        "ip6 daddr >= fe80:: accept",
    ),
    Rule(
        "prerouting",
        # What goes on to the next rules keeps the mark: nothing after them reads it.
        (
            *is_family(IPV6),
            *set_mark(WORLDLESS_MARK),
            load_address_type(with_mark=True),
            compare(_LOCAL),
            *set_mark(0),
            _ACCEPTED,
        ),
        f"meta nfproto ipv6 meta mark set {WORLDLESS_MARK:#010x} "
        "fib daddr . mark type local meta mark set 0x00000000 accept",
    ),
    *(
        Rule(
            "prerouting",
            (
                load(META_L4PROTO),
                compare(number),
                *to_transparent_socket(WAY_OUT_PORT),
                _ACCEPTED,
            ),
            f"meta l4proto {word} tproxy to :{WAY_OUT_PORT} accept",
        )
        for word, number in (("tcp", _TCP), ("udp", _UDP))
    ),
    Rule(
        "prerouting",
        (copy_to_log(LOG_GROUP, most=LOG_BYTES), _DROPPED),
        f"log group {LOG_GROUP} snaplen {LOG_BYTES} queue-threshold 1 drop",
    ),
)
"""What leads the wide world to the keeper; only `lo` comes this far, see the guard's first rule."""

_CHAINS = (
    Chain("wire"),
    Chain("prerouting", PREROUTING, _MANGLE),
    Chain("postrouting", POSTROUTING, _LAST),
)


def build_batch(rules: tuple[Rule, ...], *, replace: bool = False) -> bytes:
    """The netlink batch that makes our table with these rules, all or nothing.

    The table must not be there yet, or must be there with `replace`.
    """
    return build_table(rules, table=TABLE, comment=COMMENT, chains=_CHAINS, replace=replace)


@cache
def _prepared(*, with_way_out: bool, replace: bool) -> tuple[bytes, tuple[str, ...]]:
    """The batch, and for each message by sequence number less one what it was to add."""
    rules = (*GUARD, *WAY_OUT) if with_way_out else GUARD
    words = (
        *((f"table `{TABLE}` anew",) if replace else ()),
        f"table `{TABLE}`",
        *(f"chain `{chain.name}`" for chain in _CHAINS),
        *(f"rule `{rule.text}`" for rule in rules),
    )
    return build_batch(rules, replace=replace), words


# --- hands ---------------------------------------------------------------------------------


def fresh_batch(*, with_way_out: bool) -> bytes:
    """The batch that makes our table with the guard, where there is none yet."""
    return _prepared(with_way_out=with_way_out, replace=False)[0]


def install(*, with_way_out: bool) -> None:
    """Make our table in the calling thread's network namespace, or make it anew.

    Raises HostError with code `no-tproxy` when this kernel lacks what the way out needs (the
    guard alone may still work: nothing was changed), `no-nftables` when it lacks nftables, and
    KernelError for anything else.
    """
    expected = _standing.get(with_way_out)
    if expected is not None and _read_rules() == expected:
        return
    try:
        try:
            _send(*_prepared(with_way_out=with_way_out, replace=False))
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise
            _send(*_prepared(with_way_out=with_way_out, replace=True))
            _standing[with_way_out] = _read_rules()
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


_standing: dict[bool, list[tuple[bytes, bytes]]] = {}
"""With the way out or not: our rules as the kernel words them, read back after a replacement.

To replace a table costs 20 ms, and so does being refused because it is there (the kernel waits
until nobody reads the old one). A keeper that follows a dead one meets a table in every box that
lives: one that says what ours would say is left alone. What that is, `learn` finds out first, or
the first replacement.
"""


def learn() -> None:
    """Find out how this kernel words our rules, in a namespace of the keeper's own.

    There nothing stands in the way, so it costs a fortieth of a replacement. A kernel that lacks a
    part is not the asker's trouble: `install` will say so for each box.
    """
    try:
        _send(*_prepared(with_way_out=True, replace=False))
        _standing[True] = _read_rules()
    except KernelError:
        return


def _read_rules() -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    with open_netlink(_NETLINK_NETFILTER) as netlink:
        netlink.send(build_rule_dump(TABLE))
        while True:
            for message in parse_messages(netlink.recv(65536)):
                if message.kind == NEWRULE:
                    found.append(parse_rule(message.payload))
                elif message.kind == DONE or message.error is not None:
                    return found


def remove() -> bool:
    """Delete our table here, whatever is in it. False when there was none."""
    try:
        _send(build_removal(TABLE), (f"table `{TABLE}`",))
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
