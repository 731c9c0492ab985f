"""Heads of HTTP and TLS: fed whole, cut anywhere, broken in every way."""

from __future__ import annotations

import itertools
import ssl
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopbox.wire import peek
from loopbox.wire.clienthello import TlsHello
from loopbox.wire.peek import BadHead, HeadReader, HttpHead, HttpPreface, NeedMore

GET = b"GET / HTTP/1.1\r\nHost: shop.localhost:3000\r\nAccept: text/html\r\n\r\n"


def client_hello(name: str | None, *, alpn: tuple[str, ...] = ()) -> bytes:
    """A ClientHello of the local TLS library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


HELLO = client_hello("Shop.localhost", alpn=("h2", "http/1.1"))


def hello_with(extensions: bytes) -> bytes:
    """A minimal ClientHello record with these extensions."""
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def server_name(name: bytes) -> bytes:
    """A server_name extension."""
    entry = b"\0" + struct.pack("!H", len(name)) + name
    content = struct.pack("!H", len(entry)) + entry
    return struct.pack("!HH", 0, len(content)) + content


def refragmented(record: bytes, size: int) -> bytes:
    """The same handshake bytes in records of `size` bytes."""
    content = record[5:]
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(p)) + p for p in pieces)


def verdict(data: bytes, *, limit: int = peek.HEAD_LIMIT) -> peek.Verdict:
    """The verdict on bytes that came at once."""
    return HeadReader(limit=limit).feed(data)


def verdict_bytewise(data: bytes, *, limit: int = peek.HEAD_LIMIT) -> peek.Verdict:
    """The verdict on bytes that came one by one."""
    reader = HeadReader(limit=limit)
    for value in data:
        reader.feed(bytes([value]))
    assert reader.buffered == data
    return reader.feed(b"")


def test_plain_request() -> None:
    """A browser's request."""
    assert HttpHead("GET", "/", "1.1", "shop.localhost", 3000, accept="text/html") == verdict(GET)


@pytest.mark.parametrize(
    ("data", "host", "port"),
    [
        (b"GET / HTTP/1.1\nHost: a\n\n", "a", None),
        (b"\r\n\r\nGET / HTTP/1.0\r\nhOST:A.B.:80\t\r\n\r\nbody\0", "a.b", 80),
        (b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "::1", 8000),
        (b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "::1", None),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:\r\n\r\n", "127.0.0.1", None),
        (b"GET http://b.localhost:81/x HTTP/1.1\r\nHost: a\r\n\r\n", "b.localhost", 81),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX: \xff\t\r\n\r\n", "a", None),
    ],
)
def test_hosts_as_clients_write_them(data: bytes, host: str, port: int | None) -> None:
    """Case, ports, blanks, trailing dots, IPv6, absolute targets, bare line feeds."""
    found = verdict(data)

    assert isinstance(found, HttpHead)
    assert (host, port) == (found.host, found.port)


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"\0\0\0\x08\x04\xd2\x16\x2f", 400, "neither"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400, "neither"),
        (b"A" * 40, 400, "neither"),
        (b"GET\r\n", 400, "neither"),
        (b"\rGET", 400, "neither"),
        (b" GET / HTTP/1.1\r\n", 400, "neither"),
        (b"GET /\r\n", 400, "request line"),
        (b"GET / x HTTP/1.1\r\n", 400, "request line"),
        (b"GET /\tx HTTP/1.1\r\n", 400, "request line"),
        (b"GET / HTTP/3.0\r\n", 505, "version"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "names no host"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "names no host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "more than one"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, "more than one"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n", 400, "header line is malformed"),
        (b"GET / HTTP/1.1\r\n: a\r\n", 400, "header line is malformed"),
        (b"GET / HTTP/1.1\r\nnonsense\r\n", 400, "header line is malformed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n", 400, "begins with a blank"),
        (b"GET / HTTP/1.1\r\nHost: a\0", 400, "control"),
        (b"GET / HTTP/1.1\r\nHost: a\rX", 400, "control"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400, "Host is malformed"),
        (b"GET / HTTP/1.1\r\nHost: .\r\n\r\n", 400, "Host is malformed"),
        (b"GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Host is malformed"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400, "no proxy"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431, "too long"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "too long"),
        (b"\r\n" * 40_000 + GET, 431, "too long"),
    ],
)
def test_bad_heads_are_refused_as_soon_as_they_are_seen(
    data: bytes, status: int, word: str
) -> None:
    """Each kind of junk has its status and its reason, before the peer has sent all of it."""
    found = verdict(data)

    assert isinstance(found, BadHead)
    assert (status, True) == (found.status, word in found.reason)


def test_head_that_ends_exactly_at_the_limit_is_taken() -> None:
    """The limit is inclusive, and one byte more is too long."""
    assert isinstance(verdict(GET, limit=len(GET)), HttpHead)
    assert verdict(GET, limit=len(GET) - 1) == BadHead(431, "the head is too long")


def test_http2_without_tls_is_recognised() -> None:
    """A client with prior knowledge of HTTP/2."""
    assert verdict(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0") == HttpPreface()


def test_proxies_on_the_way_are_counted() -> None:
    """The longest of the three kinds of trace counts."""
    data = (
        b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1.1 a, 1.1 b\r\nX-Forwarded-For: 1\r\n"
        b"Via: 1.1 c\r\n\r\n"
    )

    found = verdict(data)

    assert isinstance(found, HttpHead)
    assert found.hops == 3


def test_body_after_the_head_is_kept_and_not_judged() -> None:
    """What follows the head is nobody's business here."""
    reader = HeadReader()
    found = reader.feed(GET + b"\0\xff")
    reader.feed(b"\n more")

    assert isinstance(found, HttpHead)
    assert found is reader.feed(b"")
    assert reader.buffered == GET + b"\0\xff\n more"


def test_real_client_hello() -> None:
    """The name and protocols that the local TLS library sends."""
    assert TlsHello("shop.localhost", ("h2", "http/1.1")) == verdict(HELLO)


def test_client_hello_without_a_name() -> None:
    """An address as host sends no name."""
    assert TlsHello(None) == verdict(client_hello(None))


@pytest.mark.parametrize("size", [1, 3, 4, 50, 100_000])
def test_client_hello_across_records(size: int) -> None:
    """A ClientHello may be spread over many records."""
    data = refragmented(HELLO, size)

    assert TlsHello("shop.localhost", ("h2", "http/1.1")) == verdict(data)
    assert TlsHello("shop.localhost", ("h2", "http/1.1")) == verdict_bytewise(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x16\x02", "record"),
        (b"\x16\x03\x09", "record"),
        (b"\x16\x03\x01\0\0", "record"),
        (b"\x16\x03\x01\xff\xff", "record"),
        (b"\x16\x03\x01\0\x05\x02", "ClientHello is malformed"),
        (b"\x16\x03\x01\0\x05\x01\x7f\0\0", "too long"),
        (b"\x16\x03\x01\0\x01\x01\x17\x03\x03", "record"),
        (b"\x16\x03\x01\0\x04\x01\0\0\0", "ClientHello is malformed"),
        (hello_with(b"\0\0\0\x09\0"), "ClientHello is malformed"),
        (hello_with(server_name(b"a b")), "ClientHello is malformed"),
        (hello_with(server_name(b"\xff")), "ClientHello is malformed"),
        (hello_with(server_name(b"")), "ClientHello is malformed"),
        (hello_with(server_name(b"a") * 2), "ClientHello is malformed"),
        (hello_with(server_name(b"a") + b"\0\x10\0\x03\0\x09a"), "ClientHello is malformed"),
    ],
)
def test_bad_tls_is_refused(data: bytes, word: str) -> None:
    """Records and hellos that cannot be are told from those that are only incomplete."""
    found = verdict(data)

    assert isinstance(found, BadHead)
    assert (found.is_tls, word in found.reason) == (True, True)


def test_endless_hello_is_too_long() -> None:
    """Records that never end the hello stop at the limit."""
    data = refragmented(b"\x16\x03\x01\0\0" + b"\1\0\xff\0" + bytes(70_000), 100)

    assert verdict(data) == BadHead(431, "the ClientHello is too long", is_tls=True)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """The data with a few bytes replaced, inserted or removed."""

    def apply(edits: list[tuple[int, bytes, int]]) -> bytes:
        changed = bytearray(data)
        for place, new, removed in edits:
            at = place % (len(changed) + 1)
            changed[at : at + removed] = new
        return bytes(changed)

    edit = st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3))
    return st.lists(edit, max_size=4).map(apply)


pieces = st.sampled_from(
    [
        b"GET ",
        b"/ ",
        b"HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b"Host: a",
        b": ",
        b" ",
        b"\t",
        b"\0",
        b"X",
    ]
)
inputs = st.one_of(
    st.binary(max_size=80),
    st.lists(pieces, max_size=14).map(b"".join),
    mutated(GET),
    mutated(HELLO),
    mutated(refragmented(HELLO, 40)),
    mutated(hello_with(server_name(b"shop.localhost"))),
)


@settings(max_examples=300)
@given(inputs, st.sampled_from([20, 60, 65536]), st.lists(st.integers(0, 600), max_size=5))
@example(b"GET\x01 /", 65536, [3])
@example(b"\r\n\rG", 65536, [3])
def test_verdict_does_not_depend_on_the_cuts(data: bytes, limit: int, cuts: list[int]) -> None:
    """However the bytes are cut, the verdict is that of all bytes at once, and nothing raises."""
    expected = verdict(data, limit=limit)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    reader = HeadReader(limit=limit)
    for begin, end in itertools.pairwise(places):
        reader.feed(data[begin:end])

    assert expected == reader.feed(b"")
    assert expected == verdict_bytewise(data, limit=limit)


@given(st.integers(0, len(GET) - 1))
def test_a_beginning_of_a_head_needs_more(cut: int) -> None:
    """No proper beginning of a good head is a verdict."""
    assert isinstance(verdict(GET[:cut]), NeedMore)


@given(st.integers(0, len(HELLO) - 1))
def test_a_beginning_of_a_hello_needs_more(cut: int) -> None:
    """No proper beginning of a good ClientHello is a verdict."""
    assert isinstance(verdict(HELLO[:cut]), NeedMore)


def test_one_byte_at_a_time_is_cheap() -> None:
    """64 KiB of header byte by byte is looked at a bounded number of times, not each time anew."""
    data = b"GET / HTTP/1.1\r\nX: " + b"a" * 65_000
    reader = HeadReader()
    for value in data:
        reader.feed(bytes([value]))

    assert isinstance(reader.feed(b""), NeedMore)
