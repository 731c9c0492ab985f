"""The batch that makes a box's table, read back from its bytes."""

from __future__ import annotations

import struct

from loopbox.kernel.nft import COMMENT, GUARD, TABLE, WAY_OUT, WAY_OUT_PORT, Rule, build_batch
from loopbox.wire.netlink import ACK, EXCL, Message, parse_attributes, parse_messages

_SUBSYSTEM = 10 << 8
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
ALL = (*GUARD, *WAY_OUT)


def kinds(messages: list[Message]) -> list[int]:
    """The message types within nf_tables, the marks of the batch left out."""
    return [message.kind - _SUBSYSTEM for message in messages[1:-1]]


def expressions(message: Message) -> list[str]:
    """The names of a rule's expressions, in order."""
    listed = parse_attributes(message.payload[4:])[4]
    names = []
    while listed:
        (length,) = struct.unpack_from("=H", listed)
        names.append(parse_attributes(listed[4:length])[1].rstrip(b"\0").decode())
        listed = listed[(length + 3) & ~3 :]
    return names


def test_the_batch_is_all_or_nothing() -> None:
    """Begin and end marks of nf_tables around everything, sequence numbers without a gap."""
    messages = list(parse_messages(build_batch(ALL)))

    assert (messages[0].kind, messages[-1].kind) == (0x10, 0x11)
    assert {messages[0].payload, messages[-1].payload} == {struct.pack(">BBH", 0, 0, 10)}
    assert [message.sequence for message in messages] == list(range(len(messages)))


def test_table_chains_rules_in_that_order() -> None:
    """One table, the three chains, then every rule."""
    messages = list(parse_messages(build_batch(ALL)))

    assert kinds(messages) == [_NEWTABLE] + [_NEWCHAIN] * 3 + [_NEWRULE] * len(ALL)


def test_only_the_last_message_asks_for_an_ack() -> None:
    """One answer for the whole batch."""
    messages = list(parse_messages(build_batch(ALL)))

    asking = [message.sequence for message in messages if message.flags & ACK]
    assert asking == [len(messages) - 2]


def test_an_existing_table_is_not_added_to() -> None:
    """The table must be new: rules appended to an old one would be there twice."""
    messages = list(parse_messages(build_batch(ALL)))

    assert messages[1].flags & EXCL


def test_replacing_deletes_first() -> None:
    """The old table goes and the new one comes in the same batch."""
    messages = list(parse_messages(build_batch(GUARD, replace=True)))

    assert kinds(messages)[:2] == [_DELTABLE, _NEWTABLE]


def test_everything_is_in_our_table() -> None:
    """Every message names the table, so nothing else can be touched."""
    messages = list(parse_messages(build_batch(ALL, replace=True)))

    named = {parse_attributes(message.payload[4:])[1] for message in messages[1:-1]}
    assert named == {TABLE.encode() + b"\0"}


def test_the_table_bears_our_mark() -> None:
    """The comment is user data as nft(8) writes it: type 0, length, text."""
    messages = list(parse_messages(build_batch(ALL)))

    text = COMMENT.encode() + b"\0"
    assert parse_attributes(messages[1].payload[4:])[6] == bytes([0, len(text)]) + text


def test_hooks_and_priorities() -> None:
    """prerouting at mangle's -150, postrouting after everything, `wire` only when gone to."""
    messages = list(parse_messages(build_batch(ALL)))
    hooks = {}
    for message in messages[2:5]:
        found = parse_attributes(message.payload[4:])
        place = parse_attributes(found[4]) if 4 in found else {}
        hooks[found[3].rstrip(b"\0").decode()] = [
            struct.unpack(">i", value)[0] for value in place.values()
        ]

    assert hooks == {"wire": [], "prerouting": [0, -150], "postrouting": [4, 300]}


def test_the_guard_comes_before_the_way_out() -> None:
    """What arrives on a wire leaves the chain before any rule of the way out sees it."""
    prerouting = [rule for rule in ALL if rule.chain == "prerouting"]

    assert prerouting[0].text == 'iif != "lo" goto wire'


def test_loopback_is_let_through_by_the_first_rules() -> None:
    """127/8 costs two rules and ::1 three: box-internal traffic stays fast."""
    prerouting = [rule.text for rule in ALL if rule.chain == "prerouting"]

    assert prerouting[1:3] == ["ip daddr 127.0.0.0/8 accept", "ip6 daddr ::1 accept"]


def test_the_last_rule_drops() -> None:
    """What no rule took never reaches lo, which would answer for every address on earth."""
    last = list(parse_messages(build_batch(ALL)))[-2]

    assert expressions(last) == ["log", "immediate"]
    assert WAY_OUT[-1].text.endswith(" drop")


def test_tproxy_is_told_the_port() -> None:
    """The port goes into a register, big-endian, before the tproxy expression."""
    tproxy = [
        message
        for message in parse_messages(build_batch(ALL))
        if message.kind == _SUBSYSTEM + _NEWRULE and "tproxy" in expressions(message)
    ]

    assert [expressions(message) for message in tproxy] == [
        ["meta", "cmp", "immediate", "tproxy", "immediate"]
    ] * 2
    assert all(struct.pack(">H", WAY_OUT_PORT) in message.payload for message in tproxy)


def test_no_connection_tracking() -> None:
    """No expression that would switch conntrack on for the box's own loopback traffic."""
    used = {
        name
        for message in parse_messages(build_batch(ALL))
        if message.kind == _SUBSYSTEM + _NEWRULE
        for name in expressions(message)
    }

    assert used == {"meta", "cmp", "payload", "immediate", "fib", "tproxy", "log"}


def test_rules_have_words() -> None:
    """Every rule says what it is, for the error that names it, and no two the same in a chain."""
    spoken = [(rule.chain, rule.text) for rule in ALL]

    assert len(set(spoken)) == len(spoken)
    assert all(isinstance(rule, Rule) and rule.text for rule in ALL)
