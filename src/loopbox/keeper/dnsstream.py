"""DNS over TCP: queries one after the other, each with its length before it (RFC 1035, 4.2.2).

Owns: one client's connection from its first query to its end, and its deadlines.
Must never: know what an answer says.

Example::

    await serve_queries(client, resolver_answer)
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

IDLE_SECONDS = 10.0
"""An idle connection is left (RFC 7766 section 6.2.3 leaves the time to the server)."""


async def serve_queries(
    client: socket.socket, answer: Callable[[bytes], Awaitable[bytes | None]]
) -> None:
    """Answer until the client ends, is silent for too long, or asks what deserves no answer.

    `client` is non-blocking and borrowed: whoever called closes it.
    """
    loop = asyncio.get_running_loop()
    try:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                (length,) = struct.unpack(">H", await _receive(client, 2))
                query = await _receive(client, length)
            response = await answer(query)
            if response is None:
                return
            async with asyncio.timeout(IDLE_SECONDS):
                await loop.sock_sendall(client, struct.pack(">H", len(response)) + response)
    except (OSError, EOFError, TimeoutError):
        pass


async def _receive(client: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes. Raises EOFError when the stream ends before."""
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < length:
        piece = await loop.sock_recv(client, length - len(received))
        if not piece:
            raise EOFError
        received += piece
    return received
