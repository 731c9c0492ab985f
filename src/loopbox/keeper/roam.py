"""The roaming thread: the one thread of the keeper that enters boxes.

Owns: the thread, its queue, and the parking namespace it stands in between jobs. A rootless
thread that has left the host's network namespace can never come back (the host's belongs to the
initial user namespace), so only this thread ever leaves; sockets it makes in a box are used by
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

from loopbox.kernel.namespaces import (
    Namespaces,
    copy_template,
    make_namespaces,
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
    """Runs jobs inside boxes, one after the other, in the order they were asked for."""

    def __init__(self, files: Path) -> None:
        self._files = files
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="roamer", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._template = -1
        self.parking = -1
        """A network namespace with nothing in it, to stand in; the relay stands there too."""

    async def start(self) -> None:
        """Start the thread and make the parking and the template namespace.

        Raises OSError when the kernel refuses either.
        """
        self._thread.start()
        self.parking, self._template = await self._call(self._settle)

    def _settle(self) -> tuple[int, int]:
        unshare(CLONE_NEWNET)
        parking = open_namespace("net")
        return parking, open_template(self._files)

    async def stop(self) -> None:
        """Let the queued jobs finish and end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
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

        return await self._call(inside)

    async def make(self, *, group: int, then: Callable[[], Result]) -> tuple[Namespaces, Result]:
        """Make a box's namespaces and run `then` inside before anyone can enter."""

        def make() -> tuple[Namespaces, Result]:
            try:
                made = make_namespaces(self._template, group=group)
                try:
                    return made, then()
                except BaseException:
                    made.close()
                    raise
            finally:
                setns(self.parking, CLONE_NEWNET)
                setns(self._template, CLONE_NEWNS)

        return await self._call(make)

    async def copy_mounts(self) -> int:
        """A new mount namespace for a box whose own has gone; the caller closes it."""

        def copy() -> int:
            try:
                return copy_template(self._template)
            finally:
                setns(self._template, CLONE_NEWNS)

        return await self._call(copy)

    async def release(self, box: Namespaces) -> None:
        """Close a box's descriptors behind every job that was asked for before.

        Closed at once, their numbers could be another box's by the time such a job runs.
        """
        await self._call(box.close)

    async def dress(self, box: Namespaces, files: Path | None) -> None:
        """Prepare a box for its first program: own /sys/class/net, own files where it has any."""

        def dress() -> None:
            try:
                setns(box.net, CLONE_NEWNET)
                setns(box.mnt, CLONE_NEWNS)
                show_own_devices(self._files)
                if files is not None:
                    rebind_private_files(box.mnt, files)
            finally:
                setns(self.parking, CLONE_NEWNET)
                setns(self._template, CLONE_NEWNS)

        await self._call(dress)

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

        await self._call(rebind)

    def _call(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put((job, future))  # type: ignore[arg-type]
        return future

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
