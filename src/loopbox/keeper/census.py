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
import os
from collections.abc import Callable

from loopbox.keeper.holding import HeldBox
from loopbox.kernel.processes import members

_SETTLE = 0.003
"""Seconds between an end and the count: many ends at once (200 parallel runs) cost one count."""


class Census:
    """Watches the members of all boxes. Lives on the event loop's thread."""

    def __init__(self, *, on_empty: Callable[[HeldBox], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_empty = on_empty
        self._doubtful: set[HeldBox] = set()
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, box: HeldBox, pid: int) -> bool:
        """Watch a process that is in the box, or has been handed the way in. False: it is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self.doubt(box)
            return False
        box.members[pidfd] = pid
        self._loop.add_reader(pidfd, self._ended, box, pidfd)
        return True

    def doubt(self, box: HeldBox) -> None:
        """Count the box's processes soon: it may be empty."""
        self._doubtful.add(box)
        if self._timer is None:
            self._timer = self._loop.call_later(_SETTLE, self._count)

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
        doubtful = {box.namespaces.inode: box for box in self._doubtful if not box.members}
        self._doubtful.clear()
        # A process that forks and ends during the walk over /proc can be missed once, so only
        # what two walks in a row find empty is empty.
        for _walk in range(2):
            if not doubtful:
                return
            for inode, found in members(doubtful).items():
                if any(self.admit(doubtful[inode], pid) for pid in found[:1]):
                    del doubtful[inode]
                elif found:
                    self.doubt(doubtful.pop(inode))
        for box in doubtful.values():
            if not box.is_occupied and not box.going:
                self._on_empty(box)
