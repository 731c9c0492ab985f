"""Asking the host's own name servers: whom, how often, which answer counts.

Owns: the list of servers as the host's resolv.conf has it now, one exchange over UDP or TCP, and
the race between servers: the next one is asked before the first has surely failed.
Must never: read what is asked beyond recognising the answer to it, remember answers.

Spoofed answers: a socket of its own per exchange (the kernel draws its port), connected, so that
only the server's packets come in; an id drawn anew; the question must come back (RFC 5452).

Example::

    response = await Upstream().ask(query)         # bytes with the query's id, or None
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from loopbox.wire.systemfiles import parse_resolv_conf

Value = TypeVar("Value")

TOTAL_SECONDS = 4.0
"""How long all servers together have: less than the 5 s after which glibc asks again."""
_PATIENCE = (0.4, 1.0)
"""Seconds until the next server is asked too: in the first round, in the second."""
_TCP_SECONDS = 3.0
_HEADER = 12
_GOOD_CODES = {0, 3}
"""NOERROR and NXDOMAIN end the race; SERVFAIL, REFUSED and others wait for something better."""


def question_end(message: bytes) -> int:
    """Where the one question of a message ends. Raises ValueError when there is none."""
    if len(message) < _HEADER or message[4:6] != b"\0\1":
        raise ValueError("not a message with one question")
    position = _HEADER
    while position < len(message):
        length = message[position]
        if length > 63:
            raise ValueError("compressed or bad label in a question")
        position += 1 + length
        if length == 0:
            break
    if position + 4 > len(message) or message[position - 1] != 0:
        raise ValueError("truncated question")
    return position + 4


def is_answer(response: bytes, query: bytes) -> bool:
    """Whether `response` answers `query`: id, response bit and question (case aside) match."""
    end = question_end(query)
    return (
        len(response) >= end
        and response[:2] == query[:2]
        and bool(response[2] & 0x80)
        and response[4:6] == b"\0\1"
        and response[_HEADER:end].lower() == query[_HEADER:end].lower()
    )


def is_truncated(message: bytes) -> bool:
    """Whether the TC bit is set."""
    return bool(message[2] & 0x02)


class Upstream:
    """The host's name servers. Lives on one event loop, in the host's network namespace."""

    def __init__(self, resolv_conf: Path = Path("/etc/resolv.conf"), *, port: int = 53) -> None:
        self._servers_of = FileView(resolv_conf, _read_servers)
        self._port = port

    def servers(self) -> tuple[str, ...]:
        """The addresses to ask, in order; the file is read again whenever it changed."""
        return self._servers_of.get()

    async def ask(self, query: bytes, *, stream: bool = False) -> bytes | None:
        """The best answer, with the query's own id and spelling; None when nobody answered.

        `stream`: a truncated answer is fetched again whole, over TCP. Raises ValueError for a
        query without exactly one question.
        """
        end = question_end(query)
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                best = await self._race(query, stream=stream)
        except TimeoutError:
            return None
        if best is None:
            return None
        return query[:2] + best[2:_HEADER] + query[_HEADER:end] + best[end:]

    async def _race(self, query: bytes, *, stream: bool) -> bytes | None:
        """The first good answer; else, when all have failed, the first other one."""
        running: set[asyncio.Task[bytes | None]] = set()
        fallback: bytes | None = None
        attempts = _attempts(self.servers())
        try:
            while True:
                patience = None
                if (attempt := next(attempts, None)) is not None:
                    server, patience = attempt
                    asking = self._exchange(query, server, stream=stream)
                    running.add(asyncio.create_task(asking, name=f"ask {server}"))
                elif not running:
                    return fallback
                done, running = await asyncio.wait(
                    running, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                for response in (task.result() for task in done):
                    if response is not None and response[3] & 0xF in _GOOD_CODES:
                        return response
                    fallback = fallback or response
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _exchange(self, query: bytes, server: str, *, stream: bool) -> bytes | None:
        """One server's answer, or None when it cannot be asked or answers nonsense."""
        fresh = secrets.token_bytes(2) + query[2:]
        try:
            family, _, _, _, address = socket.getaddrinfo(
                server, self._port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )[0]
            response = await _ask_by_udp(fresh, family, address)
            if stream and is_truncated(response):
                with suppress(OSError, TimeoutError, EOFError):
                    async with asyncio.timeout(_TCP_SECONDS):
                        return await _ask_by_tcp(fresh, server, self._port)
        except OSError:
            return None
        return response


def _attempts(servers: Sequence[str]) -> Iterator[tuple[str, float]]:
    """(server, seconds of patience before the next is asked too), in order."""
    for patience in _PATIENCE:
        for server in servers:
            yield server, patience


async def _ask_by_udp(query: bytes, family: int, address: tuple[object, ...]) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect(address)
        await loop.sock_sendall(asking, query)
        while True:
            response = await loop.sock_recv(asking, 65535)
            if is_answer(response, query):
                return response


async def _ask_by_tcp(query: bytes, server: str, port: int) -> bytes | None:
    reader, writer = await asyncio.open_connection(server, port)
    try:
        writer.write(struct.pack(">H", len(query)) + query)
        await writer.drain()
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        response = await reader.readexactly(length)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return response if is_answer(response, query) else None


class FileView(Generic[Value]):
    """What a small file says, read again when it changed (replaced, or written in place)."""

    def __init__(self, path: Path, read: Callable[[bytes], Value]) -> None:
        self._path = path
        self._read = read
        self._seen: tuple[int, ...] | None = ()
        self._value: Value

    def get(self) -> Value:
        """The value now; a missing or unreadable file reads as an empty one."""
        try:
            status = os.stat(self._path)
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._value = self._read(self._path.read_bytes())
                self._seen = seen
        except OSError:
            if self._seen is not None:
                self._value, self._seen = self._read(b""), None
        return self._value


def _read_servers(data: bytes) -> tuple[str, ...]:
    """As resolv.conf(5): no server named means the local one."""
    return parse_resolv_conf(data).nameservers or ("127.0.0.1",)
