"""Which processes live in which box, and which of them holds a socket: from /proc.

Owns: reading /proc/PID/{ns/net,cmdline,fd,environ} and signalling by pidfd. A process is seen
when its user's other processes may inspect it (ptrace(2), access mode READ), which a keeper may
for everything that entered its boxes.
Must never: decide who is ended; trust a pid across time without a pidfd.

Example::

    members({4026532567})  ->  {4026532567: [812, 813]}
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

_MOST_WALKS = 3
_ROUNDS = 3
_PROBES = 16
_PROBE_DEPTH = 8
"""How many of the latest numbers each probe asks: other programs are born meanwhile, too."""


def pids() -> list[int]:
    """Every process id visible now, the highest (mostly the newest) first."""
    return sorted((int(entry) for entry in os.listdir("/proc") if entry.isdigit()), reverse=True)


def network_of(pid: int) -> int | None:
    """The inode of a process's network namespace; None when it is gone or not ours to see."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def members(networks: Collection[int]) -> dict[int, list[int]]:
    """The processes of each network namespace (by inode), oldest first, zombies left out."""
    return _walk(networks, pids())


def without_members(networks: Collection[int]) -> set[int]:
    """Those of the namespaces that no process is in.

    A daemon that forks and ends while /proc is read can be missed: it was listed and is gone when
    asked, its child was not yet listed. So what looks empty is looked at again, the newest first.
    Two listings in a row that are the same settle it: nobody came or went. Where the machine is
    busy and they never are, the processes born last are asked directly, over and over: between
    the kernel saying their number and their being asked lie microseconds, not a walk. Between
    such rounds all are listed again.
    """
    empty, seen = set(networks), None
    for _walk_number in range(_MOST_WALKS):
        listed = pids()
        empty -= {inode for inode, found in _walk(empty, listed).items() if found}
        if not empty or listed == seen:
            return empty
        seen = listed
    for _round in range(_ROUNDS):
        for _probe in range(_PROBES):
            newest = _newest_pid()
            asked = range(newest, max(newest - _PROBE_DEPTH, 0), -1)
            empty.difference_update(map(network_of, asked))
        # Who waits for a processor meanwhile is not among the last: others were born after it.
        empty -= {inode for inode, found in _walk(empty, pids()).items() if found}
        if not empty:
            break
    return empty


def _newest_pid() -> int:
    """The number given last in this process's pid namespace (proc_loadavg(5), fifth field)."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[4])


def _walk(networks: Collection[int], listed: Iterable[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {inode: [] for inode in networks}
    for pid in listed:
        inode = network_of(pid)
        if inode in found:
            found[inode].append(pid)
    for own in found.values():
        own.sort()
    return found


def command_of(pid: int) -> str:
    """The command line, arguments joined by blanks; the kernel's name where there is none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return b" ".join(words).decode("utf-8", "replace")
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "replace")
    except OSError:
        return ""


def environment_of(pid: int, key: str) -> str | None:
    """One variable of the environment a process started with; None when unset or unseen."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            wanted = key.encode() + b"="
            for entry in file.read().split(b"\0"):
                if entry.startswith(wanted):
                    return entry[len(wanted) :].decode("utf-8", "replace")
    except OSError:
        pass
    return None


def socket_holders(candidates: Iterable[int]) -> dict[int, int]:
    """Socket inode to the lowest pid that holds it, among `candidates`."""
    holders: dict[int, int] = {}
    for pid in sorted(candidates):
        try:
            entries = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for entry in entries:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{entry}")
            except OSError:
                continue
            if link.startswith("socket:["):
                holders.setdefault(int(link[8:-1]), pid)
    return holders


def parent_of(pid: int) -> int | None:
    """The parent's process id; None when the process is gone."""
    return _stat_of(pid, 1)


def session_of(pid: int) -> int | None:
    """The session's id (setsid(2)); None when the process is gone."""
    return _stat_of(pid, 3)


def _stat_of(pid: int, place: int) -> int | None:
    """A number of /proc/PID/stat, counted from the state."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold blanks and brackets: count from its last bracket (proc(5)).
            return int(file.read().rpartition(b")")[2].split()[place])
    except (OSError, IndexError, ValueError):
        return None
