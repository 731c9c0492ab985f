"""Connecting from the host for a box's connection that is already accepted.

Owns: one attempt after the other until a target answers or time is up, without waiting.
Must never: judge a target, carry bytes.

Example::

    Dial(client, targets=[(AF_INET, ("93.184.216.34", 443))], seconds=30, done=hand_over).start()
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

Target = tuple[socket.AddressFamily, tuple[str, int]]
"""Family and address as connect(2) wants it: numeric, nothing is resolved."""

_OUTCOMES = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ETIMEDOUT: "timed out",
    errno.EACCES: "refused",
    errno.EPERM: "refused",
}
_BUSY = (errno.EINPROGRESS, errno.EALREADY)


def outcome_of(number: int) -> str:
    """A word for the errno of a connect that failed."""
    return _OUTCOMES.get(number, "failed")


class Dial:
    """One client's way to the first target that answers. Lives on the event loop."""

    __slots__ = ("_client", "_deadline", "_done", "_loop", "_onward", "_seconds", "_targets")

    def __init__(
        self,
        client: socket.socket,
        *,
        targets: Sequence[Target],
        seconds: float,
        done: Callable[[Dial, socket.socket, socket.socket | None, int], None],
    ) -> None:
        """`done` is called once with (self, client, connected socket or None, errno of the last
        failure or 0) and owns both sockets from then on; never if the dial is cancelled."""
        self._client = client
        self._targets = list(targets)
        self._seconds = seconds
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._onward: socket.socket | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; `done` may be called before this returns."""
        self._deadline = self._loop.call_later(self._seconds, self._out_of_time)
        self._next(errno.ENETUNREACH)

    def cancel(self) -> None:
        """Give up and close everything; `done` is not called."""
        self._forget()
        self._client.close()

    def _next(self, failure: int) -> None:
        while self._targets:
            family, address = self._targets.pop(0)
            try:
                onward = socket.socket(
                    family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                )
            except OSError as error:
                failure = error.errno or errno.EIO
                continue
            number = onward.connect_ex(address)
            if number == errno.EINPROGRESS:
                # On loopback the answer is there by now, and a second call tells (measured).
                number = onward.connect_ex(address)
            if number in _BUSY:
                self._onward = onward
                self._loop.add_writer(onward, self._answered)
                return
            if number in (0, errno.EISCONN):
                self._onward = onward
                self._finish(0)
                return
            onward.close()
            failure = number
        self._finish(failure)

    def _answered(self) -> None:
        assert self._onward is not None
        self._loop.remove_writer(self._onward)
        number = self._onward.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number == 0:
            self._finish(0)
            return
        self._onward.close()
        self._onward = None
        self._next(number)

    def _out_of_time(self) -> None:
        if self._onward is not None:
            self._loop.remove_writer(self._onward)
            self._onward.close()
            self._onward = None
        self._finish(errno.ETIMEDOUT)

    def _finish(self, failure: int) -> None:
        onward, self._onward = self._onward, None
        self._forget()
        self._done(self, self._client, onward, failure)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._onward is not None:
            self._loop.remove_writer(self._onward)
            self._onward.close()
            self._onward = None
