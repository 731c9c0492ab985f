"""A TLS ClientHello to the two things a door asks of it: which server, which protocols.

Owns: the message's fields as far as the extensions server_name and ALPN.

Must never: negotiate, judge cipher suites, raise for anything a peer sends.

Example::

    parse_hello(body)           # TlsHello(server_name="shop.localhost", alpn=("h2", "http/1.1"))

Sources: RFC 8446, 4.1.2 (the message), RFC 6066, 3 (server_name), RFC 7301, 3.1 (ALPN).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_REGISTERED_NAME: Final = re.compile(r"[A-Za-z0-9._-]+\Z")
_SERVER_NAME: Final = 0
_ALPN: Final = 16


@dataclass(frozen=True, slots=True)
class TlsHello:
    """A ClientHello."""

    server_name: str | None
    """Lower-case, without trailing dot; None when the client sent none."""
    alpn: tuple[str, ...] = ()


def parse_registered_name(text: str) -> str | None:
    """A host name in lower case and without its trailing dot, None when it is malformed."""
    if not _REGISTERED_NAME.match(text):
        return None
    return text.lower().removesuffix(".") or None


class _Short(Exception):  # noqa: N818  (a signal within this module, not an error)
    """A field says it is longer than what holds it."""


class _Cursor:
    """Takes fields off bytes; raises _Short when there are too few."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise _Short
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Cursor:
        """The content of a field with its length in `size` bytes before it (RFC 8446, 3.4)."""
        return _Cursor(self.take(self.number(size)))

    @property
    def is_empty(self) -> bool:
        return self.position >= len(self.data)


def parse_hello(body: bytes) -> TlsHello | None:
    """A whole ClientHello without its handshake header; None when it is malformed."""
    hello = _Cursor(body)
    name: str | None = None
    alpn: tuple[str, ...] = ()
    seen: set[int] = set()
    try:
        hello.take(2 + 32)
        hello.vector(1)
        hello.vector(2)
        hello.vector(1)
        extensions = _Cursor(b"") if hello.is_empty else hello.vector(2)
        while not extensions.is_empty:
            kind = extensions.number(2)
            content = extensions.vector(2)
            if kind in seen:
                return None
            seen.add(kind)
            if kind == _SERVER_NAME:
                name = _read_server_name(content)
                if name is None:
                    return None
            elif kind == _ALPN:
                alpn = _read_alpn(content)
    except _Short:
        return None
    return TlsHello(name, alpn)


def _read_server_name(content: _Cursor) -> str | None:
    """The host name of a server_name extension (RFC 6066, 3), None when it is malformed."""
    names = content.vector(2)
    while not names.is_empty:
        kind = names.number(1)
        name = names.vector(2).data
        if kind == 0:
            return parse_registered_name(name.decode("ascii", "replace"))
    return None


def _read_alpn(content: _Cursor) -> tuple[str, ...]:
    """The protocols the client offers (RFC 7301, 3.1)."""
    protocols = content.vector(2)
    found = []
    while not protocols.is_empty:
        found.append(protocols.vector(1).data.decode("latin-1"))
    return tuple(found)
