"""The way out, the keeper's side: takes what boxes send, judges it, connects it from the host.

Owns: the connections of boxes to the wide world (TCP here, datagrams in keeper/flows.py), the
ports forwarded to the host's loopback, DNS over TCP, and the account of who went where.
Must never: carry bytes (the relay does), decide (rules/egress.py does), stand in a box.

The box's kernel has already accepted a connection when the keeper hears of it, so a refusal comes
as a reset after connect. It fails closed: what cannot be judged is refused.

Example::

    way_out = WayOut(relay=relay, roam=roamer)
    sockets = await roamer.inside(net, open_way_out)
    await way_out.open(7, net, sockets)
    ...
    way_out.close(7)
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from loopbox.errors import HostError
from loopbox.keeper.dialling import Dial, Target, outcome_of
from loopbox.keeper.dnsstream import serve_queries
from loopbox.keeper.flows import Flows, FlowServices
from loopbox.keeper.ledger import Connection, Ledger
from loopbox.keeper.readiness import Readiness
from loopbox.keeper.relay import Relay
from loopbox.keeper.resolver import Names, Resolver
from loopbox.keeper.upstream import Upstream
from loopbox.kernel.netlink import RouteSocket
from loopbox.kernel.nft import WAY_OUT_PORT
from loopbox.kernel.transparent import (
    NAMESERVER,
    WayOutSockets,
    endpoint_of,
    open_forward,
    open_raw,
    open_way_out,
    reset,
    set_world6,
)
from loopbox.rules.egress import Facts, Verdict, addresses_judged, judge
from loopbox.wire.datagram import Endpoint

__all__ = ["NAMESERVER", "WayOut", "WayOutSockets", "open_way_out"]

log = logging.getLogger("loopbox.wayout")

Result = TypeVar("Result")

CONNECT_SECONDS = 30.0
"""How long the world has to accept a connection."""
MOST_DIALS = 1024
"""Connections of one box being dialled at once; more are reset."""
MOST_STREAMS = 32
"""DNS connections of one box at once."""
_IPV6_SECONDS = 1.0
"""How long an answer to "does the host have IPv6?" is believed."""
_FORWARDED = Verdict(True, "forward", "the port is forwarded to the host")


class Roam(Protocol):
    """What is needed of keeper/roam.py."""

    async def inside(self, net: int, job: Callable[[], Result], /) -> Result: ...


@dataclass(slots=True, eq=False)
class _Box:
    """What the way out keeps of one box."""

    group: int
    netns_fd: int
    """Borrowed; valid until close()."""
    sockets: WayOutSockets | None = None
    flows: Flows | None = None
    names: Names = field(default_factory=dict)
    policy: str = "open"
    forwards: dict[int, list[socket.socket]] = field(default_factory=dict)
    dials: set[Dial] = field(default_factory=set)
    streams: set[asyncio.Task[None]] = field(default_factory=set)
    world6: bool = False
    inodes: frozenset[int] = frozenset()


class WayOut:
    """The way out of every box. Lives on the event loop, in the host's network namespace."""

    def __init__(self, *, relay: Relay, roam: Roam, resolver: Resolver | None = None) -> None:
        self._relay = relay
        self._roam = roam
        self._loop = asyncio.get_running_loop()
        self._route = RouteSocket()
        self._ipv6: tuple[float, bool] = (float("-inf"), False)
        self.resolver = resolver or Resolver(upstream=Upstream(), has_ipv6=lambda: self.has_ipv6)
        self.ledger = Ledger()
        self._boxes: dict[int, _Box] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._readiness = Readiness()
        self._loop.add_reader(relay.ended_fd(), self._settle)

    # -- the lead's side ----------------------------------------------------------------------

    @property
    def has_ipv6(self) -> bool:
        """Whether the host has an IPv6 default route, at most a second ago."""
        asked, known = self._ipv6
        now = self._loop.time()
        if now - asked > _IPV6_SECONDS:
            try:
                known = self._route.has_default_route(6)
            except HostError as error:
                log.warning("%s", error)
                known = False
            self._ipv6 = (now, known)
            for box in self._boxes.values():
                if box.sockets is not None and box.world6 != known:
                    self._start(self._follow_ipv6(box), name="follow the host's IPv6")
        return known

    async def open(self, group: int, netns_fd: int, sockets: WayOutSockets) -> None:
        """Serve a box's way out. The sockets are ours from here on, the descriptor is borrowed."""
        has_ipv6 = self.has_ipv6
        box = self._box(group, netns_fd)
        box.sockets, box.world6 = sockets, sockets.world6
        box.flows = Flows(
            FlowServices(
                judge=functools.partial(self._may_send, box),
                answer=functools.partial(self._answer, box, stream=False),
                open_raw=functools.partial(self._open_raw, box),
            ),
            sockets=sockets,
        )
        self._readiness.accept(sockets.tcp, functools.partial(self._take, box))
        self._readiness.watch(sockets.udp, box.flows.take_datagrams)
        if sockets.log is not None:
            self._readiness.watch(sockets.log, box.flows.take_packets)
        self._count_inodes(box)
        if has_ipv6 != box.world6:
            await self._follow_ipv6(box)

    async def set_forwards(
        self, group: int, netns_fd: int, ports: Iterable[int]
    ) -> dict[int, str | None]:
        """Make exactly these ports of the box's loopback lead to the host's. Idempotent.

        Gives each port's problem, or None where it leads. Works without `open`, too.
        """
        box = self._box(group, netns_fd)
        wanted = dict.fromkeys(ports)
        for port in [port for port in box.forwards if port not in wanted]:
            self._close_forward(box, port)
        problems: dict[int, str | None] = {}
        for port in wanted:
            problems[port] = None
            if port not in box.forwards:
                problems[port] = await self._open_forward(box, port)
        self._count_inodes(box)
        return problems

    def set_names(self, group: int, names: Names) -> None:
        """The box's own names (lower-case, `*.name` allowed) and what they mean inside it."""
        if (box := self._boxes.get(group)) is not None:
            box.names = names

    def set_policy(self, group: int, netns_fd: int, policy: str) -> None:
        """The policy for what the box begins from now on; see rules/egress.POLICIES.

        Works without `open`, too: what is denied is denied from the first connection on.
        """
        self._box(group, netns_fd).policy = policy

    def own_inodes(self, group: int) -> frozenset[int]:
        """The keeper's sockets in the box, which are none of the box's listeners."""
        box = self._boxes.get(group)
        return frozenset() if box is None else box.inodes

    def connections(self, group: int | None = None) -> list[Connection]:
        """Who went where, oldest first."""
        self._settle()
        return self.ledger.records(group)

    def close(self, group: int) -> None:
        """End a box's way out and close all its sockets. The relay's connections are the lead's."""
        box = self._boxes.pop(group, None)
        if box is None:
            return
        for dial in box.dials:
            dial.cancel()
        for task in box.streams:
            task.cancel()
        for port in list(box.forwards):
            self._close_forward(box, port)
        if box.flows is not None:
            box.flows.close()
        if box.sockets is not None:
            for one in (box.sockets.tcp, box.sockets.udp, box.sockets.log):
                if one is not None:
                    self._readiness.unwatch(one)
            box.sockets.close()
        self.resolver.memory.forget(group)

    async def aclose(self) -> None:
        """End all of it."""
        streams = [task for box in self._boxes.values() for task in box.streams]
        for group in list(self._boxes):
            self.close(group)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*streams, *self._tasks, return_exceptions=True)
        self._loop.remove_reader(self._relay.ended_fd())
        self._readiness.close()
        self._route.close()

    def _settle(self) -> None:
        self.ledger.settle(self._relay.ended())

    def _box(self, group: int, netns_fd: int) -> _Box:
        return self._boxes.setdefault(group, _Box(group, netns_fd))

    # -- TCP ----------------------------------------------------------------------------------

    def _take(self, box: _Box, client: socket.socket) -> None:
        """A connection to the wide world: its own name is where it wanted to go."""
        try:
            target = endpoint_of(client.getsockname())
        except OSError:
            client.close()
            return
        if target.port == WAY_OUT_PORT:
            reset(client)  # it called our listener itself: there is nowhere to lead it
            return
        if target.port == 53:
            self._take_stream(box, client)
            return
        connection = self._judge(box, target, "tcp")
        if not connection.verdict.allow:
            reset(client)
            return
        self._dial(box, client, connection, [_target_of(target)])

    def _take_forwarded(self, box: _Box, port: int, client: socket.socket) -> None:
        to = endpoint_of(("127.0.0.1", port))
        connection = self.ledger.note(
            group=box.group, protocol="tcp", to=to, name="localhost", verdict=_FORWARDED
        )
        targets: list[Target] = [
            (socket.AF_INET, ("127.0.0.1", port)),
            (socket.AF_INET6, ("::1", port)),
        ]
        self._dial(box, client, connection, targets)

    def _dial(
        self,
        box: _Box,
        client: socket.socket,
        connection: Connection,
        targets: Sequence[Target],
    ) -> None:
        def done(
            dial: Dial, client: socket.socket, onward: socket.socket | None, failure: int
        ) -> None:
            box.dials.discard(dial)
            if onward is None:
                connection.outcome = outcome_of(failure)
                log.debug("box %d: %s: %s", box.group, connection.to, os.strerror(failure))
                reset(client)
                return
            number = self._relay.join(client.detach(), onward.detach(), group=box.group)
            self.ledger.joined(connection, number)

        if len(box.dials) >= MOST_DIALS:
            connection.outcome = "failed"
            reset(client)
            return
        dial = Dial(client, targets=targets, seconds=CONNECT_SECONDS, done=done)
        box.dials.add(dial)
        dial.start()

    # -- judging ------------------------------------------------------------------------------

    def _judge(self, box: _Box, target: Endpoint, protocol: str) -> Connection:
        """Decide, and write the decision down."""
        name = self.resolver.memory.name_of(box.group, target.address)
        try:
            kinds = tuple(
                self._route.route_type(address) for address in addresses_judged(target.address)
            )
            verdict = judge(
                target.address,
                port=target.port,
                protocol=protocol,
                name=name,
                facts=Facts(kinds),
                policy=box.policy,
            )
        except HostError as error:
            log.warning("refused what could not be judged: %s", error)
            verdict = Verdict(False, "unjudged", error.message)
        return self.ledger.note(
            group=box.group, protocol=protocol, to=target, name=name, verdict=verdict
        )

    def _may_send(self, box: _Box, target: Endpoint, protocol: str) -> bool:
        return self._judge(box, target, protocol).verdict.allow

    # -- DNS ----------------------------------------------------------------------------------

    def _answer(self, box: _Box, query: bytes, *, stream: bool) -> Awaitable[bytes | None]:
        return self.resolver.answer(query, group=box.group, stream=stream, own=box.names)

    def _take_stream(self, box: _Box, client: socket.socket) -> None:
        if len(box.streams) >= MOST_STREAMS:
            reset(client)
            return
        answer = functools.partial(self._answer, box, stream=True)
        task = self._start(serve_queries(client, answer), name="answer queries")
        # Here and not in the coroutine: a task cancelled before its first step never runs it.
        task.add_done_callback(lambda _done: client.close())
        box.streams.add(task)
        task.add_done_callback(box.streams.discard)

    # -- inside the box -----------------------------------------------------------------------

    async def _open_raw(self, box: _Box, version: int) -> socket.socket:
        return await self._roam.inside(box.netns_fd, functools.partial(open_raw, version))

    async def _open_forward(self, box: _Box, port: int) -> str | None:
        """Listen in the box; the problem in words, or None."""
        try:
            opened = await self._roam.inside(box.netns_fd, functools.partial(open_forward, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"a program in the box already listens on port {port}"
            return (error.strerror or str(error)).lower()
        if self._boxes.get(box.group) is not box or port in box.forwards:
            for one in opened:
                one.close()
            return None
        box.forwards[port] = opened
        for one in opened:
            self._readiness.accept(one, functools.partial(self._take_forwarded, box, port))
        return None

    def _close_forward(self, box: _Box, port: int) -> None:
        for one in box.forwards.pop(port):
            self._readiness.unwatch(one)
            one.close()

    async def _follow_ipv6(self, box: _Box) -> None:
        """Give or take the box's IPv6 world, as the host has it or not."""
        box.world6 = wanted = self._ipv6[1]
        try:
            job = functools.partial(set_world6, reachable=wanted)
            await self._roam.inside(box.netns_fd, job)
        except (HostError, OSError) as error:
            log.warning("a box's IPv6 does not follow the host's: %s", error)

    def _count_inodes(self, box: _Box) -> None:
        forwards = (one for listeners in box.forwards.values() for one in listeners)
        own = frozenset(os.fstat(one.fileno()).st_ino for one in forwards)
        box.inodes = own if box.sockets is None else own | box.sockets.inodes

    def _start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("failed to %s", task.get_name(), exc_info=task.exception())


def _target_of(endpoint: Endpoint) -> Target:
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    return family, (str(endpoint.address), endpoint.port)
