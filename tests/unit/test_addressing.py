"""Addresses: the parser and the classification."""

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import UsageError
from loopbox.rules.addressing import (
    classify,
    embedded_ipv4,
    is_loopback,
    is_unspecified,
    parse_address,
    parse_interface,
    text_of,
)
from loopbox.rules.registry import BLOCKS, registered

FACTS = [
    # input, class, loopback, unspecified, "source destination forwardable global reserved"
    ("127.0.0.1", "loopback", True, False, "FFFFT"),
    ("127.0.0.0", "loopback", True, False, "FFFFT"),
    ("127.255.255.255", "loopback", True, False, "FFFFT"),
    ("126.255.255.255", "public", False, False, "TTTTF"),
    ("128.0.0.0", "public", False, False, "TTTTF"),
    ("0.0.0.0", "unspecified", False, True, "TFFFT"),
    ("0.0.0.1", "this-network", False, False, "TFFFT"),
    ("10.1.2.3", "lan", False, False, "TTTFF"),
    ("172.32.0.1", "public", False, False, "TTTTF"),
    ("100.64.0.1", "lan", False, False, "TTTFF"),
    ("169.254.169.254", "link", False, False, "TTFFT"),
    ("192.0.0.9", "anycast", False, False, "TTTTF"),
    ("192.0.0.8", "special", False, False, "TFFFF"),
    ("192.0.2.1", "documentation", False, False, "FFFFF"),
    ("192.88.99.1", "special", False, False, "-----"),
    ("198.18.5.1", "lab", False, False, "TTTFF"),
    ("224.0.0.1", "multicast", False, False, "FT-F-"),
    ("240.0.0.1", "special", False, False, "FFFFT"),
    ("255.255.255.255", "special", False, False, "FTFFT"),
    ("12.42.38.125", "public", False, False, "TTTTF"),
    ("::", "unspecified", False, True, "TFFFT"),
    ("::1", "loopback", True, False, "FFFFT"),
    ("::2", "special", False, False, "FFFFT"),
    ("::127.0.0.1", "special", False, False, "FFFFT"),
    ("::ffff:127.0.0.1", "loopback", True, False, "FFFFT"),
    ("::ffff:0.0.0.0", "unspecified", False, True, "TFFFT"),
    ("::ffff:10.0.0.1", "lan", False, False, "TTTFF"),
    ("::ffff:8.8.8.8", "public", False, False, "TTTTF"),
    ("64:ff9b::7f00:1", "translation", False, False, "TTTTF"),
    ("2002:7f00:1::", "translation", False, False, "TTT-F"),
    ("2001::1", "translation", False, False, "TTT-F"),
    ("2001:db8::1", "documentation", False, False, "FFFFF"),
    ("3fff::1", "documentation", False, False, "FFFFF"),
    ("2606:4700::1", "public", False, False, "TTTTF"),
    ("fe80::1%eth0", "link", False, False, "TTFFT"),
    ("fd00::1", "lan", False, False, "TTTFF"),
    ("ff02::1", "multicast", False, False, "FT-F-"),
]
LETTER = {True: "T", False: "F", None: "-"}


@pytest.mark.parametrize(("text", "kind", "loopback", "unspecified", "facts"), FACTS)
def test_registry_facts(text, kind, loopback, unspecified, facts):
    """Each address carries the five facts of the IANA registries and our class."""
    found = classify(text)
    five = (found.source, found.destination, found.forwardable, found.is_global, found.reserved)

    assert (kind, loopback, unspecified, facts) == (
        found.kind,
        found.loopback,
        found.unspecified,
        "".join(LETTER[value] for value in five),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("127.255.255.255", "broadcast"),
        ("0.1.2.3", "default gateway"),
        ("::ffff:127.0.0.1", "judged as 127.0.0.1"),
        ("64:ff9b::7f00:1", "embeds 127.0.0.1"),
        ("2002:7f00:1::", "embeds 127.0.0.1"),
        ("2001:0:1:2:3:4:80ff:fffe", "embeds 127.0.0.1"),
        ("fe80::5efe:127.0.0.1", "embeds 127.0.0.1"),
        ("::127.0.0.1", "embeds 127.0.0.1"),
        ("0.0.0.0", "connect on Linux: 127.0.0.1"),
        ("12.42.38.125", "somebody's"),
    ],
)
def test_notes_say_what_the_registry_does_not(text, words):
    """The traps of research are in the note of the address they concern."""
    assert words in classify(text).note


@pytest.mark.parametrize(
    "text",
    [
        "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "010.0.0.1", "0", "127.0.0.1 x", "",
        " 127.0.0.1", "127.0.0.1\n", "[::1]", "localhost", "127.0.0.1/8", "1.2.3.4.5", "::1%",
        "127.0.0.1%lo", "::1%a b", "::ffff:0127.0.0.1", "\u0661.0.0.1", "1:2:3", "256.0.0.1",
        "fe80::1%\x1b[31m", "0x7f000001", "127.0.0.0x1",
    ],
)  # fmt: skip
def test_what_is_not_spelt_in_full_is_refused(text):
    """Shorthand, octal, hexadecimal, numbers and junk are refused with a message and a hint."""
    with pytest.raises(UsageError) as failure:
        parse_address(text)

    assert failure.value.message.startswith("cannot read address")
    assert failure.value.hint
    assert failure.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.2", ("127.0.0.2", None)),
        ("127.0.0.2/32", ("127.0.0.2", 32)),
        ("2001:DB8::/64", ("2001:db8::", 64)),
    ],
)
def test_interface_addresses(text, expected):
    """ADDRESS/PREFIX is split, and no prefix is told from any prefix."""
    address, prefix = parse_interface(text)

    assert expected == (text_of(address), prefix)


@pytest.mark.parametrize(
    "text", ["10.7.0.1/33", "::1/129", "1.2.3.4/", "1.2.3.4/+8", "1.2.3.4/8/9"]
)
def test_bad_prefix_lengths(text):
    """A prefix length out of range is refused with the range as hint."""
    with pytest.raises(UsageError, match="prefix length"):
        parse_interface(text)


def test_registry_is_consistent():
    """Every block is found again by its own first address unless a smaller one begins there."""
    for block in BLOCKS:
        found = registered(block.network.network_address)

        assert found.network.subnet_of(block.network)


@given(st.integers(0, 2**32 - 1))
def test_the_kernel_reads_what_we_read_ipv4(number):
    """Our text and the C library's reading of it are the same address, and 127/8 is loopback."""
    address = IPv4Address(number)
    text = text_of(parse_address(str(address)))

    assert (address.packed, number >> 24 == 127) == (socket.inet_aton(text), is_loopback(address))


@given(st.one_of(st.integers(0, 2**128 - 1), st.integers(0xFFFF00000000, 0xFFFFFFFFFFFF)))
def test_the_kernel_reads_what_we_read_ipv6(number):
    """Canonical IPv6 text means the same to inet_pton and survives a round trip."""
    address = IPv6Address(number)
    text = text_of(address)

    assert address.packed == socket.inet_pton(socket.AF_INET6, text)
    assert address == parse_address(text)


@given(st.integers(0, 2**32 - 1))
def test_mapped_is_judged_as_what_it_carries(number):
    """An IPv4-mapped address has the class and facts of the IPv4 address inside it."""
    plain = classify(str(IPv4Address(number))).as_json()
    mapped = classify(f"::ffff:{IPv4Address(number)}").as_json()
    judged = ["class", "loopback", "unspecified", "source", "destination", "global", "rfc"]

    assert [plain[key] for key in judged] == [mapped[key] for key in judged]


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[0-9a-fx.:%/]{0,30}", fullmatch=True)))
def test_any_text_is_read_or_refused(text):
    """No text makes the parser do anything but answer or raise UsageError."""
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert address == parse_address(text_of(address))
    assert classify(text).unspecified == is_unspecified(address)
    embedded_ipv4(address)
