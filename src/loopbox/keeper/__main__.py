"""The keeper's process: locks, user namespace, log; then `daemon.serve`.

Owns: all that must happen before the first thread starts (a user namespace can only be entered by
a single-threaded process, setns(2)), and telling the starter how it went.
Must never: start twice (the lock `keeper.lock` is held for life), write to a terminal.

Example::

    python -m loopbox.keeper --ready 5
"""

from __future__ import annotations

import gc

# Until it serves, what is made stays (modules, boxes taken over): to look through it again and
# again for garbage would be a fifth of the start.
gc.disable()

import asyncio
import errno
import fcntl
import logging
import logging.handlers
import math
import os
import resource
import sys
import time
from pathlib import Path

from loopbox import __version__
from loopbox.errors import HostError, KeeperError, LoopboxError
from loopbox.keeper.daemon import Setup, serve
from loopbox.keeper.records import Records
from loopbox.keeper.recovery import open_owner
from loopbox.kernel.namespaces import (
    demand_capabilities,
    enter_new_user_namespace,
    open_namespace,
)
from loopbox.kernel.projects import read_user_settings
from loopbox.kernel.sockets import open_diag
from loopbox.kernel.syscalls import CLONE_NEWUSER, setns
from loopbox.places import config_path, open_runtime_directory, runtime_path, state_path
from loopbox.settings import UserSettings
from loopbox.wire.control import build

log = logging.getLogger("loopbox.keeper")

_LOCK = "keeper.lock"
_LOCK_PATIENCE = 10.0
"""Seconds to wait for a keeper that is ending: with thousands of boxes that takes a while."""
_LOG_BYTES = 1_000_000
_LOG_FILES = 2


def main(arguments: list[str]) -> int:
    """Run the keeper; `--ready 2`: standard error is where the starter waits for the word."""
    ready_fd = int(arguments[arguments.index("--ready") + 1]) if "--ready" in arguments else -1
    # Whatever the first command's own mask was: what is for others to read is made so (files.py).
    os.umask(0o077)
    # Until the log is open nothing is logged: on stderr it would come before the starter's word.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        _run(ready_fd)
    except LoopboxError as error:
        log.error("%s", error.message)
        _tell(ready_fd, error)
        return 1
    except OSError as error:
        log.exception("the keeper failed")
        _tell(ready_fd, _told(error))
        return 1
    except Exception as error:
        log.exception("the keeper failed")
        _tell(ready_fd, KeeperError(f"cannot start the keeper: {type(error).__name__}: {error}"))
        return 1
    return 0


def _run(ready_fd: int) -> None:
    _raise_limits()
    directory = open_runtime_directory(create=True)
    lock = _take_lock(directory)
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    _open_log(Path(state_path()))
    settings, problems = _read_settings()
    diag, relay_diag = open_diag(), open_diag()
    user_namespace = None
    if os.geteuid() == 0:
        demand_capabilities()
    else:
        user_namespace = _enter_user_namespace(directory)
    setup = Setup(
        runtime_fd=directory,
        runtime=Path(runtime_path()),
        state=Path(state_path()),
        user_namespace=user_namespace,
        diag=diag,
        relay_diag=relay_diag,
        settings=settings,
        problems=problems,
        idle_seconds=_idle_seconds(settings),
    )
    asyncio.run(serve(setup, ready=lambda: _begin(ready_fd)))


def _begin(ready_fd: int) -> None:
    """It serves. What is there now will live as long as the process: no collection looks at it."""
    _tell(ready_fd, None)
    gc.freeze()
    gc.enable()


def _take_lock(directory: int) -> int:
    """The lock that this keeper holds for life; waits for one that is just ending."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    end = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise KeeperError(
                    "cannot start the keeper: one that does not answer holds the lock",
                    hint=f"see who: fuser -v {runtime_path()}/{_LOCK}",
                ) from error
            time.sleep(0.005)
        else:
            return lock


def _idle_seconds(settings: UserSettings) -> float:
    text = os.environ.get("LOOPBOX_IDLE", "")
    try:
        seconds = float(text) if text else settings.idle_seconds
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        log.warning("LOOPBOX_IDLE is %r, which is no number of seconds; ignored", text)
        return settings.idle_seconds
    return seconds


def _told(error: OSError) -> LoopboxError:
    """The words for what this machine refused while the keeper started."""
    where = f" at `{os.fsdecode(error.filename)}`" if error.filename else ""
    places = f"{runtime_path()} {state_path()}"
    hint = {
        errno.ENOSPC: f"free some space: df -h {places}",
        errno.EDQUOT: f"free some space, the quota is used up: df -h {places}",
        errno.EROFS: "set XDG_RUNTIME_DIR to a directory that can be written",
        errno.EMFILE: "allow more open files: ulimit -Hn",
    }.get(error.errno or 0)
    return HostError(f"cannot start the keeper: {error.strerror or error}{where}", hint=hint)


def _tell(ready_fd: int, error: LoopboxError | None) -> None:
    """Send the starter one message and let go of the pipe: `ok=1`, or why not."""
    if ready_fd < 0:
        return
    fields = {"ok": "1", "version": __version__}
    if error is not None:
        fields = {
            "ok": "0",
            "kind": "HostError" if isinstance(error, HostError) else "KeeperError",
            "error": error.code,
            "message": error.message,
            "hint": error.hint or "",
        }
    try:
        os.write(ready_fd, build(fields))
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, ready_fd)
        os.close(null)
    except OSError:
        pass  # the starter has gone: nobody is left to tell


def _enter_user_namespace(directory: int) -> int:
    """Join the user namespace of boxes that outlived an earlier keeper, else make one."""
    records = Records(runtime=Path(f"/proc/self/fd/{directory}"), state=Path(state_path()))
    found = open_owner(records.all())
    if found is not None:
        setns(found, CLONE_NEWUSER)
        return found
    enter_new_user_namespace()
    return open_namespace("user", "self")


def _read_settings() -> tuple[UserSettings, tuple[str, ...]]:
    """The user's settings; a typo there must not take every box away, but each run says so."""
    try:
        return read_user_settings(Path(config_path())), ()
    except LoopboxError as error:
        problem = f"{error.message}; the defaults are used until it is mended and the keeper ended"
        log.error("%s", problem)
        return UserSettings(), (problem,)


def _raise_limits() -> None:
    """The first command's own limits (`ulimit -t`, `-f`, `-n`) were not meant for the keeper."""
    for limit in (
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_CPU,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_AS,
        resource.RLIMIT_DATA,
    ):
        _soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))


class _Log(logging.handlers.RotatingFileHandler):
    """The standard one looks at the file system twice a line; that was half of a line's cost."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  (inherited name)
        """Whether the file has grown past its bound, to within one line."""
        del record
        return self.stream is not None and self.stream.tell() >= self.maxBytes


def _open_log(directory: Path) -> None:
    logging.raiseExceptions = False  # a full disk must not fill stderr, nor end the keeper
    handler: logging.Handler
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _Log(
            directory / "keeper.log", maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8"
        )
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if os.environ.get("LOOPBOX_DEBUG") else logging.INFO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
