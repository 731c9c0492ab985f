"""Many sockets behind one descriptor of the event loop.

Owns: an epoll instance watched by asyncio, which finds each ready socket's handler, and listeners
at rest while descriptors are short.
Must never: read, accept, or know what the sockets are for.

Why not one add_reader each: a thousand boxes have three sockets each here, an entry of asyncio's
costs about 1 KiB, a number in a dict next to nothing.

Example::

    readiness = Readiness()
    readiness.watch(listener, take_connections)
    readiness.unwatch(listener)           # before it is closed
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Callable

log = logging.getLogger("loopbox.wayout")

_AT_ONCE = 256
_ACCEPTS = 64
"""Connections accepted in one go, so that one box cannot keep the loop from the others."""
_REST_SECONDS = 0.2
"""Rest after running out of descriptors: without it accept would spin."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Readiness:
    """Calls a handler whenever its socket is readable (level-triggered), on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._poll.fileno(), self._serve)

    def watch(self, one: socket.socket, handler: Callable[[], None]) -> None:
        """Call `handler` while there is something to read."""
        self._handlers[one.fileno()] = handler
        self._poll.register(one.fileno(), select.EPOLLIN)

    def accept(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """Give `take` every client, non-blocking; it owns it."""
        self.watch(listener, lambda: self._accept(listener, take))

    def unwatch(self, one: socket.socket) -> None:
        """Forget a socket, to be called before it is closed. Unknown ones are ignored."""
        if self._handlers.pop(one.fileno(), None) is not None:
            try:
                self._poll.unregister(one.fileno())
            except FileNotFoundError:
                pass  # it is resting

    def close(self) -> None:
        """Forget all; the sockets are their owners'."""
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()
        self._handlers.clear()

    def _serve(self) -> None:
        for descriptor, _ in self._poll.poll(0, _AT_ONCE):
            handler = self._handlers.get(descriptor)
            if handler is not None:  # an earlier handler of this round may have closed it
                handler()

    def _accept(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        for _ in range(_ACCEPTS):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("cannot take a box's connection: %s", error.strerror)
                    self._rest(listener)
                    return
                continue  # it went away before it was taken (accept(2))
            client.setblocking(False)
            take(client)

    def _rest(self, one: socket.socket) -> None:
        """Leave a listener alone for a moment."""
        descriptor, handler = one.fileno(), self._handlers[one.fileno()]
        self._poll.unregister(descriptor)

        def resume() -> None:
            if self._handlers.get(descriptor) is handler:
                self._poll.register(descriptor, select.EPOLLIN)

        self._loop.call_later(_REST_SECONDS, resume)
