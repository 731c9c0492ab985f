"""setns, unshare, mount and umount2, from the compiled core where it was built.

Owns: choosing between `_syscalls` (compiled), `os` (3.12+) and ctypes. The client imports this
on its hot path, so ctypes (6 ms) is touched only where nothing else serves.
Must never: decide anything; import beyond `os` at the top.

Example::

    setns(net_fd, CLONE_NEWNET)
"""

from __future__ import annotations

import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

__all__ = ["COMPILED", "counters", "make_boxes", "mount", "setns", "umount2", "unshare"]

COMPILED = False
"""True when the compiled core serves; the pure twin gives the same answers more slowly."""

TYPE_CHECKING = False  # typing's own costs 3 ms to import; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence

    def setns(fd: int, flags: int = 0) -> None:
        """Move the calling thread into the namespace behind `fd` (setns(2))."""

    def unshare(flags: int) -> None:
        """Give the calling thread namespaces of its own (unshare(2))."""

    def mount(
        source: str | bytes, target: str | bytes, kind: str | None, flags: int, data: str | None
    ) -> None:
        """Attach a file system or change a mount (mount(2))."""

    def umount2(target: str | bytes, flags: int) -> None:
        """Detach a mount (umount2(2))."""

    def counters(descriptors: Sequence[int]) -> list[int]:
        """One number per sockstat descriptor that changes when a socket count there changes."""

    def make_boxes(
        count: int, network: int, nft: bytes, routes4: bytes, routes6: bytes
    ) -> list[tuple[int, int]]:
        """Only where COMPILED: descriptors and cookies of boxes' networks (native/making.h)."""

else:
    try:
        if os.environ.get("LOOPBOX_PURE"):
            raise ImportError
        from loopbox.kernel._syscalls import (
            counters,
            make_boxes,
            mount,
            setns,
            umount2,
            unshare,
        )

        COMPILED = True
    except ImportError:
        from loopbox.kernel._syscalls_pure import counters, mount, setns, umount2, unshare
