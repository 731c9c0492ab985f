"""Last words to a client: an answer that really arrives, then the end of the connection.

Owns: clients that were answered, until they have read it. Closing over input that was not read
sends a reset, which can overtake the answer; so our side is shut, and what the client still sends
is thrown away until it ends too, within bounds (RFC 9112, 9.6).

Must never: wait for long, keep much, say more than it was given.

Example::

    farewells = Farewells(loop)
    farewells.say(connection, b"HTTP/1.1 404 Not Found\\r\\n\\r\\n")     # takes the socket over
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Final

LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 1 << 20
"""Thrown away at most; who sends more is reset."""

CLIENT_LIMIT: Final = 1024
"""Answered clients that have not ended; the oldest gives way."""

_READ: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Leaving:
    """A client that was answered."""

    socket: socket.socket
    deadline: float
    thrown_away: int = 0


class Farewells:
    """All answered clients that have not ended yet. Lives in the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._leaving: dict[_Leaving, None] = {}
        """In the order of their deadlines."""
        self._timer: asyncio.TimerHandle | None = None

    def say(self, connection: socket.socket, answer: bytes) -> None:
        """Send the answer (what the socket's buffer takes of it) and end; owns the socket."""
        try:
            connection.send(answer)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            connection.close()
            return
        while len(self._leaving) >= CLIENT_LIMIT:
            self._end(next(iter(self._leaving)), reset=True)
        leaving = _Leaving(connection, self._loop.time() + LINGER_SECONDS)
        self._leaving[leaving] = None
        self._loop.add_reader(connection.fileno(), self._throw_away, leaving)
        if self._timer is None:
            self._timer = self._loop.call_at(leaving.deadline, self._check_deadlines)

    def close(self) -> None:
        """Reset those that are left."""
        for leaving in list(self._leaving):
            self._end(leaving, reset=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _throw_away(self, leaving: _Leaving) -> None:
        try:
            data = leaving.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        leaving.thrown_away += len(data)
        if not data:
            self._end(leaving)
        elif leaving.thrown_away > LINGER_BYTES:
            self._end(leaving, reset=True)

    def _check_deadlines(self) -> None:
        self._timer = None
        now = self._loop.time()
        for leaving in list(self._leaving):
            if leaving.deadline > now:
                self._timer = self._loop.call_at(leaving.deadline, self._check_deadlines)
                return
            self._end(leaving)

    def _end(self, leaving: _Leaving, *, reset: bool = False) -> None:
        del self._leaving[leaving]
        self._loop.remove_reader(leaving.socket.fileno())
        if reset:
            close_with_reset(leaving.socket)
        else:
            leaving.socket.close()


def close_with_reset(connection: socket.socket) -> None:
    """Close so that the peer sees a reset and nothing lingers (SO_LINGER with 0 s)."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    connection.close()
