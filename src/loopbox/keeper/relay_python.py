"""The relay's loop in pure Python: the twin of src/native/relay.c, for machines without it.

Owns: one thread with one edge-triggered epoll loop that accepts from doors, checks whose process
calls, dials inside a box's network namespace and moves bytes both ways with half-close, reset and
back-pressure carried across. The names and the order are those of relay.c: read them side by side.

Must never: look at the bytes; touch a descriptor it was not given; behave otherwise than the
compiled core (tests/contract/test_relay.py holds both to one suite).

Longer than a module should be because it mirrors relay.c one to one.

Example (see relay.py for the public face)::

    core = Core(home_netns_fd, diag_fd)
    core.start()
    core.add_door(1, listener_fd, (group, netns_fd), pack_targets((("127.0.0.1", 80),)), 1000)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

COPY_BYTES = 64 * 1024
BULK_AFTER = 4
BULK_LEAST = 32 * 1024
SPLICE_BYTES = 4096 * 1024
WIDE_PIPES = 8
WIDE_PIPE_BYTES = 1024 * 1024
PIPE_BYTES = 256 * 1024
PIPES = 32
ROUNDS = 16
EVENTS = 256
RETRY_S = 0.05
STARVED_S = 10.0
LINGER_S = 2.0
LINGER_BYTES = 1024 * 1024
ENDED = 65536
COMPLAINTS = 64
BURST = 64

LEFT, RIGHT = 0, 1
_IN = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, at once
_SPLICE = getattr(os, "SPLICE_F_MOVE", 1) | getattr(os, "SPLICE_F_NONBLOCK", 2)
_TARGET = struct.Struct("=HH16s")
_CLONE_NEWNET = 0x40000000

# sock_diag(7): nlmsghdr; inet_diag_req_v2 = family, protocol, ext, pad, states, then the socket id
# (ports and addresses in network order, interface, cookie); inet_diag_msg starts with
# family, state, timer, retrans, the id, then expires, rqueue, wqueue, uid, inode.
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=IHHII BBBBI 2s2s16s16sIII")
_ANSWER = struct.Struct("=IHHII BBBB 2s2s16s16sIII IIIII")
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NO_COOKIE = 0xFFFFFFFF
_ANY_STATE = 0xFFFFFFFF
_TCP_LISTEN = 10
_LO = 1  # lo is 1 in every namespace; 0 would miss clients bound to it


class State(Enum):
    """Where a connection is in its life."""

    GONE = auto()
    DIALLING = auto()
    STARVED = auto()
    CARRYING = auto()
    LINGERING = auto()


class _Group:
    __slots__ = ("bytes", "number", "open", "places")

    def __init__(self, number: int) -> None:
        self.number = number
        self.open = 0
        self.bytes = 0
        self.places: dict[int, int] = {}
        """Descriptor of each namespace, by inode; pinned until drop_group."""


class _Door:
    __slots__ = ("burst", "complained", "group", "number", "owner", "place", "sock", "targets")

    def __init__(self, number: int, sock: socket.socket, group: _Group, place: int) -> None:
        self.number = number
        self.sock = sock
        self.group = group
        self.place = place
        self.owner = -1
        self.burst = 1
        self.complained = False
        self.targets: list[tuple[int, tuple[str, int]]] = []


class _Flow:
    __slots__ = (
        "blocked",
        "bulk",
        "burst",
        "eof",
        "finished",
        "full_reads",
        "in_pipe",
        "pending",
        "pipe",
        "unspliceable",
    )

    def __init__(self) -> None:
        self.pending: memoryview | None = None
        self.pipe: tuple[int, int] | None = None
        self.in_pipe = self.burst = self.full_reads = 0
        self.bulk = self.unspliceable = self.blocked = self.eof = self.finished = False


class _End:
    __slots__ = ("failed", "hangup", "readable", "registered", "sock", "urgent", "wants_out")

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock
        self.readable = self.hangup = self.failed = self.urgent = False
        self.wants_out = self.registered = False


class _Conn:
    __slots__ = (
        "bytes",
        "deadline",
        "end",
        "flow",
        "give_up",
        "group",
        "id",
        "lingered",
        "next_target",
        "place",
        "refusal",
        "reported",
        "state",
        "targets",
    )

    def __init__(self, group: _Group, left: socket.socket, right: socket.socket | None) -> None:
        self.group = group
        self.end = (_End(left), _End(right))
        self.flow = (_Flow(), _Flow())
        self.bytes = [0, 0]
        self.state = State.DIALLING
        self.id = self.place = self.next_target = self.lingered = 0
        self.targets: list[tuple[int, tuple[str, int]]] = []
        self.refusal = b""
        self.reported = False
        self.deadline = self.give_up = 0.0


def _stand_in(fd: int) -> None:
    """setns(2) of the calling thread into a network namespace. Raises OSError."""
    if hasattr(os, "setns"):  # 3.12
        os.setns(fd, _CLONE_NEWNET)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")


def _copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _stream(fd: int) -> socket.socket:
    """A socket object around an adopted descriptor, non-blocking, without Nagle."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _push(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not TCP: nothing was held back
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tune(sock: socket.socket) -> socket.socket:
    """No Nagle and no clever congestion control for a socket on loopback: see relay.c."""
    with contextlib.suppress(OSError):  # not TCP: nothing to tune
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return sock


def unpack_targets(packed: bytes) -> list[tuple[int, tuple[str, int]]]:
    """(family, sockaddr) pairs from `relay.pack_targets`. Raises ValueError when there is none."""
    targets = []
    for family, port, address in _TARGET.iter_unpack(packed):
        size = 4 if family == socket.AF_INET else 16
        text = socket.inet_ntop(family, address[:size])
        targets.append((family, (text, socket.ntohs(port))))
    if not targets:
        raise ValueError("a door leads to at least one target")
    return targets


def _build_question(
    family: int, client: tuple[str, int], door: tuple[str, int], sequence: int
) -> bytes:
    """The exact lookup of the socket whose local end is `client` and remote end `door`."""
    ports = [struct.pack("!H", end[1]) for end in (client, door)]
    addresses = [
        socket.inet_pton(family, end[0].partition("%")[0]).ljust(16, b"\0")
        for end in (client, door)
    ]
    return _ASK.pack(
        *(_ASK.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence, 0),
        *(family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE),
        *(*ports, *addresses, _LO, _NO_COOKIE, _NO_COOKIE),
    )


def _is_owner(asked: bytes, reply: bytes, owner: int) -> bool:
    """Is the answer the very socket asked for, alive, and the owner's?

    A lookup falls back to a listener on the client's port (not the client); an orphan or
    time-wait socket reads as uid 0 with no inode, whoever it belonged to.
    """
    if len(reply) < _ANSWER.size or _HEADER.unpack_from(reply)[1] != _SOCK_DIAG_BY_FAMILY:
        return False
    seen = _ANSWER.unpack_from(reply)
    state, ports, uid, inode = seen[6], seen[9:11], seen[19], seen[20]
    return (
        state != _TCP_LISTEN
        and ports == _ASK.unpack(asked)[10:12]
        and uid == owner
        and not (uid == 0 and inode == 0)
    )


class Core:
    """The Python core behind `relay.CoreRelay`; method for method `_relay.Core`."""

    def __init__(self, home_netns_fd: int, diag_fd: int) -> None:
        self._home_fd = _copy(home_netns_fd)
        self._home = os.fstat(self._home_fd).st_ino
        self._diag = socket.socket(fileno=_copy(diag_fd))
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN | select.EPOLLET)
        self._lock = threading.Lock()
        self._queue: deque[tuple[Callable[[], None], tuple[int, ...]]] = deque()
        """Commands with the descriptors they take over."""
        self._thread: threading.Thread | None = None
        self._stopped = self._leaving = False
        self._last_id = self._accepted = self._refused = self._failed = 0
        self._bytes = [0, 0]
        self._groups: dict[int, _Group] = {}
        self._doors: dict[int, _Door] = {}
        self._by_fd: dict[int, _Door | tuple[_Conn, int]] = {}
        self._conns: set[_Conn] = set()
        self._ready: dict[_Conn, None] = {}
        self._timed: dict[_Conn, None] = {}
        self._paused: dict[_Door, None] = {}
        self._retry_at = 0.0
        self._closing: list[socket.socket] = []
        self._standing = 0
        self._pipes: list[tuple[int, int]] = []
        self._pipe_count = 0
        self._no_pipes = self._woken = False
        self._scratch = bytearray(COPY_BYTES)
        self._view = memoryview(self._scratch)
        self._sequence = 0
        self._ended: deque[tuple[int, int, int, bool]] = deque(maxlen=ENDED)
        self._complaints: deque[tuple[str, int, int]] = deque(maxlen=COMPLAINTS)

    # ---- connections -----------------------------------------------------------------------------

    def _complain(self, what: str, number: int, error: int | None) -> None:
        self._complaints.append((what, number, error or 0))

    def _new_conn(self, group: _Group, left: socket.socket, right: socket.socket | None) -> _Conn:
        c = _Conn(group, left, right)
        self._conns.add(c)
        group.open += 1
        return c

    def _close_end(self, e: _End, *, reset: bool) -> None:
        """Forget an end now, close it after this batch: its number must not be reused in it."""
        sock, e.sock = e.sock, None
        if sock is None:
            return
        if e.registered:
            self._epoll.unregister(sock)  # a child between fork and exec may hold a copy
            self._by_fd.pop(sock.fileno(), None)
            e.registered = False
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._closing.append(sock)

    def _drop_pipe(self, f: _Flow) -> None:
        if f.pipe is not None:
            os.close(f.pipe[0])
            os.close(f.pipe[1])
            f.pipe = None
            self._pipe_count -= 1

    def _close_conn(self, c: _Conn, *, reset: bool) -> bool:
        """End both sockets and forget the connection; returns False for the steps to return."""
        self._ready.pop(c, None)
        self._timed.pop(c, None)
        if c.reported:
            self._ended.append((c.id, c.bytes[LEFT], c.bytes[RIGHT], reset))
            os.eventfd_write(self._ended_fd, 1)
        for e, f in zip(c.end, c.flow, strict=True):
            self._close_end(e, reset=reset)
            self._drop_pipe(f)
            f.pending = None
        c.state = State.GONE
        self._conns.discard(c)
        c.group.open -= 1
        if self._paused:
            self._retry_at = 0.0
        if not self._conns:
            self._close_idle_pipes()
        return False

    def _close_idle_pipes(self) -> None:
        while self._pipes:
            for fd in self._pipes.pop():
                os.close(fd)
            self._pipe_count -= 1
        self._no_pipes = False

    def _bury(self) -> None:
        while self._closing:
            self._closing.pop().close()

    def _watch(self, c: _Conn, side: int, *, out: bool) -> bool:
        """Register an end; EPOLLOUT only once a send fell short (see relay.c). False: it died."""
        e = c.end[side]
        if e.sock is None or (e.registered and (e.wants_out or not out)):
            return True
        mask = _IN | select.EPOLLOUT if out else _IN
        try:
            if e.registered:
                self._epoll.modify(e.sock, mask)
            else:
                self._epoll.register(e.sock, mask)
        except OSError as problem:
            self._complain("cannot watch a connection", e.sock.fileno(), problem.errno)
            return False
        self._by_fd[e.sock.fileno()] = (c, side)
        e.registered = True
        e.wants_out = out
        return True

    # ---- flows: each step returns False when it closed the connection ----------------------------

    def _count(self, c: _Conn, side: int, size: int) -> None:
        c.bytes[side] += size
        self._bytes[side] += size
        c.group.bytes += size

    def _receiver_lost(self, c: _Conn, side: int) -> bool:
        """Pass on what the lost receiver said before it went (an early "413"), then reset both."""
        back, reader, writer = c.flow[1 - side], c.end[1 - side].sock, c.end[side].sock
        if not (back.blocked or back.pending or back.in_pipe or back.eof):
            for _ in range(ROUNDS):
                try:
                    n = reader.recv_into(self._scratch) if reader else 0
                    sent = writer.send(self._view[:n], socket.MSG_NOSIGNAL) if n and writer else 0
                except OSError:
                    break
                self._count(c, 1 - side, sent)
                if sent != n or n == 0:
                    break
        return self._close_conn(c, reset=True)

    def _block(self, c: _Conn, side: int) -> bool:
        c.flow[side].blocked = True
        return self._watch(c, 1 - side, out=True) or self._close_conn(c, reset=True)

    def _take_pipe(self, f: _Flow) -> bool:
        if f.pipe is not None:
            return True
        if self._pipes:
            f.pipe = self._pipes.pop()
            return True
        if self._no_pipes or self._pipe_count == PIPES:
            return False
        try:
            pair = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        size = WIDE_PIPE_BYTES if self._pipe_count < WIDE_PIPES else PIPE_BYTES
        try:
            fcntl.fcntl(pair[1], fcntl.F_SETPIPE_SZ, size)
        except OSError:
            if fcntl.fcntl(pair[1], fcntl.F_GETPIPE_SZ) < COPY_BYTES:  # over the user's budget
                os.close(pair[0])
                os.close(pair[1])
                self._no_pipes = True
                return False
        self._pipe_count += 1
        f.pipe = pair
        return True

    def _give_pipe(self, f: _Flow) -> None:
        if f.pipe is not None and not f.in_pipe:
            self._pipes.append(f.pipe)
            f.pipe = None

    def _flush_pipe(self, c: _Conn, side: int) -> bool:
        f, receiver = c.flow[side], c.end[1 - side].sock
        while f.in_pipe and f.pipe is not None and receiver is not None:
            try:
                n = os.splice(f.pipe[0], receiver.fileno(), f.in_pipe, flags=_SPLICE)
            except BlockingIOError:
                return self._block(c, side)
            except OSError:
                return self._receiver_lost(c, side)
            f.in_pipe -= n
            self._count(c, side, n)
        self._give_pipe(f)
        return True

    def _flush_pending(self, c: _Conn, side: int) -> bool:
        f, receiver = c.flow[side], c.end[1 - side].sock
        while f.pending is not None and receiver is not None:
            try:
                n = receiver.send(f.pending, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return self._block(c, side)
            except OSError:
                return self._receiver_lost(c, side)
            self._count(c, side, n)
            f.pending = f.pending[n:] if n < len(f.pending) else None
        return True

    def _move_by_copy(self, c: _Conn, side: int) -> bool:
        """One recv and one send; when the read that would say "empty" is skipped: see relay.c."""
        f, source, receiver = c.flow[side], c.end[side], c.end[1 - side].sock
        assert source.sock is not None and receiver is not None
        try:
            n = source.sock.recv_into(self._scratch)
        except BlockingIOError:
            source.readable = False
            if source.hangup:  # there was no end after all: let go of what was held back for it
                _push(receiver)
            return True
        except OSError:
            return self._close_conn(c, reset=True)
        if n == 0:
            f.eof = True
            return True
        if n < COPY_BYTES:
            f.full_reads = 0
            if not source.hangup and not source.urgent:
                source.readable = False
        else:
            f.full_reads += 1
            if f.full_reads >= BULK_AFTER and not source.urgent and not f.unspliceable:
                f.bulk = True
                f.full_reads = f.burst = 0
        # The last words leave in one segment with the FIN that follows them: see relay.c.
        last = source.hangup and not (source.failed or source.urgent) and n < COPY_BYTES
        try:
            sent = receiver.send(
                self._view[:n], socket.MSG_NOSIGNAL | (socket.MSG_MORE if last else 0)
            )
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._receiver_lost(c, side)
        self._count(c, side, sent)
        if sent == n:
            return True
        f.pending = memoryview(bytes(self._view[sent:n]))
        return self._block(c, side)

    def _move_by_splice(self, c: _Conn, side: int) -> bool:
        f, source = c.flow[side], c.end[side]
        assert source.sock is not None and f.pipe is not None
        try:
            n = os.splice(source.sock.fileno(), f.pipe[1], SPLICE_BYTES, flags=_SPLICE)
        except BlockingIOError:  # the pipe was empty, so it is the socket that has no more
            source.readable = False
            f.bulk = f.burst >= BULK_LEAST
            f.burst = 0
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                return self._close_conn(c, reset=True)
            f.bulk = False
            f.unspliceable = True
        else:
            if n > 0:
                f.in_pipe = n
                f.burst += n
                return self._flush_pipe(c, side)
            f.eof = True
        self._give_pipe(f)
        return True

    def _finish_flow(self, c: _Conn, side: int) -> bool:
        c.flow[side].finished = True
        if c.flow[1 - side].finished:
            return self._close_conn(c, reset=False)
        receiver = c.end[1 - side].sock
        try:
            if receiver is not None:
                receiver.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was reset: its own event will say so
        return True

    def _flush(self, c: _Conn, side: int) -> bool:
        """Pass on what earlier steps had to keep."""
        f = c.flow[side]
        if f.in_pipe and not self._flush_pipe(c, side):
            return False
        return f.pending is None or f.blocked or self._flush_pending(c, side)

    def _pump(self, c: _Conn, side: int) -> bool:
        """Move what can be moved from `side` to the other, at most ROUNDS times."""
        f, source = c.flow[side], c.end[side]
        if f.blocked:
            return True
        if not self._flush(c, side):
            return False
        rounds = ROUNDS
        while source.readable and not f.eof and not f.blocked:
            if rounds == 0:
                self._ready[c] = None
                return True
            rounds -= 1
            by_splice = f.bulk and self._take_pipe(f)
            if not (self._move_by_splice if by_splice else self._move_by_copy)(c, side):
                return False
        if f.eof and not f.finished and not f.blocked:
            return self._finish_flow(c, side)
        return True

    # ---- dialling --------------------------------------------------------------------------------

    def _enter(self, fd: int, inode: int) -> bool:
        if self._standing == inode:
            return True
        try:
            _stand_in(fd)
        except OSError as problem:
            self._complain("cannot enter a network namespace", fd, problem.errno)
            return False
        self._standing = inode
        return True

    def _start_carrying(self, c: _Conn) -> bool:
        self._timed.pop(c, None)
        c.state = State.CARRYING
        c.refusal = b""
        c.end[LEFT].readable = True
        if not self._watch(c, RIGHT, out=c.flow[LEFT].pending is not None):
            return self._close_conn(c, reset=True)
        if not self._pump(c, LEFT):
            return False
        if c.flow[RIGHT].pending is not None and not self._pump(c, RIGHT):
            return False
        return self._watch(c, LEFT, out=c.flow[RIGHT].blocked) or self._close_conn(c, reset=True)

    def _refuse(self, c: _Conn) -> None:
        """Nothing answered: say so, and let the client read it before the socket goes."""
        self._failed += 1
        c.flow[LEFT].pending = None
        client = c.end[LEFT].sock
        if not c.refusal or client is None:
            self._close_conn(c, reset=True)
            return
        try:
            client.send(c.refusal, socket.MSG_NOSIGNAL)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already: the event or the deadline closes it
        c.state = State.LINGERING
        c.deadline = time.monotonic() + LINGER_S
        self._timed[c] = None
        if not self._watch(c, LEFT, out=False):
            self._close_conn(c, reset=True)

    def _linger(self, c: _Conn) -> None:
        client = c.end[LEFT].sock
        while client is not None:
            try:
                n = client.recv_into(self._scratch)
            except BlockingIOError:
                return
            except OSError:
                n = -1
            c.lingered += max(n, 0)
            if n <= 0 or c.lingered > LINGER_BYTES:
                self._close_conn(c, reset=n != 0)
                return

    def _starve(self, c: _Conn) -> None:
        now = time.monotonic()
        if c.state is not State.STARVED:
            c.give_up = now + STARVED_S
        c.state = State.STARVED
        c.deadline = now + RETRY_S
        self._timed[c] = None

    def _dial(self, c: _Conn) -> None:
        """Try the targets from c.next_target on (the second connect: see relay.c)."""
        while c.next_target < len(c.targets):
            family, address = c.targets[c.next_target]
            if not self._enter(c.group.places[c.place], c.place):
                break
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as problem:
                if problem.errno in _SHORTAGE:
                    self._starve(c)
                    return
                c.next_target += 1
                continue
            sock.setblocking(False)
            _tune(sock)
            result = sock.connect_ex(address)
            if result == errno.EINPROGRESS:
                result = sock.connect_ex(address)
            c.end = (c.end[LEFT], _End(sock))
            if result in (0, errno.EISCONN):
                self._start_carrying(c)
                return
            if result in (errno.EALREADY, errno.EINPROGRESS):
                c.state = State.DIALLING
                self._timed.pop(c, None)
                if not (self._watch(c, RIGHT, out=True) and self._watch(c, LEFT, out=False)):
                    self._close_conn(c, reset=True)
                return
            self._close_end(c.end[RIGHT], reset=False)
            c.next_target += 1
        self._refuse(c)

    def _on_dial_event(self, c: _Conn) -> None:
        e = c.end[RIGHT]
        if e.sock is None:
            return
        error = e.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error:
            try:
                e.sock.getpeername()
            except OSError:
                if not e.failed and not e.hangup:
                    return
            else:
                if self._start_carrying(c) and e.readable:
                    self._pump(c, RIGHT)
                return
        self._close_end(e, reset=False)
        c.next_target += 1
        self._dial(c)

    # ---- accepting -------------------------------------------------------------------------------

    def _admits(self, client: socket.socket, peer: tuple[str, int], owner: int) -> bool:
        """Exact sock_diag(7) lookup of the client's own socket; anything unclear is a no."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        try:
            ask = _build_question(client.family, peer, client.getsockname(), self._sequence)
            self._diag.sendto(ask, socket.MSG_DONTWAIT, (0, 0))
            while True:
                reply = self._diag.recv(4096, socket.MSG_DONTWAIT)
                if _HEADER.unpack_from(reply)[3] == self._sequence:
                    return _is_owner(ask, reply, owner)
        except OSError as problem:
            self._complain("cannot ask whose connection it is", client.fileno(), problem.errno)
            return False

    def _pause_door(self, d: _Door, error: int | None) -> None:
        self._epoll.modify(d.sock, 0)
        self._paused[d] = None
        self._retry_at = time.monotonic() + RETRY_S
        if not d.complained:
            self._complain("cannot accept for now at a door", d.number, error)
        d.complained = True

    def _resume_doors(self) -> None:
        for d in self._paused:
            self._epoll.modify(d.sock, select.EPOLLIN)
        self._paused.clear()

    def _turn_away(self, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._closing.append(client)

    def _welcome(self, d: _Door, client: socket.socket, peer: tuple[str, int]) -> None:
        self._accepted += 1
        if d.owner >= 0 and not self._admits(client, peer, d.owner):
            self._refused += 1
            self._turn_away(client)
            return
        client.setblocking(False)
        c = self._new_conn(d.group, client, None)
        c.place = d.place
        c.targets = d.targets
        self._dial(c)

    def _on_door_event(self, d: _Door) -> None:
        """Doors are level-triggered; in a burst twice as many are taken each time.

        Commands go first: whoever connects after retarget_door has returned is led anew.
        """
        for taken in range(d.burst):
            if self._queue:
                return
            try:
                client, peer = d.sock.accept()
            except BlockingIOError:
                d.burst = max(taken, 1)
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as problem:  # EMFILE, ENFILE, ENOBUFS, ENOMEM …
                self._pause_door(d, problem.errno)
                return
            d.complained = False
            self._welcome(d, client, peer)
        d.burst = min(d.burst * 2, BURST)

    # ---- groups, doors and commands --------------------------------------------------------------

    def _group(self, number: int) -> _Group:
        if number not in self._groups:
            self._groups[number] = _Group(number)
        return self._groups[number]

    def _place(self, group: _Group, netns_fd: int) -> int:
        """Keep the namespace's descriptor, or close it when the group has it; returns the inode."""
        inode = os.fstat(netns_fd).st_ino
        if inode in group.places:
            os.close(netns_fd)
        else:
            group.places[inode] = netns_fd
        return inode

    def _remove_door(self, number: int) -> None:
        d = self._doors.pop(number, None)
        if d is None:
            return
        self._paused.pop(d, None)
        self._epoll.unregister(d.sock)
        del self._by_fd[d.sock.fileno()]
        d.sock.close()

    def _add_door(
        self, number: int, fd: int, place: tuple[int, int], targets: bytes, owner: int
    ) -> None:
        self._remove_door(number)
        g = self._group(place[0])
        inode = self._place(g, place[1])
        d = _Door(number, _tune(_stream(fd)), g, inode)
        d.owner = owner
        d.targets = unpack_targets(targets)
        self._epoll.register(d.sock, select.EPOLLIN)
        self._by_fd[d.sock.fileno()] = d
        self._doors[number] = d

    def _retarget_door(self, number: int, targets: bytes) -> None:
        if number in self._doors:
            self._doors[number].targets = unpack_targets(targets)

    def _adopt_client(
        self, fd: int, place: tuple[int, int], targets: bytes, head: bytes, refusal: bytes
    ) -> None:
        g = self._group(place[0])
        inode = self._place(g, place[1])
        c = self._new_conn(g, _tune(_stream(fd)), None)
        c.place = inode
        c.targets = unpack_targets(targets)
        c.refusal = refusal
        c.flow[LEFT].pending = memoryview(head) if head else None
        self._dial(c)

    def _adopt_pair(
        self, number: int, left_fd: int, right_fd: int, group: int, heads: tuple[bytes, bytes]
    ) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, right_fd)
            left = _stream(left_fd)
            undo.pop_all()
            undo.callback(left.close)
            right = _stream(right_fd)
            undo.pop_all()
        c = self._new_conn(self._group(group), left, right)
        c.id = number
        c.reported = True
        for f, head in zip(c.flow, heads, strict=True):
            f.pending = memoryview(head) if head else None
        self._start_carrying(c)

    def _drop_group(self, number: int, inode: int) -> None:
        g = self._groups.pop(number, None)
        if g is not None:
            for c in [c for c in self._conns if c.group is g]:
                self._close_conn(c, reset=True)
            for d in [d for d in self._doors.values() if d.group is g]:
                self._remove_door(d.number)
            for place, fd in g.places.items():
                if self._standing == place:
                    self._enter(self._home_fd, self._home)
                os.close(fd)
        if inode and self._standing == inode:
            self._enter(self._home_fd, self._home)

    def _obey_all(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass
        while True:
            with self._lock:
                if not self._queue:
                    return
                command, fds = self._queue.popleft()
            try:
                command()
            except (OSError, ValueError) as problem:  # not a socket, say: the caller's slip
                number = problem.errno if isinstance(problem, OSError) else errno.EINVAL
                self._complain("cannot adopt a descriptor", fds[0] if fds else -1, number)

    # ---- the loop --------------------------------------------------------------------------------

    def _on_conn_event(self, c: _Conn, side: int, events: int) -> None:
        e = c.end[side]
        e.readable |= bool(events & ~select.EPOLLOUT)
        e.hangup |= bool(events & _HANGUP)
        e.failed |= bool(events & select.EPOLLERR)
        if events & select.EPOLLPRI and not e.urgent and e.sock is not None:
            e.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            e.urgent = True  # the urgency is lost, the byte is not
        if c.state is State.CARRYING:
            from_here, to_here = c.flow[side], c.flow[1 - side]
            if e.failed and (from_here.eof or from_here.blocked):
                self._close_conn(c, reset=True)  # no read will tell: it is over, or must wait
                return
            if e.readable and not self._pump(c, side):
                return
            if events & select.EPOLLOUT:
                to_here.blocked = False
                self._pump(c, 1 - side)
        elif c.state is State.DIALLING:
            if side == RIGHT:
                self._on_dial_event(c)
            elif e.failed:
                self._close_conn(c, reset=True)
        elif c.state is State.LINGERING:
            self._linger(c)

    def _on_event(self, fd: int, events: int) -> None:
        if fd == self._wake_fd:
            self._woken = True
            return
        known = self._by_fd.get(fd)
        if isinstance(known, _Door):
            if known not in self._paused:
                self._on_door_event(known)
        elif known is not None:
            self._on_conn_event(*known, events)

    def _run_ready(self) -> None:
        turn, self._ready = self._ready, {}
        for c in turn:
            if c.state is State.CARRYING and self._pump(c, LEFT):
                self._pump(c, RIGHT)

    def _run_timers(self) -> None:
        now = time.monotonic()
        if self._paused and self._retry_at <= now:
            self._resume_doors()
        for c in [c for c in self._timed if c.deadline <= now]:
            if c.state is State.LINGERING:
                self._close_conn(c, reset=True)
            elif c.give_up <= now:
                self._refuse(c)
            else:
                self._dial(c)

    def _patience(self) -> float:
        if self._ready:
            return 0
        return RETRY_S if self._timed or self._paused else -1

    def _run(self) -> None:
        while not self._leaving:
            for fd, events in self._epoll.poll(self._patience(), EVENTS):
                self._on_event(fd, events)
            if self._ready:
                self._run_ready()
            if self._woken:
                self._woken = False
                self._obey_all()
            if self._timed or self._paused:
                self._run_timers()
            if self._closing:
                self._bury()
        for c in list(self._conns):
            self._close_conn(c, reset=True)
        for number in list(self._doors):
            self._remove_door(number)
        self._bury()

    # ---- the public face -------------------------------------------------------------------------

    def _post(self, command: Callable[[], None], *fds: int) -> None:
        """Queue a command; after stop, close the descriptors that came with it."""
        with self._lock:
            if not self._stopped:
                self._queue.append((command, fds))
                os.eventfd_write(self._wake_fd, 1)
                return
        for fd in fds:
            os.close(fd)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError the second time."""
        if self._thread is not None or self._stopped:
            raise RuntimeError("a relay starts once")
        self._thread = threading.Thread(target=self._run, name="loopbox relay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Reset and close all it owns, join the thread."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = self._leaving = True
            os.eventfd_write(self._wake_fd, 1)
        if self._thread is not None:
            self._thread.join()
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        for g in self._groups.values():
            for fd in g.places.values():
                os.close(fd)
        self._groups.clear()
        self._close_idle_pipes()
        self._epoll.close()
        self._diag.close()
        for fd in (self._home_fd, self._wake_fd, self._ended_fd):
            os.close(fd)
        self._ended_fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_complaints"):  # built to the end
            self.stop()

    def add_door(
        self, door: int, fd: int, place: tuple[int, int], targets: bytes, owner: int, /
    ) -> None:
        """Open or replace a door; owner -1 is anyone."""
        kept = (place[0], _copy(place[1]))
        self._post(lambda: self._add_door(door, fd, kept, targets, owner), fd, kept[1])

    def retarget_door(self, door: int, targets: bytes, /) -> None:
        """Lead connections accepted from now on elsewhere."""
        self._post(lambda: self._retarget_door(door, targets))

    def remove_door(self, door: int, /) -> None:
        """Close the listener."""
        self._post(lambda: self._remove_door(door))

    def dial(
        self, fd: int, place: tuple[int, int], targets: bytes, head: bytes, refusal: bytes, /
    ) -> None:
        """Adopt an accepted client."""
        kept = (place[0], _copy(place[1]))
        self._post(lambda: self._adopt_client(fd, kept, targets, head, refusal), fd, kept[1])

    def join(
        self, left_fd: int, right_fd: int, group: int, to_right: bytes, to_left: bytes, /
    ) -> int:
        """Adopt two connected sockets; returns the connection's id."""
        with self._lock:
            self._last_id += 1
            number = self._last_id
        self._post(
            lambda: self._adopt_pair(number, left_fd, right_fd, group, (to_right, to_left)),
            left_fd,
            right_fd,
        )
        return number

    def drop_group(self, group: int, netns_fd: int, /) -> None:
        """Forget a group; netns_fd -1 is none."""
        inode = os.fstat(netns_fd).st_ino if netns_fd >= 0 else 0
        self._post(lambda: self._drop_group(group, inode))

    def counters(self) -> tuple[int, int, int, int, int, int, list[tuple[int, int, int]]]:
        """(open, accepted, refused, failed, in, out, [(group, open, bytes)])."""
        groups = [(g.number, g.open, g.bytes) for g in list(self._groups.values())]
        totals = (len(self._conns), self._accepted, self._refused, self._failed)
        return (*totals, self._bytes[LEFT], self._bytes[RIGHT], groups)

    def ended(self) -> list[tuple[int, int, int, bool]]:
        """(id, bytes_in, bytes_out, reset) of joined connections since the last call."""
        if self._ended_fd >= 0:
            try:
                os.eventfd_read(self._ended_fd)
            except BlockingIOError:
                pass
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def ended_fd(self) -> int:
        """An eventfd, ready when `ended` has something."""
        return self._ended_fd

    def complaints(self) -> list[tuple[str, int, int]]:
        """(what, number, errno) since the last call."""
        return [self._complaints.popleft() for _ in range(len(self._complaints))]
