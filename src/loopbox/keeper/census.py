"""Who is in which box: told when the last process of a box has gone.

Owns: the pidfds of members, and the count over /proc when a watched one ends. One member watched
is enough: while it lives the box is not empty, and when it ends the rest are looked for (daemons
that double-forked, background jobs).
Must never: end a box itself; poll.

Example::

    census.admit(box, pid)     # later, once: on_empty(box)
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

from loopbox.errors import HostError
from loopbox.keeper.holding import HeldBox
from loopbox.kernel.processes import members, network_of, without_members

_SETTLE = 0.003
"""Seconds between an end and the count: many ends at once (200 parallel runs) cost one count."""
_RETRY = 1.0
"""Seconds until a process is looked at again that could not be watched (no descriptor left)."""


class Census:
    """Watches the members of all boxes. Lives on the event loop's thread."""

    def __init__(self, *, on_empty: Callable[[HeldBox], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_empty = on_empty
        self._doubtful: set[HeldBox] = set()
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, box: HeldBox, pid: int, *, is_gone: Callable[[], bool] = lambda: False) -> bool:
        """Watch a process that is in the box, or is about to be handed the way in.

        False: it is gone. `is_gone` is asked once the process is held: whoever asked and went
        away may have left its number to a stranger, which would then hold the box. Raises
        HostError when this process can hold no more descriptors.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EINVAL):
                raise HostError(
                    f"cannot watch process {pid}: {error.strerror}",
                    hint="allow more open files: ulimit -Hn, then loopbox keeper stop",
                ) from error
            self.doubt(box)
            return False
        if is_gone():
            os.close(pidfd)
            self.doubt(box)
            return False
        box.members[pidfd] = pid
        self._loop.add_reader(pidfd, self._ended, box, pidfd)
        return True

    def recheck(self, box: HeldBox, pid: int) -> None:
        """A client has hung up: if it did not go into the box, it holds it no longer."""
        if network_of(pid) != box.namespaces.inode:
            for pidfd in [pidfd for pidfd, known in box.members.items() if known == pid]:
                self._drop(box, pidfd)
            if not box.members:
                self.doubt(box)

    def doubt(self, box: HeldBox) -> None:
        """Count the box's processes soon: it may be empty."""
        self._doubt(box, _SETTLE)

    def _doubt(self, box: HeldBox, seconds: float) -> None:
        self._doubtful.add(box)
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._count)

    def dismiss(self, box: HeldBox) -> None:
        """Watch the box no longer."""
        self._doubtful.discard(box)
        for pidfd in list(box.members):
            self._drop(box, pidfd)

    def close(self) -> None:
        """Stop counting; dismiss every box first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, box: HeldBox, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        del box.members[pidfd]

    def _ended(self, box: HeldBox, pidfd: int) -> None:
        self._drop(box, pidfd)
        if not box.members:
            self.doubt(box)

    def _count(self) -> None:
        self._timer = None
        # The inode of a box that is going may already be another's.
        doubtful = {
            box.namespaces.inode: box for box in self._doubtful if not box.members and not box.going
        }
        self._doubtful.clear()
        if not doubtful:
            return
        lost = without_members(doubtful)
        for inode, found in members(doubtful.keys() - lost).items():
            self._watch_one(doubtful[inode], found)
        for box in (doubtful[inode] for inode in lost):
            if not box.is_occupied:
                self._on_empty(box)

    def _watch_one(self, box: HeldBox, found: list[int]) -> None:
        """Watch the oldest that still lives: it is the likeliest to stay."""
        try:
            if not any(self.admit(box, pid) for pid in found):
                self.doubt(box)
        except HostError:
            self._doubt(box, _RETRY)
