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

Life of a client: accepted -> head read -> relay; or -> answered, and left to `farewell`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from loopbox.errors import HostError
from loopbox.keeper.farewell import Farewells, close_with_reset
from loopbox.keeper.hostports import explain_bind, listen_at
from loopbox.keeper.relay import Relay
from loopbox.keeper.shown import ShownBox
from loopbox.kernel.sockets import owner_of
from loopbox.rules import doors, refusals
from loopbox.rules.refusals import Refusal
from loopbox.wire.clienthello import TlsHello
from loopbox.wire.peek import BadHead, HeadReader, HttpHead, HttpPreface, NeedMore

log = logging.getLogger(__name__)

HEAD_SECONDS: Final = 10.0
"""From accept to a complete head, however busily the client sends."""

CLIENT_LIMIT: Final = 1024
"""Clients with unread heads; the oldest gives way."""

ADDRESSES: Final = ("127.0.0.1", "::1")

_ACCEPT_BURST: Final = 64
_READ: Final = 65536
_PAUSE_SECONDS: Final = 0.1
"""Without free descriptors: before the listeners are looked at again."""
_NO_IPV6: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

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
        client_limit: int = CLIENT_LIMIT,
    ) -> None:
        """`shown` gives a box by name, `admits_everyone` says whether any box has no owner."""
        self._relay = relay
        self._diag = diag
        self._owner = owner
        self._directory = directory
        self._shown = shown
        self._admits_everyone = admits_everyone
        self._head_seconds = head_seconds
        self._client_limit = client_limit
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[int, list[_Listener]] = {}
        self._reading: dict[_Client, None] = {}
        """In the order of their deadlines."""
        self._farewells = Farewells(self._loop)
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
        for client in list(self._reading):
            self._reset(client)
        self._farewells.close()
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
                    self._make_room(limit=max(1, len(self._reading) // 2))
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
        self._make_room(limit=self._client_limit)
        self._reading[client] = None
        self._loop.add_reader(connection.fileno(), self._read, client)
        if self._timer is None:
            self._timer = self._loop.call_at(client.deadline, self._check_deadlines)
        # Most clients have sent by now: it saves a round through the loop.
        self._read(client)

    def _is_owner(self, peer: Name, here: Name) -> bool:
        try:
            found = owner_of(self._diag, protocol="tcp", local=peer, remote=here)
        except (HostError, OSError) as error:
            log.warning("cannot find whose connection came to port %d: %s", here[1], error)
            return False
        return found is not None and doors.is_admitted(found.uid, found.inode, owner=self._owner)

    def _make_room(self, *, limit: int) -> None:
        while len(self._reading) >= limit:
            self._reset(next(iter(self._reading)))

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
            self._answer(client, refusals.render(refusals.http2_preface()))
        elif isinstance(verdict, BadHead):
            refusal = refusals.bad_head(verdict.status, verdict.reason)
            render = refusals.render_tls if verdict.is_tls else refusals.render
            self._answer(client, render(refusal))

    def _lead_http(self, client: _Client, head: HttpHead) -> None:
        route = self._route(head.host, client, hops=head.hops)

        def say(refusal: Refusal) -> bytes:
            return refusals.render(refusal, accept=head.accept, method=head.method)

        self._lead(client, route, say)

    def _lead_tls(self, client: _Client, hello: TlsHello) -> None:
        route = self._route(hello.server_name or "", client, hops=0)
        self._lead(client, route, refusals.render_tls)

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
            self._answer(client, say(refusal or refusals.bad_head(400, "this cannot be routed")))
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
            refusal=say(refusals.no_answer(route.name, port)),
        )

    # -- its end ------------------------------------------------------------------------------

    def _answer(self, client: _Client, answer: bytes) -> None:
        self._release(client)
        self._counts["answered"] += 1
        self._farewells.say(client.socket, answer)

    def _turn_away(self, client: _Client) -> None:
        self._counts["foreign"] += 1
        self._reset(client)

    def _release(self, client: _Client) -> None:
        """The client is no longer ours to watch; its socket stays open."""
        self._reading.pop(client, None)
        self._loop.remove_reader(client.socket.fileno())

    def _forget(self, client: _Client) -> None:
        self._release(client)
        client.socket.close()

    def _reset(self, client: _Client) -> None:
        self._release(client)
        close_with_reset(client.socket)

    # -- deadlines ----------------------------------------------------------------------------

    def _check_deadlines(self) -> None:
        """Answer 408 to who is late with a head."""
        self._timer = None
        now = self._loop.time()
        for client in _overdue(self._reading, now):
            if client.reader.buffered[:1] == b"\x16":
                self._forget(client)
            else:
                self._answer(client, refusals.render(refusals.head_timeout(self._head_seconds)))
        first = next(iter(self._reading), None)
        if first is not None:
            self._timer = self._loop.call_at(first.deadline, self._check_deadlines)


def _overdue(clients: Mapping[_Client, None], now: float) -> list[_Client]:
    """Those whose deadline is over; the mapping is in the order of deadlines."""
    found = []
    for client in clients:
        if client.deadline > now:
            break
        found.append(client)
    return found
