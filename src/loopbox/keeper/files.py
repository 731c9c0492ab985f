"""The files a box has of its own: hosts, resolv.conf and nsswitch.conf, written and kept true.

Owns: the directory they lie in, their content (from the host's files by `wire.systemfiles`), and
noticing that the host changed its own. A file the host replaces by rename(2) loses the mount on
it in every box at once; the files are then laid over it anew before the next program enters, and
at once for those already inside.
Must never: write to /etc.

Example::

    await files.freshen()     # before a program enters: three stat(2) calls when nothing changed
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from loopbox.keeper.holding import HeldBox
from loopbox.keeper.roam import Roamer
from loopbox.kernel.namespaces import PRIVATE_FILES
from loopbox.wire import systemfiles

log = logging.getLogger("loopbox.files")

_ETC = Path("/etc")
_FOLLOWED = tuple(f"{_ETC}/{name}" for name in PRIVATE_FILES)
_PERIOD = 0.05
"""Seconds between two looks at the host's files (three stat(2) calls, 5 us)."""

_Seen = tuple[tuple[int, int, int, int] | None, ...]


class PrivateFiles:
    """The private files of all boxes, below `directory`."""

    def __init__(self, directory: Path, *, nameserver: str) -> None:
        self.shared = directory / "shared"
        """The files of every box that has no names of its own."""
        self.laid = 0
        """How often they were laid anew: who made a mount namespace meanwhile must do so again."""
        self._directory = directory
        self._nameserver = nameserver
        self._seen: _Seen = ()
        self._failure = ""
        self._roamer: Roamer | None = None
        self._boxes: Callable[[], Iterable[HeldBox]] = list
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        if directory.is_symlink():  # what boxes leave is removed here, and must be ours
            raise OSError(errno.ELOOP, "it is a link", str(directory))
        # Never made anew while boxes of an earlier keeper live: their mounts hold these inodes.
        self.shared.mkdir(parents=True, exist_ok=True)
        self._write(self.shared)
        self._seen = _look()

    def serve(self, roamer: Roamer, boxes: Callable[[], Iterable[HeldBox]]) -> None:
        """Begin to follow the host's files on behalf of these boxes."""
        self._roamer = roamer
        self._boxes = boxes
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="files")

    async def close(self, *, remove: bool) -> None:
        """Stop following; remove the directory when no box is left that reads it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if remove:
            shutil.rmtree(self._directory, ignore_errors=True)

    def of(self, name: str) -> Path | None:
        """A box's own directory, None when it uses the shared one."""
        own = self._directory / name
        return own if own.is_dir() else None

    def forget(self, name: str) -> None:
        """Remove a box's own directory."""
        own = self.of(name)
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)

    async def freshen(self) -> None:
        """Bring the boxes in line with the host's files if those have changed.

        Where that fails (a full disk) the boxes keep what they have, and it is tried again.
        """
        if _look() == self._seen:
            return
        try:
            await self._lay_anew()
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning("cannot lay the private files anew: %s", error)

    async def _lay_anew(self) -> None:
        async with self._lock:
            seen = _look()
            if seen == self._seen or self._roamer is None:
                return
            self._write(self.shared)
            self.laid += 1
            await self.lay_over_all()
            self._seen, self._failure = seen, ""
            log.info("the host changed its name files: the boxes' were laid anew")

    async def lay_over_all(self) -> None:
        """Lay the files over the host's in every box there is."""
        boxes = [
            (box.namespaces.mnt, self.of(box.name) or self.shared)
            for box in self._boxes()
            if not box.going and box.namespaces.mnt >= 0
        ]
        if self._roamer is not None and boxes:
            await self._roamer.rebind(boxes)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.freshen()
            except Exception:
                log.exception("cannot follow the host's name files")

    def _write(self, directory: Path) -> None:
        """Write the three files in place: the mounts hold these very inodes."""
        for name, content in (
            ("hosts", systemfiles.build_hosts(_read("hosts"))),
            ("resolv.conf", systemfiles.build_resolv_conf(_read("resolv.conf"), self._nameserver)),
            ("nsswitch.conf", systemfiles.build_nsswitch(_read("nsswitch.conf"))),
        ):
            path = directory / name
            if path.exists() and path.read_bytes() == content:
                continue
            # Written over and then cut, not emptied first: on a full disk the old stays readable.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o644)  # programs of other users in root's boxes read it, too
                file.write(content)
                file.truncate()


def _read(name: str) -> bytes:
    try:
        return (_ETC / name).read_bytes()
    except OSError:
        return b""


def _look() -> _Seen:
    found: list[tuple[int, int, int, int] | None] = []
    for path in _FOLLOWED:
        try:
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)
