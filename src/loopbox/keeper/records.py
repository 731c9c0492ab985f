"""What the keeper writes down: the boxes that are up, and which directory owns which name.

Owns: `boxes/NAME` in the runtime directory (one small file a box, so that 1,000 boxes cost 1,000
small writes and not 1,000 rewrites of a large one) and `names.json` in the state directory.
Every write is to a temporary file and a rename, so a reader sees the old or the new, never half.
Must never: fail a box because a disk is full or read-only: what cannot be written is logged, and
the box lives on without the comfort of being found again.

Example::

    records.save(box)          # found again after a SIGKILL
    records.own("shop", "/home/a/shop", address)
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import stat
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from loopbox.keeper.holding import HeldBox, Record

log = logging.getLogger("loopbox.records")

_POOL = IPv4Network("127.64.0.0/10")
"""See rules/naming.box_address."""
_MOST_NAMES = 2000
"""Owned names remembered; the ones unused for longest go first."""


def write_whole(path: Path, text: str) -> None:
    """Put `text` at `path` in one step. Raises OSError; `path` is then as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_whole(path: Path) -> str:
    """The text of a file of ours. Raises OSError, also for what is no file: a FIFO would block."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def _pool_address(text: str) -> IPv4Address:
    """Raises ValueError for what is no box's address: a door must never open anywhere else."""
    address = IPv4Address(text)
    if address not in _POOL:
        raise ValueError(f"{text} is not in {_POOL}")
    return address


@functools.cache
def _boot() -> str:
    """What names this run of the machine (proc_sys_kernel(5))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _write_new(path: str, text: str) -> None:
    """Make the file in one write(2): a third of the cost of a rename, for there is no old one.

    Raises OSError; the file is then not there.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    data = text.encode()
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


class Records:
    """The two memories: `runtime` is gone with a reboot, `state` stays."""

    def __init__(self, *, runtime: Path, state: Path) -> None:
        self._boxes = runtime / "boxes"
        self._names_file = state / "names.json"
        self._names: dict[str, dict[str, str]] = {}
        self._dirty = False
        try:
            self._boxes.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            log.warning("cannot keep records in %s: %s", self._boxes, error)
        self._load_names()

    def save(self, box: HeldBox) -> None:
        """Write a box down, or anew."""
        text = json.dumps({**box.record(), "boot": _boot()})
        path = f"{self._boxes}/{box.name}"
        try:
            try:
                _write_new(path, text)
            except FileExistsError:
                write_whole(Path(path), text)
        except OSError as error:
            log.warning("cannot record box %s: %s", box.name, error)

    def forget(self, name: str) -> None:
        """Remove a box's record."""
        try:
            (self._boxes / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove the record of box %s: %s", name, error)

    def all(self) -> list[Record]:
        """Every readable record; unreadable ones are logged and removed."""
        found = []
        try:
            paths = sorted(self._boxes.iterdir())
        except OSError:
            return []
        for path in paths:
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            try:
                document = json.loads(_read_whole(path))
                if document["boot"] != _boot():
                    # A runtime directory on disk (/tmp may be): the numbers are others' by now.
                    document |= {"inode": 0, "cookie": 0, "mounts": 0}
                record = Record.parse(document)
                if record.name != path.name:
                    raise ValueError(f"it is of box {record.name!r}")
                found.append(record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("unreadable record %s: %s", path.name, error)
                self.forget(path.name)
        return found

    def own(self, name: str, directory: str, address: IPv4Address) -> None:
        """Remember that `directory` goes by `name` and is found at `address`."""
        entry = {"directory": directory, "address": str(address)}
        if self._names.get(name) == entry:
            return
        self._names.pop(name, None)
        self._names[name] = entry
        while len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]
        self._dirty = True

    def disown(self, name: str) -> None:
        """Forget who owns a name."""
        if self._names.pop(name, None) is not None:
            self._dirty = True

    def owner_of(self, name: str) -> Path | None:
        """The directory that goes by `name`, while it exists."""
        entry = self._names.get(name)
        if entry is None or not os.path.isdir(entry["directory"]):
            return None
        return Path(entry["directory"])

    def address_of(self, name: str) -> IPv4Address | None:
        """The address that a project's box of that name had last."""
        entry = self._names.get(name)
        return None if entry is None else IPv4Address(entry["address"])

    def owned(self) -> dict[str, dict[str, str]]:
        """Name to `{"directory", "address"}`."""
        return dict(self._names)

    def flush(self) -> None:
        """Write the owned names if they changed."""
        if not self._dirty:
            return
        self._dirty = False
        try:
            self._names_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._names_file, json.dumps(self._names, indent=1) + "\n")
        except OSError as error:
            log.warning("cannot write %s: %s", self._names_file, error)

    def _load_names(self) -> None:
        try:
            document: Any = json.loads(_read_whole(self._names_file))
            self._names = {
                str(name): {
                    "directory": str(entry["directory"]),
                    "address": str(_pool_address(entry["address"])),
                }
                for name, entry in document.items()
            }
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("unreadable %s: %s; starting afresh", self._names_file, error)
