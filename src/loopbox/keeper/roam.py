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
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from loopbox.kernel.making import MadeBox, Wish, make_box
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
        self._turn = 0
        self._template = -1
        self.parking = -1
        """A network namespace with nothing in it, to stand in; the relay stands there too."""

    async def start(self) -> None:
        """Start the thread and make the parking and the template namespace.

        Raises OSError when the kernel refuses either.
        """
        self.parking, self._template = await self._hand.call(self._settle)
        self._makers = [_Hand("maker 1"), _Hand("maker 2")]

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

        def make() -> MadeBox:
            try:
                return make_box(group=group, ipv6=ipv6, wish=wish)
            finally:
                setns(self.parking, CLONE_NEWNET)

        self._turn = (self._turn + 1) % len(self._makers)
        return await self._makers[self._turn].call(make)

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
