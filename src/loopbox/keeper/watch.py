"""New listeners in the boxes, noticed within 250 ms, for next to nothing while all is quiet.

Owns: the poll. The kernel has no event for a new listener, and asking for the listeners of every
box walks one machine-wide hash (quadratic in the number of boxes), so the poll reads each box's
socket counters (2 us a box, /proc/net/sockstat) and asks only where a counter changed.
Must never: ask a box that nobody is in, or open doors itself.

Example::

    watch = Watch(boxes=lambda: held, look=look)   # look(box) is awaited for each change
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from loopbox.keeper.holding import HeldBox
from loopbox.kernel.syscalls import counters

log = logging.getLogger("loopbox.watch")

_PERIOD = 0.1
"""Seconds between two polls while the boxes are few."""
_PERIOD_MANY = 0.2
"""With more than _MANY boxes: still inside the 250 ms promise, for half the cost."""
_MANY = 64
_AGAIN = 2.0
_AGAIN_PER_BOX = 0.02
"""Seconds after which a box with listeners is asked though no counter changed: one listener that
closes and another that opens within one period leave the counters as they were. It grows with the
number of boxes, so that this costs at most 50 questions a second."""
_LIVELY = 0.5
"""Seconds after a change during which a box is asked at every poll: what follows closely upon it
may cancel out in the counters (a server ends just when a socket of the relay's appears)."""
_MOST_LIVELY = 16
"""Boxes asked for that reason in one poll, at most."""


class Watch:
    """The poll over all boxes."""

    def __init__(
        self,
        *,
        boxes: Callable[[], Iterable[HeldBox]],
        look: Callable[[HeldBox], Awaitable[None]],
    ) -> None:
        self._boxes = boxes
        self._look = look
        self._seen: dict[int, tuple[int, ...]] = {}
        self._asked: dict[int, float] = {}
        self._changed: dict[int, float] = {}
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._poll(), name="watch")

    async def close(self) -> None:
        """Stop polling."""
        self._task.cancel()
        for task in self._busy.values():
            task.cancel()
        await asyncio.gather(self._task, *self._busy.values(), return_exceptions=True)

    def forget(self, box: HeldBox) -> None:
        """The box is going: nothing about it is remembered."""
        self._seen.pop(box.group, None)
        self._asked.pop(box.group, None)
        self._changed.pop(box.group, None)
        task = self._busy.pop(box.group, None)
        if task is not None:
            task.cancel()

    async def _poll(self) -> None:
        while True:
            boxes = [box for box in self._boxes() if box.counters and box.is_occupied]
            try:
                self._compare(boxes)
            except Exception:
                log.exception("the listener poll failed once")
            await asyncio.sleep(_PERIOD if len(boxes) <= _MANY else _PERIOD_MANY)

    def _compare(self, boxes: list[HeldBox]) -> None:
        found = counters([fd for box in boxes for fd in box.counters])
        now, at = self._loop.time(), 0
        again = max(_AGAIN, _AGAIN_PER_BOX * len(boxes))
        lively = _MOST_LIVELY
        for box in boxes:
            seen = tuple(found[at : at + len(box.counters)])
            at += len(box.counters)
            due = bool(box.listeners) and now - self._asked.get(box.group, now) > again
            if self._seen.get(box.group) != seen:
                self._changed[box.group] = now
                due = True
            elif lively and box.group in self._changed:
                due, lively = True, lively - 1
                if now - self._changed[box.group] > _LIVELY:
                    del self._changed[box.group]
            if due:
                self._ask(box, seen, now)

    def _ask(self, box: HeldBox, seen: tuple[int, ...], now: float) -> None:
        if box.group in self._busy or box.going:
            return
        self._seen[box.group] = seen
        self._asked[box.group] = now
        task = self._loop.create_task(self._look_once(box), name=f"look {box.name}")
        self._busy[box.group] = task
        task.add_done_callback(lambda done: self._finished(box.group, done))

    def _finished(self, group: int, task: asyncio.Task[None]) -> None:
        if self._busy.get(group) is task:
            del self._busy[group]

    async def _look_once(self, box: HeldBox) -> None:
        before = box.listeners
        try:
            await self._look(box)
            if box.listeners != before and not box.going:
                self._changed[box.group] = self._loop.time()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("cannot look into box %s", box.name)
