"""UDP from the host into boxes: one host socket per port, one flow per client.

Owns: the host's UDP sockets at the boxes' addresses, the flows of their clients, and the sockets
in the boxes that stand for these clients.

Must never: let another user's datagram in, keep a flow that nobody uses, wait for a peer. What
does not fit is dropped, as UDP allows.

Example::

    doors = UdpDoors(roam=roam, diag=diag)
    doors.open(box, 5353, target=("127.0.0.1", 5353))      # raises OSError, as bind(2) does
    doors.close(box.name, 5353)

A flow is a client's address at one door. Its first datagram costs a look-up of the sender's uid
and a hop into the box for a socket of its own there, connected to the listener: answers come from
there alone, and the server in the box tells its clients apart by their ports. The uid is looked up
again when the client was silent for a second, since another user's program may hold its port by
then; also before the server's answers go on.
A client that closes its socket before the keeper has looked cannot be told from another user's
and is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loopbox.errors import HostError
from loopbox.keeper.shown import DoorBox, Roam
from loopbox.kernel.sockets import owner_of
from loopbox.rules.doors import is_admitted

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 60.0
"""After so long without a datagram in either direction a flow ends."""

FLOW_LIMIT: Final = 1024
"""Flows of all doors together; each holds a descriptor. The one unused longest gives way."""

TRUST_SECONDS: Final = 1.0
"""A pause after which a client's uid is looked up again."""

_WAITING_LIMIT: Final = 64
"""Datagrams kept while a flow's socket in the box is being made."""

_BURST: Final = 64
"""Datagrams taken off one socket before the event loop has its turn."""

_DATAGRAM: Final = 65536
"""Bytes; no UDP payload is longer."""

Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Door:
    """One UDP port of one box on the host."""

    box: DoorBox
    port: int
    host: socket.socket
    target: Address
    flows: dict[Address, _Flow] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Flow:
    """One client of one door."""

    door: _Door
    client: Address
    used: float
    """Loop time of the last datagram in either direction."""
    trusted: float
    """Loop time at which the client's uid was last known to be right: looked up, or heard from
    within `TRUST_SECONDS` of that or of the datagram before."""
    inside: socket.socket | None = None
    """In the box, connected to the listener; None while it is being made."""
    waiting: list[bytes] = field(default_factory=list)
    is_closed: bool = False


class UdpDoors:
    """All UDP doors of the keeper. Lives in the event loop's thread, in the host's namespace."""

    def __init__(
        self,
        *,
        roam: Roam,
        diag: socket.socket,
        idle_seconds: float = IDLE_SECONDS,
        flow_limit: int = FLOW_LIMIT,
        trust_seconds: float = TRUST_SECONDS,
    ) -> None:
        """`diag` is a sock_diag socket of the host's namespace; borrowed."""
        self._roam = roam
        self._diag = diag
        self._idle_seconds = idle_seconds
        self._flow_limit = flow_limit
        self._trust_seconds = trust_seconds
        self._loop = asyncio.get_running_loop()
        self._doors: dict[tuple[str, int], _Door] = {}
        self._flows: OrderedDict[_Flow, None] = OrderedDict()
        """The one unused longest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def flow_count(self) -> int:
        """Flows now."""
        return len(self._flows)

    def ports(self, name: str) -> set[int]:
        """The ports open for a box."""
        return {port for box, port in self._doors if box == name}

    def open(self, box: DoorBox, port: int, *, target: Address) -> None:
        """Open the box's port on the host, or lead it elsewhere if it is open already.

        Flows that exist keep the target they have. Raises OSError, as bind(2) does.
        """
        key = (box.name, port)
        if key in self._doors:
            self._doors[key].target = target
            return
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            host.bind((str(box.address), port))
        except OSError:
            host.close()
            raise
        door = _Door(box=box, port=port, host=host, target=target)
        self._doors[key] = door
        self._loop.add_reader(host.fileno(), self._take, door)

    def close(self, name: str, port: int) -> None:
        """Close a box's port with all its flows; nothing happens if it is not open."""
        door = self._doors.pop((name, port), None)
        if door is None:
            return
        for flow in list(door.flows.values()):
            self._end(flow)
        self._loop.remove_reader(door.host.fileno())
        door.host.close()

    async def aclose(self) -> None:
        """Close everything and wait for the jobs under way."""
        for name, port in list(self._doors):
            self.close(name, port)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- client to box ------------------------------------------------------------------------

    def _take(self, door: _Door) -> None:
        now = self._loop.time()
        for _ in range(_BURST):
            try:
                data, client = door.host.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error about an answer of ours: it says nothing about the next datagram.
                log.debug("udp door %s:%d: %s", door.box.name, door.port, error)
                continue
            flow = door.flows.get(client)
            is_stale = flow is None or now - flow.trusted > self._trust_seconds
            if is_stale and not self._is_admitted(door, client):
                continue
            if flow is None:
                flow = self._begin(door, client, now)
            flow.trusted = now
            self._pass_in(flow, data, now)

    def _is_admitted(self, door: _Door, client: Address) -> bool:
        if door.box.owner is None:
            return True
        here = (str(door.box.address), door.port)
        try:
            found = owner_of(self._diag, protocol="udp", local=client, remote=here)
        except (HostError, OSError) as error:
            log.warning("cannot find whose datagram came to %s: %s", door.box.name, error)
            return False
        return found is not None and is_admitted(found.uid, found.inode, owner=door.box.owner)

    def _begin(self, door: _Door, client: Address, now: float) -> _Flow:
        while len(self._flows) >= self._flow_limit:
            self._end(next(iter(self._flows)))
        flow = _Flow(door=door, client=client, used=now, trusted=now)
        door.flows[client] = flow
        self._flows[flow] = None
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_seconds, self._expire)
        name = f"udp flow into {door.box.name}:{door.port}"
        task = self._loop.create_task(self._connect(flow), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flow

    async def _connect(self, flow: _Flow) -> None:
        """Make the flow's socket in the box and send what has waited for it."""
        door = flow.door
        try:
            inside = await self._roam.inside(door.box.netns_fd, _connected(door.target))
        except OSError as error:
            log.warning("cannot reach UDP %d in box %s: %s", door.port, door.box.name, error)
            self._end(flow)
            return
        if flow.is_closed:
            inside.close()
            return
        flow.inside = inside
        self._loop.add_reader(inside.fileno(), self._answer, flow)
        for data in flow.waiting:
            _send(inside, data)
        flow.waiting.clear()

    def _pass_in(self, flow: _Flow, data: bytes, now: float) -> None:
        self._touch(flow, now)
        if flow.inside is not None:
            _send(flow.inside, data)
        elif len(flow.waiting) < _WAITING_LIMIT:
            flow.waiting.append(data)

    # -- box to client ------------------------------------------------------------------------

    def _answer(self, flow: _Flow) -> None:
        assert flow.inside is not None
        now = self._loop.time()
        if now - flow.trusted > self._trust_seconds:
            # A server that streams must not go on to whoever has the client's port next.
            if not self._is_admitted(flow.door, flow.client):
                self._end(flow)
                return
            flow.trusted = now
        self._touch(flow, now)
        for _ in range(_BURST):
            try:
                data = flow.inside.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                # The server is gone (ECONNREFUSED); it may be back for the next datagram.
                continue
            try:
                flow.door.host.sendto(data, flow.client)
            except OSError as error:
                log.debug("udp answer from %s dropped: %s", flow.door.box.name, error)

    # -- ending -------------------------------------------------------------------------------

    def _touch(self, flow: _Flow, now: float) -> None:
        flow.used = now
        if flow in self._flows:
            self._flows.move_to_end(flow)

    def _expire(self) -> None:
        """End the flows that are idle too long, and look again when the next may be."""
        self._timer = None
        now = self._loop.time()
        while self._flows:
            flow = next(iter(self._flows))
            rest = flow.used + self._idle_seconds - now
            if rest > 0:
                self._timer = self._loop.call_later(rest, self._expire)
                return
            self._end(flow)

    def _end(self, flow: _Flow) -> None:
        flow.is_closed = True
        self._flows.pop(flow, None)
        if flow.door.flows.get(flow.client) is flow:
            del flow.door.flows[flow.client]
        if flow.inside is not None:
            self._loop.remove_reader(flow.inside.fileno())
            flow.inside.close()
            flow.inside = None


def _connected(target: Address) -> Callable[[], socket.socket]:
    """A job for the inside of a box: a UDP socket connected to its listener."""

    def connect() -> socket.socket:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            made.connect(target)
        except OSError:
            made.close()
            raise
        return made

    return connect


def _send(inside: socket.socket, data: bytes) -> None:
    """Send or drop. The first error after an ICMP answer is that answer's: then once more."""
    for _ in range(2):
        try:
            inside.send(data)
        except BlockingIOError:
            return
        except OSError:
            continue
        return
