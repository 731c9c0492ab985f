"""The control protocol between a client and its keeper, as bytes.

Owns: framing and fields. A message is a 4-byte big-endian length and that many bytes of
`key=value` fields joined by NUL. No field can hold a NUL because nothing that is sent can: paths,
arguments, environment and JSON text are all free of it. Anything structured travels as JSON text
in the field `json`; the hot path needs none, so the client of `loopbox run` starts without
importing a codec (json alone costs 4 ms).
Must never: do I/O, import beyond builtins, know what a verb means.

A request has `verb`, `protocol` and `version`; a reply has `ok=1`, or `error` (a code), `message`,
`hint` and `exit`. Descriptors ride along a reply by SCM_RIGHTS, named in the field `fds`.

Example::

    build({"verb": "enter", "name": "shop"})
    feed(b"...")  ->  ({"verb": "enter", ...}, rest)
"""

from __future__ import annotations

PROTOCOL = "1"
"""Raised when a client and a keeper that differ in it could misunderstand each other."""

SOCKET_NAME = "keeper.sock"

LIMIT = 64 * 1024 * 1024
"""Longest message accepted, in bytes: the listing of 5,000 boxes takes about 5 MiB."""

_HEADER = 4


class FrameError(ValueError):
    """The bytes are no message of this protocol; the connection is of no further use."""


def build(fields: dict[str, str]) -> bytes:
    """One message. Raises ValueError for a key with `=` or any part with NUL."""
    parts = []
    for key, value in fields.items():
        if "=" in key or "\0" in key or "\0" in value:
            raise ValueError(f"field `{key[:40]}` cannot be sent: it holds NUL or a bad key")
        parts.append(f"{key}={value}")
    payload = "\0".join(parts).encode("utf-8", "surrogateescape")
    if len(payload) > LIMIT:
        raise ValueError(f"message of {len(payload)} bytes is over the limit of {LIMIT}")
    return len(payload).to_bytes(_HEADER, "big") + payload


def parse(payload: bytes) -> dict[str, str]:
    """The fields of one message's payload. Raises FrameError on bytes that are no fields."""
    if not payload:
        return {}
    fields = {}
    for part in payload.decode("utf-8", "surrogateescape").split("\0"):
        key, separator, value = part.partition("=")
        if not separator or not key:
            raise FrameError("a field without a key")
        fields[key] = value
    return fields


def feed(data: bytes) -> tuple[dict[str, str] | None, bytes]:
    """The first whole message in `data` and what follows it; (None, data) while it is short.

    Raises FrameError when the announced length is beyond LIMIT.
    """
    if len(data) < _HEADER:
        return None, data
    length = int.from_bytes(data[:_HEADER], "big")
    if length > LIMIT:
        raise FrameError(f"a message of {length} bytes is announced, the limit is {LIMIT}")
    end = _HEADER + length
    if len(data) < end:
        return None, data
    return parse(data[_HEADER:end]), data[end:]
