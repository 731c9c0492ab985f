"""Netlink by bytes: what is sent, and what answers mean."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import HostError
from loopbox.kernel.netlink import KernelError, transact
from loopbox.wire.netlink import (
    ACK,
    DONE,
    ERROR,
    REQUEST,
    Message,
    build_attribute,
    build_message,
    build_nested,
    parse_attributes,
    parse_messages,
)
from loopbox.wire.rtnetlink import (
    AddressRecord,
    Link,
    RouteAnswer,
    add_address,
    add_route,
    add_rule,
    ask_route,
    delete_address,
    link_up,
    parse_address,
    parse_link,
    parse_route,
)

ATTRIBUTES = st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8)


def refusal(sequence: int, number: int, text: str = "") -> bytes:
    """NLMSG_ERROR as the kernel sends it with capped requests and extended acks."""
    request = struct.pack("=IHHII", 16, 16, 5, sequence, 0)
    words = build_attribute(1, text.encode() + b"\0") if text else b""
    flags = 0x100 | (0x200 if text else 0)
    return build_message(ERROR, flags, sequence, struct.pack("=i", -number) + request + words)


@given(ATTRIBUTES)
def test_attributes_survive(attributes: dict[int, bytes]) -> None:
    """What is built is parsed back, whatever the lengths."""
    data = b"".join(build_attribute(kind, value) for kind, value in attributes.items())

    assert parse_attributes(data) == attributes


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    """Garbage and truncation give fewer values, not an exception."""
    for message in parse_messages(data):
        assert isinstance(message, Message)
    assert isinstance(parse_attributes(data), dict)


@given(ATTRIBUTES, st.integers(0, 300))
def test_truncated_attributes_are_a_prefix(attributes: dict[int, bytes], cut: int) -> None:
    """Cutting attributes short only loses the last ones."""
    data = b"".join(build_attribute(kind, value) for kind, value in attributes.items())

    found = parse_attributes(data[:cut])
    assert list(attributes.items())[: len(found)] == list(found.items())


def test_several_messages_in_one_datagram() -> None:
    """Messages of odd length are padded, and found again in order."""
    data = build_message(16, 1, 7, b"abc") + build_message(17, 2, 8, b"")

    assert list(parse_messages(data)) == [Message(16, 1, 7, b"abc"), Message(17, 2, 8, b"")]


def test_a_nested_attribute_bears_its_flag() -> None:
    """Nested attributes are marked (NLA_F_NESTED) and hold their children."""
    assert build_nested(4, build_attribute(1, b"x")).hex() == "0c000480" + "0500010078000000"


def test_link_up_by_index() -> None:
    """RTM_NEWLINK with the index, IFF_UP set and only IFF_UP changed."""
    request = link_up(1)

    assert (request.kind, request.payload) == (16, struct.pack("=BxHiII", 0, 0, 1, 1, 1))


def test_link_up_by_name() -> None:
    """The name goes along as IFLA_IFNAME."""
    assert parse_attributes(link_up("eth0").payload[16:]) == {3: b"eth0\0"}


def test_add_address_is_what_ip_sends() -> None:
    """`ip addr add 198.18.0.1/32 dev lo`: family, prefix, scope, index, local and address."""
    request = add_address(1, ip_interface("198.18.0.1/32"))

    assert request.payload.hex() == "022000000100000008000200c612000108000100c6120001"


@pytest.mark.parametrize(
    ("text", "flags", "scope"),
    [("127.1.2.3/8", 0, 254), ("10.0.0.1/24", 0, 0), ("::1/128", 2, 254), ("fd00::1/64", 2, 0)],
)
def test_addresses_get_the_scope_ip_gives_them(text: str, flags: int, scope: int) -> None:
    """127/8 and ::1 are of scope host; IPv6 addresses skip duplicate detection."""
    payload = add_address(3, ip_interface(text)).payload

    assert struct.unpack_from("=BBI", payload, 2) == (flags, scope, 3)


def test_flags_above_a_byte_go_as_an_attribute() -> None:
    """IFA_F_NOPREFIXROUTE does not fit the header."""
    payload = add_address(1, ip_interface("fd00::1/128"), prefix_route=False).payload

    assert parse_attributes(payload[8:])[8] == struct.pack("=I", 0x202)


def test_delete_address_names_its_object() -> None:
    """The words of a failure say which address of which link."""
    request = delete_address(2, ip_interface("10.0.0.1/24"))

    assert (request.act, request.target) == ("delete address", "`10.0.0.1/24` from link 2")


def test_the_local_default_route() -> None:
    """A route of type local and scope host, without destination, in a table beyond 255."""
    request = add_route(
        ip_network("0.0.0.0/0"),
        device=1,
        source=IPv4Address("198.18.0.1"),
        kind="local",
        table=27746,
    )

    assert struct.unpack_from("=BBBBBBBBI", request.payload) == (2, 0, 0, 0, 0, 4, 254, 2, 0)
    assert parse_attributes(request.payload[12:]) == {
        15: struct.pack("=I", 27746),
        4: struct.pack("=I", 1),
        7: IPv4Address("198.18.0.1").packed,
    }


def test_a_route_by_a_gateway_is_global() -> None:
    """Scope global with a gateway, link without (rtnetlink(7), RT_SCOPE_*)."""
    network = ip_network("10.0.0.0/8")

    by_gateway = add_route(network, gateway=IPv4Address("192.0.2.1")).payload
    by_link = add_route(network, device=2).payload
    assert (by_gateway[6], by_link[6]) == (0, 253)


def test_a_rule_without_a_mark() -> None:
    """Mark 0 under a mask: packets that bear the bit are left out."""
    request = add_rule(6, table=7, priority=40000, incoming="lo", without_mark=1 << 28)

    assert parse_attributes(request.payload[12:]) == {
        6: struct.pack("=I", 40000),
        15: struct.pack("=I", 7),
        3: b"lo\0",
        10: struct.pack("=I", 0),
        16: struct.pack("=I", 1 << 28),
    }


def test_asking_for_a_route_names_the_whole_address() -> None:
    """All 128 bits of an IPv6 destination count."""
    payload = ask_route(IPv6Address("2001:db8::1")).payload

    assert (payload[1], payload[16:]) == (128, IPv6Address("2001:db8::1").packed)


def test_answers_are_read() -> None:
    """Links, addresses and routes as the kernel describes them."""
    link = struct.pack("=BxHiII", 0, 772, 1, 0x10049, 0)
    link += build_attribute(3, b"lo\0") + build_attribute(4, struct.pack("=I", 65536))
    address = struct.pack("=BBBBI", 2, 8, 0x80, 254, 1) + build_attribute(2, bytes([127, 0, 0, 1]))
    route = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 255, 0, 0, 2, 0)
    route += build_attribute(4, struct.pack("=I", 1)) + build_attribute(7, bytes([127, 0, 0, 1]))

    assert parse_link(link) == Link(1, "lo", True, True, True, 65536)
    assert parse_address(address) == AddressRecord(1, ip_interface("127.0.0.1/8"), "host")
    assert parse_route(route) == RouteAnswer("local", 1, ip_address("127.0.0.1"), None)


def test_an_address_with_a_peer_is_the_local_one() -> None:
    """IFA_LOCAL is one's own; IFA_ADDRESS would be the peer's."""
    payload = struct.pack("=BBBBI", 2, 32, 0, 0, 5)
    payload += build_attribute(1, bytes([10, 0, 0, 2])) + build_attribute(2, bytes([10, 0, 0, 1]))

    assert parse_address(payload).interface == ip_interface("10.0.0.1/32")


@pytest.mark.parametrize("capped", [True, False])
def test_the_kernels_words_are_found(capped: bool) -> None:
    """The text follows the request's header, or the whole request where it is not capped."""
    request = build_message(20, 5, 9, b"x" * 30)
    words = build_attribute(1, b"Invalid prefix length\0")
    echoed = request[:16] if capped else request
    payload = struct.pack("=i", -errno.EINVAL) + echoed + words
    flags = 0x200 | (0x100 if capped else 0)

    assert Message(ERROR, flags, 9, payload).error == (errno.EINVAL, "Invalid prefix length")


def test_only_errors_have_an_error() -> None:
    """An acknowledgement is errno 0; other messages have none."""
    assert [Message(DONE, 0, 1, bytes(4)).error, Message(ERROR, 0, 1, bytes(20)).error] == [
        None,
        (0, ""),
    ]


class Kernel:
    """A kernel of ours behind `transact`: keeps what was sent, answers with these errnos."""

    def __init__(self, *numbers: int, text: str = "") -> None:
        self.numbers = numbers
        self.text = text
        self.received: list[Message] = []
        self.answers: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Take requests; queue every failure, and the ack that was asked for."""
        self.received = list(parse_messages(data))
        for message, number in zip(self.received, self.numbers, strict=True):
            if number or message.flags & ACK:
                text = self.text if number else ""
                self.answers.append(refusal(message.sequence, number, text))

    def recv(self, size: int) -> bytes:
        """The next answer; silence is a failure of the test."""
        return self.answers.pop(0)


REQUESTS = [add_address(1, ip_interface("10.0.0.1/24")), link_up(1)]


def test_only_the_last_request_asks_for_an_ack() -> None:
    """One send, one answer: failures would be reported anyway."""
    kernel = Kernel(0, 0)
    transact(kernel, REQUESTS)  # type: ignore[arg-type]

    assert [message.flags & (REQUEST | ACK) for message in kernel.received] == [
        REQUEST,
        REQUEST | ACK,
    ]
    assert kernel.answers == []


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ((errno.EEXIST, 0), "cannot add address `10.0.0.1/24` to link 1: said so"),
        ((0, errno.ENODEV), "cannot bring up link `1`: said so"),
        ((errno.EEXIST, errno.ENODEV), "cannot add address `10.0.0.1/24` to link 1: said so"),
    ],
)
def test_the_first_failure_is_raised(numbers: tuple[int, ...], complaint: str) -> None:
    """Whichever request fails is named; all answers are taken off the socket first."""
    kernel = Kernel(*numbers, text="said so")
    with pytest.raises(KernelError) as caught:
        transact(kernel, REQUESTS)  # type: ignore[arg-type]

    assert caught.value.message == complaint
    assert kernel.answers == []


def test_a_kernel_error_is_a_host_error_with_words() -> None:
    """Act, object and the kernel's own cause; the errno stays readable for programs."""
    error = KernelError(
        "add address", "`10.0.0.1/33` to link 1", errno.EINVAL, "Invalid prefix length"
    )

    assert isinstance(error, HostError)
    assert error.message == "cannot add address `10.0.0.1/33` to link 1: Invalid prefix length"
    assert error.number == errno.EINVAL


def test_without_words_the_errno_speaks() -> None:
    """A kernel that says nothing is quoted by its errno, and EPERM has a remedy."""
    error = KernelError("bring up", "link `lo`", errno.EPERM)

    assert error.message == "cannot bring up link `lo`: operation not permitted"
    assert error.hint is not None and "CAP_NET_ADMIN" in error.hint
