"""The client's end of the control socket: find the keeper, start it, ask it, enter a box.

Owns: connecting (who is asked is checked: directory, owner, peer uid), starting the keeper when
there is none, one request and its reply, and the step into a box.
Must never: import anything heavy at the top. This is the hot path of `loopbox run`: a bare
interpreter takes 12 ms, and `socket`, `json` or `argparse` would each add 4 to 10 more.

Example::

    with connect() as keeper:
        reply, fds = keeper.request({"verb": "show", "name": "shop"})
"""

from __future__ import annotations

import _socket
import os
import sys

from loopbox import __version__
from loopbox.errors import (
    BoxError,
    ConfigError,
    DeadlineError,
    HostError,
    KeeperError,
    LoopboxError,
    UsageError,
)
from loopbox.places import open_runtime_directory, runtime_path
from loopbox.wire.control import PROTOCOL, SOCKET_NAME, FrameError, build, feed

_SO_PEERCRED = 17
_SCM_RIGHTS = 1
_MOST_FDS = 16
_START_LOCK = "start.lock"
_GONE = "keeper-gone"

_ERRORS: dict[str, type[LoopboxError]] = {
    kind.__name__: kind
    for kind in (UsageError, ConfigError, HostError, BoxError, KeeperError, DeadlineError)
}


class Keeper:
    """One connection to the keeper. Not thread-safe; close it, or use it as a context."""

    def __init__(self, sock: _socket.socket, *, may_renew: bool = False) -> None:
        self._sock = sock
        self._rest = b""
        self._may_renew = may_renew
        """Whether a keeper that goes before its first answer may be asked again (it was just
        ending itself, idle, when this connection came)."""

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def fileno(self) -> int:
        """The connection's descriptor, to wait on."""
        return self._sock.fileno()

    def request(self, fields: dict[str, str]) -> tuple[dict[str, str], list[int]]:
        """Ask and wait for the answer. The caller closes the descriptors that come along.

        Raises the LoopboxError the keeper answered with, or KeeperError when it went away.
        """
        try:
            message = build({"protocol": PROTOCOL, "version": __version__, **fields})
        except ValueError as error:
            raise UsageError(f"cannot ask the keeper: {error}") from error
        try:
            return self._ask(message)
        except KeeperError as error:
            if not self._may_renew or error.code != _GONE:
                raise
        self.close()
        renewed = connect()
        self._sock, self._may_renew = renewed._sock, False
        return self._ask(message)

    def _ask(self, message: bytes) -> tuple[dict[str, str], list[int]]:
        try:
            self._sock.sendall(message)
            return self.receive()
        except OSError as error:
            raise KeeperError(
                f"cannot reach the keeper: {error.strerror or error}",
                hint="try again: the next command starts a new one",
                code=_GONE,
            ) from error

    def receive(self) -> tuple[dict[str, str], list[int]]:
        """The next reply, where one request has several."""
        fds: list[int] = []
        while True:
            try:
                fields, self._rest = feed(self._rest)
            except FrameError as error:
                raise KeeperError(f"cannot understand the keeper: {error}") from error
            if fields is not None:
                break
            data, ancillary, _flags, _address = self._sock.recvmsg(
                262144, _socket.CMSG_SPACE(4 * _MOST_FDS)
            )
            for level, kind, payload in ancillary:
                if level == _socket.SOL_SOCKET and kind == _SCM_RIGHTS:
                    for at in range(0, len(payload) - 3, 4):
                        fd = int.from_bytes(payload[at : at + 4], sys.byteorder)
                        os.set_inheritable(fd, False)
                        fds.append(fd)
            if not data:
                raise KeeperError(
                    "cannot finish: the keeper went away",
                    hint="try again: the next command starts a new one",
                    code=_GONE,
                )
            self._may_renew = False
            self._rest += data
        if fields.get("ok") != "1":
            for fd in fds:
                os.close(fd)
            raise _error_of(fields)
        return fields, fds


def _error_of(fields: dict[str, str]) -> LoopboxError:
    kind = _ERRORS.get(fields.get("kind", ""), KeeperError)
    error = kind(
        fields.get("message", "the keeper failed"),
        hint=fields.get("hint") or None,
        code=fields.get("error") or None,
    )
    if fields.get("exit", "").isdigit():
        error.exit_status = int(fields["exit"])
    return error


def connect(*, start: bool = True, recover: bool = False) -> Keeper:
    """A connection to this user's keeper.

    When there is none, one is started if `start` is true, or if `recover` is and a keeper before
    it (killed, or stopped) left boxes.

    Raises KeeperError when none runs (and `start` is false), when it cannot start, or when what
    answers is not ours; HostError when this machine forbids boxes.
    """
    try:
        directory = open_runtime_directory(create=start)
    except FileNotFoundError:
        raise _no_keeper() from None
    try:
        keeper = _dial(directory)
        start = start or (recover and _has_boxes(directory))
        if keeper is None and start:
            keeper = _start(directory)
        if keeper is None:
            raise _no_keeper()
        keeper._may_renew = start
        return keeper
    finally:
        os.close(directory)


def _has_boxes(directory: int) -> bool:
    try:
        boxes = os.open("boxes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return bool(os.listdir(boxes))
    finally:
        os.close(boxes)


def _no_keeper() -> KeeperError:
    return KeeperError("cannot reach the keeper: none is running", code="no-keeper")


def _dial(directory: int) -> Keeper | None:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # Through the descriptor: no link can be put in the way, and no path is too long.
        sock.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise KeeperError(
            f"cannot reach the keeper at `{runtime_path()}/{SOCKET_NAME}`: {error.strerror}"
        ) from error
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid != os.geteuid():
        sock.close()
        raise KeeperError(
            f"cannot trust the keeper at `{runtime_path()}/{SOCKET_NAME}`: it runs as uid {uid}"
        )
    return Keeper(sock)


def _start(directory: int) -> Keeper:
    from loopbox import starting  # noqa: PLC0415  (once per keeper's life)

    box = starting.box_around(directory)
    if box is not None:
        raise KeeperError(
            f"cannot start the keeper from inside a box: this is `{box}`",
            hint="run any loopbox command outside, such as: loopbox ls",
            code="nested",
        )
    with starting.only_one(directory, _START_LOCK):
        keeper = _dial(directory)
        if keeper is None:
            starting.start_keeper()
            keeper = _dial(directory)
    if keeper is None:
        raise KeeperError(
            "cannot reach the keeper: it started and went away again",
            hint=f"see its log: {starting.log_path()}",
        )
    return keeper


def namespace_inode(kind: str) -> int:
    """The inode of one of this process's namespaces (`net`, `user`)."""
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def enter(fields: dict[str, str], fds: list[int]) -> None:
    """Step into the box whose descriptors came with an `enter` reply, for good.

    This thread's network, mount and (rootless) user namespace change; working directory, uid,
    terminal and environment stay. Raises HostError when the kernel refuses.
    """
    from loopbox.kernel.syscalls import (  # noqa: PLC0415
        CLONE_NEWNET,
        CLONE_NEWNS,
        CLONE_NEWUSER,
        setns,
    )

    named = dict(zip(fields.get("fds", "").split(","), fds, strict=False))
    try:
        if os.fstat(named["net"]).st_ino == namespace_inode("net"):
            return
        user = named.get("user")
        if user is not None and os.fstat(user).st_ino == namespace_inode("user"):
            raise HostError(
                f"cannot enter box `{fields.get('name', '')}` from inside another box",
                hint="run it from a shell outside",
                code="nested",
            )
        here, path = _where_we_stand()
        fds += [here] if here >= 0 else []
        if user is not None:
            setns(user, CLONE_NEWUSER)
        setns(named["net"], CLONE_NEWNET)
        setns(named["mnt"], CLONE_NEWNS)  # which moves to its root directory
        _return_to(path, here)
    except OSError as error:
        raise HostError(
            f"cannot enter box `{fields.get('name', '')}`: {error.strerror}",
            hint="loopbox doctor says what this machine allows",
        ) from error
    finally:
        for fd in fds:
            os.close(fd)


def _where_we_stand() -> tuple[int, str]:
    """The working directory's descriptor (-1: it may not be searched) and path ("": it is gone)."""
    try:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        here = -1
    try:
        return here, os.getcwd()
    except OSError:
        return here, ""


def _return_to(path: str, here: int) -> None:
    """Stand in that directory again. Raises OSError when that cannot be: a program that began
    elsewhere would read and write elsewhere."""
    try:
        os.chdir(path)
    except OSError:
        if here < 0:
            raise
        # Deleted, or below a directory this user may not search: the program stays in it.
        os.fchdir(here)
