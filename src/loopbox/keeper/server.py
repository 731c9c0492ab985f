"""The control socket: accepts this user's clients, reads requests, sends replies.

Owns: the listening socket in the runtime directory, one task per connection, and passing
descriptors along. Who connects is checked by SO_PEERCRED (unix(7)); who differs in protocol is
told so in words.
Must never: know what a verb does (`verbs` does), or let one connection's failure reach another.

Example::

    server = ControlServer(directory_fd, answer=verbs.answer)
    server.start()
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from loopbox import __version__
from loopbox.errors import KeeperError, LoopboxError
from loopbox.wire.control import PROTOCOL, SOCKET_NAME, FrameError, build, feed

log = logging.getLogger("loopbox.control")

_BACKLOG = 4096
_READ = 65536
_LONGEST_REQUEST = 1 << 20
"""Bytes; thousands of names fit. Only replies are longer."""
_FULL_PAUSE = 0.2
"""Seconds without accepting when this process can open no more descriptors."""
_ANY_VERSION = ("status", "stop")
"""Verbs that a client of another version may use: how else would it end this keeper."""


@dataclass(slots=True)
class Client:
    """Who asks. `ended` callbacks run when the connection closes, however it does."""

    pid: int
    connection: socket.socket
    ended: list[Callable[[], None]] = field(default_factory=list)

    def is_gone(self) -> bool:
        """Whether it has closed its end (its process has ended, or it waits no longer)."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: plain fields, a JSON document, descriptors (borrowed, by name)."""

    fields: dict[str, str] = field(default_factory=dict)
    document: Any = None
    descriptors: dict[str, int] = field(default_factory=dict)
    release: tuple[int, ...] = ()
    """Descriptors to close once sent."""


Answer = Callable[[Client, dict[str, str]], Awaitable[Reply]]


class ControlServer:
    """Serves the control protocol until closed."""

    def __init__(self, directory: int, *, answer: Answer) -> None:
        self._directory = directory
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._inode = 0
        self.idle_since = self._loop.time()
        """When the last connection ended, on the loop's clock."""

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._tasks)

    def start(self) -> None:
        """Put the socket in its place (the caller holds the keeper's lock) and serve."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._directory)
        self._listener.bind(f"/proc/self/fd/{self._directory}/{SOCKET_NAME}")
        os.chmod(SOCKET_NAME, 0o600, dir_fd=self._directory)
        self._inode = os.stat(SOCKET_NAME, dir_fd=self._directory).st_ino
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def is_in_place(self) -> bool:
        """Whether clients still find this socket (somebody may have removed the directory)."""
        try:
            return os.stat(SOCKET_NAME, dir_fd=self._directory).st_ino == self._inode
        except OSError:
            return False

    async def close(self) -> None:
        """Stop serving and remove the socket."""
        self._loop.remove_reader(self._listener.fileno())
        if self.is_in_place():
            with contextlib.suppress(OSError):
                os.unlink(SOCKET_NAME, dir_fd=self._directory)
        self._listener.close()
        current = asyncio.current_task()
        others = [task for task in self._tasks if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _accept(self) -> None:
        for _turn in range(64):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("cannot accept a client: %s", error)
                self._pause()
                return
            connection.setblocking(False)
            pid, uid, _gid = struct.unpack(
                "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )
            if uid != os.geteuid():
                log.warning("refused a client of uid %d (pid %d)", uid, pid)
                connection.close()
                continue
            task = self._loop.create_task(
                self._serve(Client(pid, connection)), name=f"client {pid}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _pause(self) -> None:
        """The listener stays readable: without a pause this would spin."""
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_FULL_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.idle_since = self._loop.time()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection failed", exc_info=error)

    async def _serve(self, client: Client) -> None:
        rest = b""
        try:
            while True:
                if int.from_bytes(rest[:4], "big") > _LONGEST_REQUEST:
                    raise FrameError("a request is announced that is longer than any")
                request, rest = feed(rest)
                if request is None:
                    data = await self._loop.sock_recv(client.connection, _READ)
                    if not data:
                        return
                    rest += data
                    continue
                await self._send(client, await self._reply(client, request))
        except (OSError, FrameError) as error:
            log.info("client %d: %s", client.pid, error)
        finally:
            client.connection.close()
            for callback in client.ended:
                callback()

    async def _reply(self, client: Client, request: dict[str, str]) -> Reply:
        try:
            same = (request.get("protocol"), request.get("version")) == (PROTOCOL, __version__)
            if not same and request.get("verb") not in _ANY_VERSION:
                raise KeeperError(
                    f"cannot serve loopbox {request.get('version', '?')}: the keeper that runs is "
                    f"version {__version__}",
                    hint="end it, what runs in boxes goes on: loopbox keeper stop",
                    code="version-mismatch",
                )
            return await self._answer(client, request)
        except ConnectionAbortedError:
            raise
        except LoopboxError as error:
            return _refusal(error)
        except Exception as error:
            log.exception("verb %s failed", request.get("verb"))
            return _refusal(
                KeeperError(f"cannot finish: the keeper failed: {type(error).__name__}: {error}")
            )

    async def _send(self, client: Client, reply: Reply) -> None:
        fields = {"ok": "1", **reply.fields}
        if reply.document is not None:
            fields["json"] = json.dumps(reply.document)
        if reply.descriptors:
            fields["fds"] = ",".join(reply.descriptors)
        message = build(fields)
        try:
            if reply.descriptors:
                rights = array.array("i", reply.descriptors.values())
                # A client that asks on and on without reading has no room left: it is let go.
                sent = client.connection.sendmsg(
                    [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                )
                message = message[sent:]
            if message:
                await self._loop.sock_sendall(client.connection, message)
        finally:
            for fd in reply.release:
                os.close(fd)


def _refusal(error: LoopboxError) -> Reply:
    return Reply(
        fields={
            "ok": "0",
            "kind": type(error).__name__,
            "error": error.code,
            "message": error.message,
            "hint": error.hint or "",
            "exit": str(error.exit_status),
        }
    )
