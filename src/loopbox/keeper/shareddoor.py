"""The shared door: the host's 127.0.0.1 and ::1, where one port serves every box by name.

Owns: the listeners on both addresses, the clients whose head is not yet read, the answers to
those who name no box. As soon as a box is known the client passes to the relay for good.

Must never: read past the head, change a byte, hand a client to a box it has not named, let a
silent or slow client hold anything for longer than the deadline.

Example::

    doors = SharedDoors(relay=relay, diag=diag, owner=1000, directory=names, shown=boxes.get)
    doors.open(3000)
    doors.problems                      # {3000: "127.0.0.1:3000 is in use on the host: …"}

A port is opened on both addresses or on none: with only ::1 ours, clients of `localhost` would
miss the program that holds 127.0.0.1. Each client's uid is asked of the kernel (sock_diag) before
a byte of it is read; a foreign one is reset, unless some box admits everyone: then its head is
read, and it may reach such a box alone.

Life of a client: accepted -> head read -> relay; or -> answered -> lingering (its input thrown
away until it ends, since closing over unread input sends a reset that can overtake the answer).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from loopbox.errors import HostError
from loopbox.keeper.relay import Relay
from loopbox.keeper.shown import ShownBox, is_admitted
from loopbox.kernel.sockets import ListeningSocket, listening, owner_of
from loopbox.rules import doors
from loopbox.rules.doors import Refusal
from loopbox.wire.peek import BadHead, HeadReader, HttpHead, HttpPreface, NeedMore, TlsHello

log = logging.getLogger(__name__)

HEAD_SECONDS: Final = 10.0
"""From accept to a complete head, however busily the client sends."""

LINGER_SECONDS: Final = 2.0
CLIENT_LIMIT: Final = 1024
"""Clients with unread heads; the oldest gives way. The lingering ones have the same limit."""

ADDRESSES: Final = ("127.0.0.1", "::1")

_BACKLOG: Final = 4096
_ACCEPT_BURST: Final = 64
_READ: Final = 65536
_LINGER_BYTES: Final = 1 << 20
"""Thrown away of a client that was answered; more is a reset."""
_PAUSE_SECONDS: Final = 0.1
"""Without free descriptors: before the listeners are looked at again."""
_RESET: Final = struct.pack("ii", 1, 0)

Name = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Listener:
    """One listening socket of the shared door."""

    socket: socket.socket
    address: str
    port: int


@dataclass(slots=True, eq=False)
class _Client:
    """An accepted client that the relay has not got yet."""

    socket: socket.socket
    port: int
    deadline: float
    is_owner: bool
    """False for another user's client while some box admits everyone."""
    reader: HeadReader = field(default_factory=HeadReader)
    thrown_away: int = 0


@dataclass(frozen=True, slots=True)
class SharedDoorStatistics:
    """Counters since the start, and what there is now."""

    ports: int
    accepted: int
    passed_on: int
    foreign: int
    """Clients of other users, reset."""
    answered: int
    """Clients that got a refusal in words."""
    waiting: int
    """Clients whose head is not complete, now."""


class SharedDoors:
    """All shared doors of the keeper. Lives in the event loop's thread."""

    def __init__(
        self,
        *,
        relay: Relay,
        diag: socket.socket,
        owner: int,
        directory: Callable[[], Mapping[str, str]],
        shown: Callable[[str], ShownBox | None],
        admits_everyone: Callable[[], bool] = lambda: False,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        """`shown` gives a box by name, `admits_everyone` says whether any box has no owner."""
        self._relay = relay
        self._diag = diag
        self._owner = owner
        self._directory = directory
        self._shown = shown
        self._admits_everyone = admits_everyone
        self._head_seconds = head_seconds
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[int, list[_Listener]] = {}
        self._reading: dict[_Client, None] = {}
        """In the order of their deadlines."""
        self._lingering: dict[_Client, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._counts = dict.fromkeys(("accepted", "passed_on", "foreign", "answered"), 0)
        self._errors: dict[int, tuple[str, int | None]] = {}
        self.problems: dict[int, str] = {}
        """For each wanted port that could not be opened: why, and what helps."""

    @property
    def statistics(self) -> SharedDoorStatistics:
        """The counters now."""
        return SharedDoorStatistics(
            ports=len(self._listeners), waiting=len(self._reading), **self._counts
        )

    def is_open(self, port: int) -> bool:
        """Whether the door serves this port."""
        return port in self._listeners

    # -- listeners ----------------------------------------------------------------------------

    def open(self, port: int) -> bool:
        """Serve the port on both addresses; False, with `problems`, when it cannot be had."""
        if port in self._listeners:
            return True
        made: list[_Listener] = []
        for address in ADDRESSES:
            try:
                made.append(_Listener(listen_at(address, port), address, port))
            except OSError as error:
                if address == "::1" and made and error.errno in _NO_IPV6:
                    continue
                for listener in made:
                    listener.socket.close()
                self._explain(error, address, port)
                return False
        self._listeners[port] = made
        self.problems.pop(port, None)
        self._errors.pop(port, None)
        if self._pause is None:
            self._watch(made)
        return True

    def close(self, port: int) -> None:
        """Serve the port no more, and forget why it could not be served."""
        self.problems.pop(port, None)
        self._errors.pop(port, None)
        for listener in self._listeners.pop(port, ()):
            self._loop.remove_reader(listener.socket.fileno())
            listener.socket.close()

    def close_all(self) -> None:
        """Close every door, and reset the clients that are not the relay's yet."""
        for port in list(self._listeners):
            self.close(port)
        for client in [*self._reading, *self._lingering]:
            self._reset(client)
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._timer = self._pause = None

    def _explain(self, error: OSError, address: str, port: int) -> None:
        """Note the problem; who holds the port is looked up once for each kind of error."""
        kind = (address, error.errno)
        if self._errors.get(port) == kind:
            return
        self._errors[port] = kind
        self.problems[port] = explain_bind(error, diag=self._diag, address=address, port=port)
        log.info("shared door: %s", self.problems[port])

    def _watch(self, listeners: list[_Listener]) -> None:
        for listener in listeners:
            self._loop.add_reader(listener.socket.fileno(), self._accept, listener)

    def _pause_accepting(self) -> None:
        """No descriptor is free: leave the listeners alone for a moment, or they spin."""
        if self._pause is None:
            for listeners in self._listeners.values():
                for listener in listeners:
                    self._loop.remove_reader(listener.socket.fileno())
            self._pause = self._loop.call_later(_PAUSE_SECONDS, self._resume_accepting)

    def _resume_accepting(self) -> None:
        self._pause = None
        for listeners in self._listeners.values():
            self._watch(listeners)

    # -- a client comes -----------------------------------------------------------------------

    def _accept(self, listener: _Listener) -> None:
        for _ in range(_ACCEPT_BURST):
            try:
                connection, peer = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("shared door %d: %s", listener.port, error.strerror)
                    self._make_room(self._reading, limit=max(1, len(self._reading) // 2))
                    self._pause_accepting()
                    return
                # The client has gone while it waited (ECONNABORTED and such).
                continue
            connection.setblocking(False)
            self._counts["accepted"] += 1
            self._greet(connection, peer[:2], listener)

    def _greet(self, connection: socket.socket, peer: Name, listener: _Listener) -> None:
        is_owner = self._is_owner(peer, (listener.address, listener.port))
        client = _Client(
            socket=connection,
            port=listener.port,
            deadline=self._loop.time() + self._head_seconds,
            is_owner=is_owner,
        )
        if not is_owner and not self._admits_everyone():
            self._turn_away(client)
            return
        self._make_room(self._reading, limit=CLIENT_LIMIT)
        self._reading[client] = None
        self._loop.add_reader(connection.fileno(), self._read, client)
        self._set_timer(client.deadline)
        # Most clients have sent by now: it saves a round through the loop.
        self._read(client)

    def _is_owner(self, peer: Name, here: Name) -> bool:
        try:
            found = owner_of(self._diag, protocol="tcp", local=peer, remote=here)
        except (HostError, OSError) as error:
            log.warning("cannot find whose connection came to port %d: %s", here[1], error)
            return False
        return found is not None and is_admitted(found.uid, found.inode, owner=self._owner)

    def _make_room(self, clients: dict[_Client, None], *, limit: int) -> None:
        while len(clients) >= limit and clients:
            self._reset(next(iter(clients)))

    # -- its head -----------------------------------------------------------------------------

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self._forget(client)
            return
        if not data:
            # It ends before it said what it wants: nobody is left to answer to.
            self._forget(client)
            return
        verdict = client.reader.feed(data)
        if isinstance(verdict, NeedMore):
            return
        if isinstance(verdict, HttpHead):
            self._lead_http(client, verdict)
        elif isinstance(verdict, TlsHello):
            self._lead_tls(client, verdict)
        elif isinstance(verdict, HttpPreface):
            self._answer(client, doors.render(doors.http2_preface()))
        elif isinstance(verdict, BadHead):
            refusal = doors.bad_head(verdict.status, verdict.reason)
            render = doors.render_tls if verdict.is_tls else doors.render
            self._answer(client, render(refusal))

    def _lead_http(self, client: _Client, head: HttpHead) -> None:
        route = self._route(head.host, client, hops=head.hops)

        def say(refusal: Refusal) -> bytes:
            return doors.render(refusal, accept=head.accept, method=head.method)

        self._lead(client, route, say)

    def _lead_tls(self, client: _Client, hello: TlsHello) -> None:
        route = self._route(hello.server_name or "", client, hops=0)
        self._lead(client, route, doors.render_tls)

    def _route(self, host: str, client: _Client, *, hops: int) -> doors.Route:
        exact = host.removesuffix(doors.ENDING)
        if exact != host and self._shown(exact) is not None:
            # No longer name can match: the whole directory need not be built.
            return doors.route(host, {exact: "up"}, hops=hops)
        return doors.route(host, self._directory(), hops=hops, port=client.port)

    def _lead(self, client: _Client, route: doors.Route, say: Callable[[Refusal], bytes]) -> None:
        """Hand the client to the relay, or tell it why not."""
        found = self._shown(route.name) if route.name is not None else None
        if not client.is_owner and (found is None or found.box.owner is not None):
            # Another user's: it may know of the boxes that admit everyone, and of nothing else.
            self._turn_away(client)
            return
        refusal = route.refusal
        port = None
        if route.name is not None and refusal is None:
            ports = found.tcp if found is not None else {}
            port = doors.port_behind(client.port, ports)
            if port is None:
                refusal = doors.nothing_listens(route.name, client.port, ports=ports)
        if refusal is not None or found is None or port is None or route.name is None:
            self._answer(client, say(refusal or doors.bad_head(400, "this cannot be routed")))
            return
        head = client.reader.buffered
        self._release(client)
        self._counts["passed_on"] += 1
        self._relay.dial(
            client.socket.detach(),
            group=found.box.group,
            netns_fd=found.box.netns_fd,
            targets=found.tcp[port],
            head=head,
            refusal=say(doors.no_answer(route.name, port)),
        )

    # -- its end ------------------------------------------------------------------------------

    def _answer(self, client: _Client, answer: bytes) -> None:
        """Say it, end our side, and let the client read it before the socket closes."""
        self._release(client)
        self._counts["answered"] += 1
        try:
            client.socket.send(answer)
            client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            client.socket.close()
            return
        self._make_room(self._lingering, limit=CLIENT_LIMIT)
        client.deadline = self._loop.time() + LINGER_SECONDS
        self._lingering[client] = None
        self._loop.add_reader(client.socket.fileno(), self._throw_away, client)
        self._set_timer(client.deadline)

    def _throw_away(self, client: _Client) -> None:
        try:
            data = client.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.thrown_away += len(data)
        if not data:
            self._forget(client)
        elif client.thrown_away > _LINGER_BYTES:
            self._reset(client)

    def _turn_away(self, client: _Client) -> None:
        self._counts["foreign"] += 1
        self._reset(client)

    def _release(self, client: _Client) -> None:
        """The client is no longer ours to watch; its socket stays open."""
        self._reading.pop(client, None)
        self._lingering.pop(client, None)
        self._loop.remove_reader(client.socket.fileno())

    def _forget(self, client: _Client) -> None:
        self._release(client)
        client.socket.close()

    def _reset(self, client: _Client) -> None:
        self._release(client)
        try:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass
        client.socket.close()

    # -- deadlines ----------------------------------------------------------------------------

    def _set_timer(self, when: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._check_deadlines)
        elif when < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(when, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Answer 408 to who is late with a head, and end the lingering whose time is over."""
        self._timer = None
        now = self._loop.time()
        for client in _overdue(self._reading, now):
            if client.reader.buffered[:1] == b"\x16":
                self._forget(client)
            else:
                self._answer(client, doors.render(doors.head_timeout(self._head_seconds)))
        for client in _overdue(self._lingering, now):
            self._forget(client)
        for clients in (self._reading, self._lingering):
            first = next(iter(clients), None)
            if first is not None:
                self._set_timer(first.deadline)


def _overdue(clients: Mapping[_Client, None], now: float) -> list[_Client]:
    """Those whose deadline is over; the mapping is in the order of deadlines."""
    found = []
    for client in clients:
        if client.deadline > now:
            break
        found.append(client)
    return found


_NO_IPV6: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen_at(address: str, port: int) -> socket.socket:
    """A non-blocking TCP listener; raises OSError as bind(2) does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # So that connections of an earlier keeper in TIME_WAIT do not hold the port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def explain_bind(
    error: OSError, *, diag: socket.socket, address: str, port: int, protocol: str = "tcp"
) -> str:
    """Why the port could not be opened, with the host's program that holds it if there is one."""
    holders: list[ListeningSocket] = []
    if error.errno == errno.EADDRINUSE:
        try:
            found = listening(diag, protocols=(protocol,))
            holders = [one for one in found if one.port == port and _covers(one, address)]
        except (HostError, OSError) as problem:
            log.debug("cannot find who holds port %d: %s", port, problem)
    return doors.bind_problem(error, at=address, port=port, holders=holders)


def _covers(listener: ListeningSocket, address: str) -> bool:
    """Whether a listener takes what is sent to this address."""
    if not listener.address.is_unspecified:
        return str(listener.address) == address
    return listener.family in ("dual", "ipv6" if ":" in address else "ipv4")
