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
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loopbox.errors import HostError, KeeperError
from loopbox.places import runtime_path, state_path
from loopbox.wire.control import FrameError, feed

_PATIENCE = 60.0
"""Seconds that a keeper may take to start: with 5,000 boxes to take over it needs some."""
_LOOK_AGAIN = 0.01
_SO_NETNS_COOKIE = 71

_PYTHON_KEPT = frozenset(
    {
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONUSERBASE",
        "PYTHONNOUSERSITE",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
    }
)
"""What the keeper needs to find its modules. The rest (PYTHONINSPECT, PYTHONPROFILEIMPORTTIME,
PYTHONWARNINGS, …) is meant for the user's own programs and would change ours."""


@contextmanager
def only_one(directory: int, name: str, *, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold an exclusive lock (flock(2)) on `name` below the directory; wait while another does.

    Raises KeeperError when the other still holds it after `patience` seconds.
    """
    mask = os.umask(0o077)
    try:
        fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory
        )
    except OSError as error:
        raise KeeperError(
            f"cannot open `{runtime_path()}/{name}`: {error.strerror}",
            hint=f"see what is there: ls -l {runtime_path()}",
        ) from error
    finally:
        os.umask(mask)
    try:
        end = time.monotonic() + patience
        while not _lock(fd):
            if time.monotonic() > end:
                raise KeeperError(
                    f"cannot wait longer for `{runtime_path()}/{name}`: another process holds it",
                    hint=f"see which: fuser -v {runtime_path()}/{name}",
                )
            time.sleep(_LOOK_AGAIN)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def box_around(directory: int) -> str | None:
    """The name of the box this process stands in, by the records of the keeper; None outside.

    LOOPBOX_NAME says nothing: it may be set by hand, or unset inside.
    """
    with socket.socket() as probe:
        try:
            cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return os.environ.get("LOOPBOX_NAME") or None
    own = int.from_bytes(cookie, sys.byteorder)
    try:
        boxes = os.open("boxes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        for name in os.listdir(boxes):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=boxes)
                with open(fd, encoding="utf-8") as file:
                    if json.load(file).get("cookie") == own:
                        return name
            except (OSError, ValueError, AttributeError):
                continue
    finally:
        os.close(boxes)
    return None


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
    waiting = select.poll()
    waiting.register(reading, select.POLLIN)
    end = time.monotonic() + _PATIENCE
    while waiting.poll(max(0, (end - time.monotonic()) * 1000)):
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        said += chunk
    else:
        os.close(reading)
        raise KeeperError(
            f"cannot start the keeper: it does not say within {_PATIENCE:g} s that it serves",
            hint=f"see its log: {log_path()}",
        )
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
        os.closerange(3, max(os.sysconf("SC_OPEN_MAX"), 65536))
        os.chdir("/")
        # A mask outlives exec(2): with SIGTERM blocked nobody could end the keeper.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        environment = {
            key: value
            for key, value in os.environ.items()
            if key != "LOOPBOX_NAME" and (key in _PYTHON_KEPT or not key.startswith("PYTHON"))
        }
        # -P: the directory the user happens to stand in is not searched for modules.
        os.execve(
            sys.executable,
            [sys.executable, "-P", "-m", "loopbox.keeper", "--ready", "2"],
            environment,
        )
    finally:
        os._exit(127)
