"""Ten thousand connections through the front door: every byte checked, nothing left open.

Half go to the box's address, half to the shared door by name; each sends a body of its own and
checks what comes back by hash. The keeper's descriptors, memory and the server's count of
connections are compared before and after.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Sandbox, descriptors_of, until

pytestmark = [pytest.mark.system, pytest.mark.slow]

CONNECTIONS = 10_000
AT_ONCE = 200
WARM = 400
"""Connections before the first count: what is made once is not what leaks."""
PORT = 8000
POOL = random.Random(7).randbytes(1 << 20)
"""Bodies are cut out of this."""

SERVER = """
import asyncio, gc, hashlib, sys

class Hash(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
    def eof_received(self):
        head, gap, body = self.data.partition(b"\\r\\n\\r\\n")
        digest = hashlib.sha256(body).hexdigest().encode()
        self.transport.write(sys.argv[1].encode() + b" " + digest + b" " + body)
        return False

async def main():
    gc.freeze()
    server = await asyncio.get_running_loop().create_server(
        Hash, "127.0.0.1", 8000, backlog=4096)
    await server.serve_forever()

asyncio.run(main())
"""


class Client(asyncio.Protocol):
    """One connection: a request for a box, the end of the stream, and all that is answered."""

    def __init__(self, request: bytes, ended: asyncio.Future[bytes]) -> None:
        self._request = request
        self._ended = ended
        self._answer: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say everything, then half-close."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)
        transport.write_eof()

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self._answer.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Give what came, or why nothing did."""
        if self._ended.cancelled():
            return
        if error is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(b"".join(self._answer))


@pytest.fixture
def boxes(sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """Two boxes with the same server in each; their addresses by name."""
    names = ("shop", "fix-ui.shop")
    for name in names:
        sandbox.serve(sys.executable, "-c", SERVER, name, name=name, port=PORT)
    yield {name: sandbox.ok("address", name).strip() for name in names}


async def exchange(number: int, boxes: dict[str, str]) -> None:
    """One connection, by turns to each box, and by address and by name."""
    name = list(boxes)[number % 2]
    by_name = number % 4 >= 2
    start, size = number * 97 % 900_000, (1, 100, 1500, 9000, 40_000)[number % 5]
    body = POOL[start : start + size]
    head = f"POST /{number} HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n"
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bytes] = loop.create_future()
    await loop.create_connection(
        lambda: Client(head.encode() + body, ended), "127.0.0.1" if by_name else boxes[name], PORT
    )
    expected = f"{name} {hashlib.sha256(body).hexdigest()} ".encode() + body
    assert expected == await ended, f"connection {number} to {name}"


async def exchange_all(numbers: range, boxes: dict[str, str]) -> None:
    """Many connections, AT_ONCE of them at a time."""
    turns = iter(numbers)

    async def worker() -> None:
        for number in turns:
            await exchange(number, boxes)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


def resident(pid: int) -> int:
    """Bytes of memory a process holds (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_connections(sandbox: Sandbox, boxes: dict[str, str]) -> None:
    """All bytes arrive in the right box and back, and the keeper is afterwards as it was before."""
    pid = sandbox.keeper_pid()
    assert pid is not None
    asyncio.run(exchange_all(range(WARM), boxes))
    until(lambda: sandbox.json("keeper", "status")["relay"]["open"] == 0)
    before, memory = descriptors_of(pid), resident(pid)

    asyncio.run(exchange_all(range(CONNECTIONS), boxes))

    until(lambda: sandbox.json("keeper", "status")["relay"]["open"] == 0)
    status = sandbox.json("keeper", "status")
    assert (0, 0) == (status["relay"]["failed"], status["relay"]["refused"])
    until(lambda: descriptors_of(pid) <= before, what=f"{before} descriptors as before")
    assert resident(pid) - memory < 4 << 20
