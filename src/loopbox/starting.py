"""Starting the keeper: once, detached from whoever needed it first.

Owns: the start lock (two commands at once: one starts it, the other waits), the double fork, and
the pipe over which the new keeper says that it serves or why it cannot.
Must never: leave a child behind in the process that goes on to become the user's command.

Example::

    with only_one(runtime_fd, "start.lock"):
        start_keeper()
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loopbox.errors import HostError, KeeperError
from loopbox.places import state_path
from loopbox.wire.control import FrameError, feed


@contextmanager
def only_one(directory: int, name: str) -> Iterator[None]:
    """Hold an exclusive lock (flock(2)) on `name` below the directory; wait while another does."""
    fd = os.open(
        name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def log_path() -> str:
    """The keeper's log file."""
    return f"{state_path()}/keeper.log"


def start_keeper() -> None:
    """Start the keeper and wait until it serves.

    Raises HostError or KeeperError with the keeper's own reason when it cannot.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        _become_keeper(writing)
    os.close(writing)
    os.waitpid(first, 0)
    said = b""
    while chunk := os.read(reading, 65536):
        said += chunk
    os.close(reading)
    try:
        fields, _rest = feed(said)
    except FrameError:
        fields = None
    if fields is None:
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise KeeperError(
            f"cannot start the keeper: {last or 'it ended without a word'}",
            hint=f"see its log: {log_path()}",
        )
    if fields.get("ok") != "1":
        kind = HostError if fields.get("kind") == "HostError" else KeeperError
        raise kind(
            fields.get("message", "cannot start the keeper"),
            hint=fields.get("hint") or None,
            code=fields.get("error") or None,
        )


def _become_keeper(writing: int) -> None:
    """In the first child: leave the terminal's session, fork again, become the keeper."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        # Whatever it says before it serves (an import that fails, say) is the reason to show.
        os.dup2(writing, 2)
        # Descriptors the caller left open (a pipe, a lock) must not stay open as long as we live.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        environment = {k: v for k, v in os.environ.items() if k != "LOOPBOX_NAME"}
        # -P: the directory the user happens to stand in is not searched for modules.
        os.execve(
            sys.executable,
            [sys.executable, "-P", "-m", "loopbox.keeper", "--ready", "2"],
            environment,
        )
    finally:
        os._exit(127)
