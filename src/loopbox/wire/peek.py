"""The first bytes of a connection to a value: for which host are they meant?

Owns: telling HTTP/1 from TLS by their first bytes, the head of an HTTP/1 request (RFC 9112), and
putting a ClientHello together from TLS records (what is in it: `wire.clienthello`).

Must never: do I/O, change or drop a byte (what was fed is passed on as it came), read past the
head, raise for anything a peer sends.

Feed bytes as they arrive, get a verdict or `NeedMore`:

    reader = HeadReader()
    reader.feed(b"GET / HTTP/1.1\\r\\nHost: sh")         # NeedMore()
    reader.feed(b"op.localhost\\r\\n\\r\\n")              # HttpHead(host="shop.localhost", …)
    reader.buffered                                     # all of it, for the server in the box

Rule 1: a verdict depends on the bytes alone and never on how they were cut. Every check therefore
runs in the order of the bytes it looks at, and the limit is a position, not a size of a buffer.
Rule 2: a verdict is final: what is fed later is only kept.
Rule 3: each byte is looked at a bounded number of times, so that one byte a second costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from loopbox.wire.clienthello import TlsHello, parse_hello, parse_registered_name

HEAD_LIMIT: Final = 65536
"""Bytes in which a head must end."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The bytes so far decide nothing."""


@dataclass(frozen=True, slots=True)
class HttpHead:
    """The head of an HTTP/1 request that names exactly one host."""

    method: str
    target: str
    """As sent; an absolute-form target has given `host` and `port` (RFC 9112, 3.2.2)."""
    version: str
    """`1.0` or `1.1`."""
    host: str
    """Lower-case, without port, brackets and trailing dot."""
    port: int | None
    """As the client wrote it, None when it did not."""
    accept: str = ""
    """All Accept fields, with commas between."""
    hops: int = 0
    """How many proxies say they passed it on (Via, Forwarded or X-Forwarded-For: the longest)."""


@dataclass(frozen=True, slots=True)
class HttpPreface:
    """A client that begins HTTP/2 without TLS (RFC 9113, 3.4): its host cannot be read here."""


@dataclass(frozen=True, slots=True)
class BadHead:
    """Bytes that no request can begin with."""

    status: int
    """The HTTP status that says so; for TLS the alert is what counts."""
    reason: str
    is_tls: bool = False


Verdict = NeedMore | HttpHead | HttpPreface | TlsHello | BadHead

_NEED_MORE: Final = NeedMore()
_NOT_HTTP: Final = BadHead(400, "this is neither HTTP nor TLS")
_CONTROL: Final = BadHead(400, "a control character stands in the head")
_TOO_LONG: Final = BadHead(431, "the head is too long")
_FOLDED: Final = BadHead(400, "a header line begins with a blank")
_BAD_FIELD: Final = BadHead(400, "a header line is malformed")
_BAD_REQUEST_LINE: Final = BadHead(400, "the request line is malformed")
_BAD_VERSION: Final = BadHead(505, "this HTTP version is not spoken here")
_NO_HOST: Final = BadHead(400, "the request names no host")
_MANY_HOSTS: Final = BadHead(400, "the request has more than one Host")
_BAD_HOST: Final = BadHead(400, "the Host is malformed")
_CONNECT: Final = BadHead(400, "this door is no proxy")
_BAD_RECORD: Final = BadHead(400, "a TLS record is malformed", is_tls=True)
_BAD_HELLO: Final = BadHead(400, "the ClientHello is malformed", is_tls=True)
_LONG_HELLO: Final = BadHead(431, "the ClientHello is too long", is_tls=True)

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_METHOD: Final = re.compile(_TOKEN + rb"{1,32} ")
_METHOD_BEGUN: Final = re.compile(_TOKEN + rb"{0,32}\Z")
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb"+) ([!-~\x80-\xff]+) HTTP/(\d\.\d)\Z")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"+):[ \t]*(.*?)[ \t]*\Z", re.DOTALL)
# A bare CR is refused, one at the very end may still be followed by its LF (RFC 9112, 2.2).
_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])")
# The short way for what nearly every client sends: a flawless head in one piece. What does not
# match goes line by line, and what matches gets the same verdict there.
_WHOLE_HEAD: Final = re.compile(
    rb"(" + _TOKEN + rb"{1,32}) ([!-~\x80-\xff]+) HTTP/(1\.[01])\r\n"
    rb"(?:" + _TOKEN + rb"+:[\t -~\x80-\xff]*\r\n)*\r\n"
)
_WANTED_FIELD: Final = re.compile(
    rb"\n(host|accept|via|forwarded|x-forwarded-for):[ \t]*([^\r]*?)[ \t]*(?=\r)", re.IGNORECASE
)
_ABSOLUTE_FORM: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_RECORD_LIMIT: Final = 16384


class HeadReader:
    """Reads one head. One instance per connection; it holds at most what was fed."""

    __slots__ = (
        "_begin",
        "_buffer",
        "_checked",
        "_fields",
        "_hello",
        "_limit",
        "_needed",
        "_verdict",
    )

    def __init__(self, *, limit: int = HEAD_LIMIT) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._verdict: Verdict = _NEED_MORE
        self._begin = 0
        """Where the line, or the TLS record, begins that is not yet complete."""
        self._checked = 0
        """Up to where the incomplete line was searched."""
        self._needed = 0
        """TLS: no verdict is possible before so many bytes."""
        self._fields: list[bytes] = []
        """The request line and the complete header lines."""
        self._hello = bytearray()
        """The content of the complete TLS records."""

    @property
    def buffered(self) -> bytes:
        """Everything that was fed."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Verdict:
        """The verdict after these further bytes; b"" asks for the present one. Never raises."""
        self._buffer += data
        if self._verdict is _NEED_MORE and self._buffer:
            if self._buffer[0] == _HANDSHAKE:
                if len(self._buffer) >= self._needed:
                    self._verdict = self._read_tls()
            else:
                self._verdict = self._read_http()
        return self._verdict

    # -- HTTP/1 -------------------------------------------------------------------------------

    def _read_http(self) -> Verdict:
        buffer = self._buffer
        if not self._checked:
            whole = _WHOLE_HEAD.match(buffer, 0, self._limit)
            if whole is not None:
                fields = _WANTED_FIELD.findall(buffer, whole.end(3), whole.end())
                return _judge_head(whole.groups(), fields)
        while True:
            end = buffer.find(b"\n", max(self._begin, self._checked), self._limit)
            stop = end + 1 if end >= 0 else min(len(buffer), self._limit)
            fault = self._check_bytes(stop, is_complete=end >= 0)
            if fault is not None:
                return fault
            if end < 0:
                self._checked = stop
                return _TOO_LONG if len(buffer) >= self._limit else _NEED_MORE
            line = bytes(buffer[self._begin : end]).removesuffix(b"\r")
            self._begin = end + 1
            if line:
                self._fields.append(line)
                verdict = self._check_line(line)
                if verdict is not None:
                    return verdict
            elif self._fields:
                return _read_head(self._fields)

    def _check_bytes(self, stop: int, *, is_complete: bool) -> BadHead | None:
        """What can be refused in the current line up to `stop`, even before the line's end."""
        if not self._fields:
            begun = bytes(self._buffer[self._begin : min(stop, self._begin + 33)])
            is_blank = begun in (b"\r\n", b"\n") if is_complete else begun == b"\r"
            if not is_blank and not _METHOD.match(begun) and not _METHOD_BEGUN.match(begun):
                return _NOT_HTTP
        # One back: a CR at the former end is judged by the byte that follows it.
        begin = max(self._begin, self._checked - 1)
        return _CONTROL if _FORBIDDEN.search(self._buffer, begin, stop) else None

    def _check_line(self, line: bytes) -> BadHead | HttpPreface | None:
        """What a complete line alone decides."""
        if len(self._fields) > 1:
            if line[0] in b" \t":
                return _FOLDED
            return None if _FIELD.match(line) else _BAD_FIELD
        if line == b"PRI * HTTP/2.0":
            return HttpPreface()
        match = _REQUEST_LINE.match(line)
        if match is None:
            return _BAD_REQUEST_LINE
        return None if match[3] in (b"1.0", b"1.1") else _BAD_VERSION

    # -- TLS ----------------------------------------------------------------------------------

    def _read_tls(self) -> Verdict:
        """Puts the content of the records together until the ClientHello is whole."""
        verdict: Verdict | None = None
        while verdict is None:
            header = bytes(self._buffer[self._begin : self._begin + _RECORD_HEADER])
            verdict = self._check_record(header)
            if verdict is not None:
                break
            content_begin = self._begin + _RECORD_HEADER
            end = content_begin + int.from_bytes(header[3:5])
            content = bytes(self._buffer[content_begin:end])
            verdict = self._check_hello(content)
            if len(self._buffer) < end:
                return self._wait_for_tls(content, end) if verdict is None else verdict
            self._hello += content
            self._begin = end
        return verdict

    def _check_record(self, header: bytes) -> Verdict | None:
        """What a record's header decides, None when its content must be read."""
        if not _is_record_begun(header):
            return _BAD_RECORD
        if len(header) < _RECORD_HEADER:
            return _NEED_MORE
        length = int.from_bytes(header[3:5])
        if not 0 < length <= _RECORD_LIMIT:
            return _BAD_RECORD
        too_long = self._begin + _RECORD_HEADER + length > self._limit
        return _LONG_HELLO if too_long else None

    def _check_hello(self, content: bytes) -> Verdict | None:
        """What the complete records and this further content decide, None when nothing."""
        begun = bytes(self._hello[:4]) + content[:4]
        if begun and begun[0] != _CLIENT_HELLO:
            return _BAD_HELLO
        if len(begun) < 4:
            return None
        size = int.from_bytes(begun[1:4]) + 4
        if size > self._limit:
            return _LONG_HELLO
        if len(self._hello) + len(content) < size:
            return None
        return parse_hello(bytes(self._hello + content)[4:size]) or _BAD_HELLO

    def _wait_for_tls(self, content: bytes, record_end: int) -> NeedMore:
        """Notes before how many bytes it is useless to look at this record again."""
        begun = bytes(self._hello[:4]) + content[:4]
        if len(begun) >= 4:
            rest = int.from_bytes(begun[1:4]) + 4 - len(self._hello) - len(content)
            self._needed = min(record_end, len(self._buffer) + rest)
        return _NEED_MORE


def _is_record_begun(header: bytes | bytearray) -> bool:
    """Whether these may be the first bytes of a handshake record of TLS 1.0 to 1.3."""
    return (
        (len(header) < 1 or header[0] == _HANDSHAKE)
        and (len(header) < 2 or header[1] == 3)
        and (len(header) < 3 or header[2] <= 4)
    )


def _read_head(lines: list[bytes]) -> HttpHead | BadHead:
    """A complete head, its lines already checked one by one, as a value."""
    request = _REQUEST_LINE.match(lines[0])
    assert request is not None
    fields = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields.append((name, value.strip(b" \t")))
    return _judge_head(request.groups(), fields)


def _judge_head(
    request: Sequence[bytes], fields: Iterable[tuple[bytes, bytes]]
) -> HttpHead | BadHead:
    """Method, target, version and well-formed fields (those of `_WANTED` at least) as a value."""
    method, target, version = (part.decode("latin-1") for part in request)
    if method == "CONNECT":
        return _CONNECT
    wanted: dict[bytes, list[str]] = {}
    for name, value in fields:
        key = name.lower()
        if key in _WANTED:
            wanted.setdefault(key, []).append(value.decode("latin-1"))
    hosts = wanted.get(b"host", ())
    if len(hosts) != 1:
        return _MANY_HOSTS if hosts else _NO_HOST
    authority = parse_authority(hosts[0])
    absolute = _ABSOLUTE_FORM.match(target)
    if absolute is not None and authority is not None:
        authority = parse_authority(absolute[1])
    if authority is None:
        return _BAD_HOST if hosts[0] else _NO_HOST
    traces = [sum(v.count(",") + 1 for v in wanted[key]) for key in _HOP_FIELDS if key in wanted]
    return HttpHead(
        method=method,
        target=target,
        version=version,
        host=authority[0],
        port=authority[1],
        accept=", ".join(wanted.get(b"accept", ())),
        hops=max(traces, default=0),
    )


_HOP_FIELDS: Final = (b"via", b"forwarded", b"x-forwarded-for")
_WANTED: Final = frozenset({b"host", b"accept", *_HOP_FIELDS})


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """`HOST[:PORT]` as lower-case host and port, None when it is malformed (RFC 9110, 7.2)."""
    is_literal = text.startswith("[")
    inside, _, rest = text[1:].partition("]") if is_literal else text.partition(":")
    host = _parse_literal(inside) if is_literal else parse_registered_name(inside)
    if is_literal and rest and not rest.startswith(":"):
        return None
    port_text = rest.removeprefix(":") if is_literal else rest
    if host is None or (is_literal and "]" not in text):
        return None
    if not port_text:
        return host, None
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    return (host, int(port_text)) if is_number and 0 < int(port_text) < 65536 else None


def _parse_literal(text: str) -> str | None:
    try:
        return None if "%" in text else str(IPv6Address(text))
    except ValueError:
        return None
