"""The twin of `src/native/syscalls.c` without a compiler: ctypes, and `os` where it serves.

Must never: differ from the compiled core in anything but speed (one test suite checks both).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)

# Counts of the whole machine or of Unix sockets: see fingerprint() in syscalls.c.
_MACHINE_WIDE = re.compile(rb"^sockets:[^\n]*| (?:orphan|mem|memory)[^\n]*")


def _checked(result: int, name: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def setns(fd: int, flags: int = 0) -> None:
    """Move the calling thread into the namespace behind `fd` (setns(2))."""
    _checked(_libc.setns(fd, flags))


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2))."""
    _checked(_libc.unshare(flags))


def mount(
    source: str | bytes, target: str | bytes, kind: str | None, flags: int, data: str | None
) -> None:
    """Attach a file system or change a mount (mount(2))."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if data is None else data.encode(),
        ),
        os.fsdecode(target),
    )


def umount2(target: str | bytes, flags: int) -> None:
    """Detach a mount (umount2(2))."""
    _checked(_libc.umount2(os.fsencode(target), flags))


def counters(descriptors: Sequence[int]) -> list[int]:
    """One number per sockstat descriptor that changes when a socket count there changes."""
    found = []
    for fd in descriptors:
        try:
            text = os.pread(fd, 1024, 0)
        except OSError:
            found.append(0)
            continue
        found.append(hash(_MACHINE_WIDE.sub(b"", text)))
    return found
