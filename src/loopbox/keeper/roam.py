"""The roaming threads: the only threads of the keeper that enter boxes.

Owns: the threads, their queues, and the parking namespace they stand in between jobs. A rootless
thread that has left the host's network namespace can never come back (the host's belongs to the
initial user namespace), so only these threads ever leave; sockets it makes in a box are used by
the others from outside, for a socket belongs to the namespace it was created in (ip-netns(8)).
Must never: run a job that waits; block the event loop.

Example::

    found = await roamer.inside(box.net, lambda: listening_here())
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loopbox.kernel.making import MadeBox, Wish, make_boxes
from loopbox.kernel.namespaces import (
    Namespaces,
    copy_template,
    open_namespace,
    open_template,
    rebind_private_files,
    show_own_devices,
)
from loopbox.kernel.syscalls import CLONE_NEWNET, CLONE_NEWNS, setns, unshare

log = logging.getLogger("loopbox.roam")

_AT_ONCE = 16
"""Boxes made in one go: 6 ms, so that nobody waits long behind them."""

Result = TypeVar("Result")
_Job = tuple[Callable[[], object], "asyncio.Future[object]"]


class Roamer:
    """Runs jobs inside boxes, one after the other, in the order they were asked for.

    Boxes are made by hands of their own: making one takes a hundred times as long as a look into
    one, and two hands make boxes side by side.
    """

    def __init__(self, files: Path) -> None:
        self._files = files
        self._hand = _Hand("roamer")
        self._makers: list[_Hand] = []
        self._idle: list[_Hand] = []
        self._orders: deque[_Order] = deque()
        self._template = -1
        self.parking = -1
        """A network namespace with nothing in it, to stand in; the relay stands there too."""

    async def start(self) -> None:
        """Start the thread and make the parking and the template namespace.

        Raises OSError when the kernel refuses either.
        """
        self.parking, self._template = await self._hand.call(self._settle)
        self._makers = [_Hand("maker 1"), _Hand("maker 2")]
        self._idle = list(self._makers)

    def _settle(self) -> tuple[int, int]:
        unshare(CLONE_NEWNET)
        parking = open_namespace("net")
        return parking, open_template(self._files)

    async def stop(self) -> None:
        """Let the queued jobs finish and end the threads."""
        for hand in (*self._makers, self._hand):
            await asyncio.to_thread(hand.end)
        for fd in (self.parking, self._template):
            if fd >= 0:
                os.close(fd)

    async def inside(self, net: int, job: Callable[[], Result]) -> Result:
        """Run `job` in the network namespace behind `net` and give what it returns or raises."""

        def inside() -> Result:
            setns(net, CLONE_NEWNET)
            try:
                return job()
            finally:
                setns(self.parking, CLONE_NEWNET)

        return await self._hand.call(inside)

    async def make(self, *, group: int, ipv6: bool, wish: Wish) -> MadeBox:
        """Make a box; whoever gets it closes it. See kernel/making.py."""
        order = _Order(group, ipv6, wish, asyncio.get_running_loop().create_future())
        self._orders.append(order)
        self._hand_out()
        return await order.made

    def _hand_out(self) -> None:
        """Give each idle maker its share of the orders; equal ones are made in one go."""
        while self._orders and self._idle:
            share = min(_AT_ONCE, -(-len(self._orders) // len(self._idle)))
            orders = [self._orders.popleft()]
            first = orders[0]
            while len(orders) < share and self._orders and first.is_equal(self._orders[0]):
                orders.append(self._orders.popleft())
            maker = self._idle.pop()
            work = functools.partial(self._make_here, first, len(orders))
            maker.call(work).add_done_callback(functools.partial(self._deliver, maker, orders))

    def _make_here(self, order: _Order, count: int) -> list[MadeBox]:
        try:
            return make_boxes(count, group=order.group, ipv6=order.ipv6, wish=order.wish)
        finally:
            setns(self.parking, CLONE_NEWNET)

    def _deliver(
        self, maker: _Hand, orders: list[_Order], done: asyncio.Future[list[MadeBox]]
    ) -> None:
        self._idle.append(maker)
        error = done.exception()
        made = [] if error is not None else done.result()
        if error is not None:
            failed = orders.pop(0).made
            if not failed.cancelled():
                failed.set_exception(error)
        for box in made:
            order = orders.pop(0)
            if order.made.cancelled():
                box.namespaces.close()
            else:
                order.made.set_result(box)
        self._orders.extendleft(reversed(orders))  # as many as could not be made in that go
        self._hand_out()

    async def copy_mounts(self) -> int:
        """A new mount namespace for a box whose own has gone; the caller closes it."""

        def copy() -> int:
            try:
                return copy_template(self._template)
            finally:
                setns(self._template, CLONE_NEWNS)

        return await self._hand.call(copy)

    async def release(self, box: Namespaces) -> None:
        """Close a box's descriptors behind every job that was asked for before.

        Closed at once, their numbers could be another box's by the time such a job runs.
        """
        await self._hand.call(box.close)

    async def dress(
        self, net: int, files: Path | None, then: Callable[[], Result]
    ) -> tuple[int, Result]:
        """A mount namespace for a box whose first program comes; the caller closes it.

        With an own /sys/class/net, and own files where the box has any. And what `then` gives,
        run in the box's network: all in one job, for `net` may be closed behind it.
        """

        def dress() -> tuple[int, Result]:
            try:
                mnt = copy_template(self._template)
                try:
                    setns(net, CLONE_NEWNET)
                    try:
                        show_own_devices(self._files)
                    except OSError as error:
                        # A kernel without rootless sysfs: the box only shows the host's devices.
                        log.info("a box keeps the host's /sys: %s", error)
                    if files is not None:
                        rebind_private_files(mnt, files)
                    return mnt, then()
                except BaseException:
                    os.close(mnt)
                    raise
            finally:
                setns(self.parking, CLONE_NEWNET)
                setns(self._template, CLONE_NEWNS)

        return await self._hand.call(dress)

    async def rebind(self, boxes: list[tuple[int, Path]]) -> None:
        """Lay the private files over /etc's anew, in the template and in each (mnt, files)."""

        def rebind() -> None:
            try:
                for mnt, files in boxes:
                    try:
                        rebind_private_files(mnt, files)
                    except OSError as error:
                        # One box that refuses must not leave the others with the host's files.
                        log.warning("cannot lay the private files anew in one box: %s", error)
            finally:
                rebind_private_files(self._template, self._files)

        await self._hand.call(rebind)


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A box that is wanted."""

    group: int
    ipv6: bool
    wish: Wish
    made: asyncio.Future[MadeBox]

    def is_equal(self, other: _Order) -> bool:
        """Whether both can be made in one go."""
        own = (self.group, self.ipv6, self.wish)
        return self.wish.network is None and own == (other.group, other.ipv6, other.wish)


class _Hand:
    """One thread and its queue of jobs."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Queue a job; the future gives what it returns or raises."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put((job, future))  # type: ignore[arg-type]
        return future

    def end(self) -> None:
        """Let the queued jobs finish; blocks until they have."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            job, future = item
            try:
                outcome: object = job()
            except BaseException as error:
                self._answer(_fail, future, error)
            else:
                self._answer(_fulfil, future, outcome)

    def _answer(
        self,
        how: Callable[[asyncio.Future[object], object], None],
        future: asyncio.Future[object],
        what: object,
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(how, future, what)
        except RuntimeError:
            pass  # the loop has closed: the keeper is gone and nobody waits


def _fulfil(future: asyncio.Future[object], outcome: object) -> None:
    if not future.cancelled():
        future.set_result(outcome)


def _fail(future: asyncio.Future[object], error: object) -> None:
    if not future.cancelled():
        assert isinstance(error, BaseException)
        future.set_exception(error)
