"""The sock_diag codec, by bytes: no kernel."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.kernel.sockets import (
    TCP_CLOSE,
    TCP_LISTEN,
    ListeningSocket,
    PeerOwner,
    build_lookup,
    parse_listening,
    parse_owner,
    parse_proc_raw,
)

V6ONLY = 11


def message(family, source, *, port=80, state=TCP_LISTEN, v6only=None, interface=0):
    """One inet_diag_msg as the kernel lays it out, with the V6ONLY attribute when asked for."""
    identity = (
        struct.pack("!HH", port, 0)
        + source.ljust(16, b"\0")
        + bytes(16)
        + struct.pack("=I", interface)
        + bytes(8)
    )
    body = bytes([family, state, 0, 0]) + identity + struct.pack("=IIIII", 0, 0, 0, 1001, 77)
    if v6only is not None:
        body += struct.pack("=HHB3x", 5, V6ONLY, v6only)
    return body


@pytest.mark.parametrize(
    ("source", "v6only", "served"),
    [
        pytest.param(bytes(16), 0, "dual", id="wildcard"),
        pytest.param(bytes(16), 1, "ipv6", id="wildcard-v6only"),
        pytest.param(bytes(16), None, "ipv6", id="wildcard-kernel-says-nothing"),
        pytest.param(IPv6Address("::1").packed, 0, "ipv6", id="one-address"),
        pytest.param(IPv6Address("::ffff:127.0.0.1").packed, 0, "ipv4", id="mapped"),
        pytest.param(IPv6Address("::ffff:0.0.0.0").packed, 0, "ipv4", id="mapped-wildcard"),
    ],
)
def test_family_says_which_ip_versions_are_served(source, v6only, served):
    """A V6ONLY wildcard is told from a dual-stack one, and a mapped address serves IPv4."""
    entry = parse_listening(message(socket.AF_INET6, source, v6only=v6only), "tcp")

    assert (served, IPv6Address(source)) == (entry.family, entry.address)


def test_ipv4_listener_in_full():
    """Every field of an IPv4 listener comes from its place in the message."""
    body = message(socket.AF_INET, bytes([127, 0, 0, 1]), port=5432, interface=3)

    assert (
        ListeningSocket("tcp", "ipv4", IPv4Address("127.0.0.1"), 5432, 3, 77, 1001)
    ) == parse_listening(body, "tcp")


def test_a_listener_is_nobodys_client():
    """An exact look-up that falls back to a listener yields no owner."""
    client = message(socket.AF_INET, bytes([127, 0, 0, 1]), port=40000, state=1)
    listener = message(socket.AF_INET, bytes([127, 0, 0, 1]), port=40000, state=TCP_LISTEN)

    assert (PeerOwner(1001, 77, 1), None, None) == (
        parse_owner(client, local_port=40000),
        parse_owner(listener, local_port=40000),
        parse_owner(client, local_port=40001),
    )


def test_udp_lookups_swap_their_ends():
    """The kernel reads source and destination of a UDP look-up the other way round."""
    one, other = ("127.0.0.1", 1000), ("127.0.0.2", 2000)

    assert build_lookup("tcp", one, other)[24:] == build_lookup("udp", other, one)[24:]


def test_two_families_are_a_programming_mistake():
    """A look-up between an IPv4 and an IPv6 end cannot be built."""
    with pytest.raises(ValueError, match="two families"):
        build_lookup("tcp", ("127.0.0.1", 1), ("::1", 2))


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data):
    """Whatever arrives, parsing ends without an exception."""
    parse_listening(data, "udp")
    parse_owner(data, local_port=1)


@given(st.integers(0, 140), st.sampled_from([socket.AF_INET, socket.AF_INET6]))
def test_a_cut_message_is_no_listener_or_the_same_listener(cut, family):
    """A message cut anywhere is refused whole; cutting only its attributes is never `dual`."""
    whole = message(family, bytes(16), v6only=1, state=TCP_CLOSE)

    entry = parse_listening(whole[:cut], "udp")

    assert entry is None if cut < 72 else entry == parse_listening(whole, "udp")


RAW6 = """\
  sl  local_address                         remote_address                        st tx_queue
  147: 00000000000000000000000001000000:003A {0:032}:0000 07 0:0 0:0 0 5 0 99
""".replace("{0:032}", "0" * 32)


def test_raw_sockets_from_text():
    """Where the kernel has no raw_diag its text serves; connected ones are left out."""
    assert [ListeningSocket("raw", "ipv6", IPv6Address("::1"), 58, 0, 99, 5)] == parse_proc_raw(
        RAW6
    )
    assert [] == parse_proc_raw(RAW6.replace(" 07 ", " 01 "))


@given(st.text(alphabet="0123456789abcdefF: \n", max_size=300))
def test_no_text_breaks_the_raw_reader(text):
    """Any text yields sockets or nothing."""
    parse_proc_raw("header\n" + text)
