"""A box's datagrams to the wide world: DNS to the resolver, UDP flow by flow, pings.

Owns: what arrives at a box's transparent UDP socket and its NFLOG socket, the host's sockets that
carry it on, the idle flows' end, and the packets that bring replies and refusals back.
Must never: wait; decide who may go where; touch TCP.

A flow is one client end and one destination; it has a socket of its own on the host, connected,
so that only the destination's datagrams come back. Replies go into the box as whole IP packets
from the original destination, by a raw socket: nothing in the box is bound, so a server there may
use any port, and later datagrams of a flow keep arriving where the first did. What is refused is
answered with an ICMP error, so that programs fail at once.

Example::

    flows = Flows(FlowServices(...), group=7, sockets=sockets)
    flows.take_datagrams()            # whenever sockets.udp is readable
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from loopbox.kernel.nft import WAY_OUT_PORT
from loopbox.kernel.transparent import WayOutSockets, endpoint_of, original_target
from loopbox.wire.datagram import (
    ICMP,
    ICMP6,
    LARGEST_UDP,
    Echo,
    Endpoint,
    Packet,
    build_echo_reply,
    build_echo_request,
    build_packet,
    build_udp,
    build_unreachable,
    parse_echo,
    parse_echo_reply,
    parse_logged,
    parse_packet,
)

log = logging.getLogger("loopbox.wayout")

Address = IPv4Address | IPv6Address

IDLE_SECONDS = 120.0
"""A flow without datagrams either way is forgotten (RFC 4787 REQ-5: not before 2 minutes)."""
MOST_FLOWS = 512
"""Per box; the one unused for longest makes room."""
MOST_QUERIES = 256
"""DNS queries of one box under way; more are dropped, as a full socket buffer would."""
MOST_WAITING = 256  # packets, for the box's raw socket to be made
_SWEEP_SECONDS = 30.0
_BATCH = 64
"""Datagrams taken in one go, so that one box cannot keep the loop from the others."""
_ANCILLARY = socket.CMSG_SPACE(28)
_REASONS = {
    errno.ECONNREFUSED: "port",
    errno.EHOSTUNREACH: "host",
    errno.ENETUNREACH: "host",
    errno.EACCES: "prohibited",
    errno.EPERM: "prohibited",
}


@dataclass(frozen=True, slots=True)
class FlowServices:
    """What flows need of the keeper."""

    judge: Callable[[Endpoint, str], bool]
    """May this box go there by this protocol? Called once per flow; it also writes the log."""
    answer: Callable[[bytes], Awaitable[bytes | None]]
    """The resolver's answer to one query."""
    open_raw: Callable[[int], Awaitable[socket.socket]]
    """A raw socket for an IP version, made inside the box."""


@dataclass(slots=True, eq=False)
class _Flow:
    """One conversation. `onward` is None for a refused one."""

    client: Endpoint
    target: Endpoint
    onward: socket.socket | None
    used: float
    """Loop time of the last datagram either way."""
    is_ping: bool = False
    """Then the client's port is its echo identifier."""
    raw_identifier: int | None = None
    """Of a ping through a raw socket, which shows IP headers and everybody's replies: ours."""

    def original(self) -> bytes:
        """A packet as the client sent it, to be quoted in an ICMP error."""
        if not self.is_ping:
            return build_udp(self.client, self.target, b"")
        version = self.target.address.version
        echo = build_echo_request(version, Echo(self.client.port, 0, b""))
        protocol = ICMP if version == 4 else ICMP6
        return build_packet(self.client.address, self.target.address, protocol, echo)


_Key = tuple[Endpoint, Endpoint, bool]


class Flows:
    """All datagram traffic of one box. Lives on the event loop; close() ends it."""

    def __init__(self, services: FlowServices, *, sockets: WayOutSockets) -> None:
        self._services = services
        self._udp = sockets.udp
        self._log = sockets.log
        self._loop = asyncio.get_running_loop()
        self._flows: OrderedDict[_Key, _Flow] = OrderedDict()
        self._raw: dict[int, socket.socket] = {}
        self._waiting: dict[int, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queries = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._flows)

    def close(self) -> None:
        """End every flow and task, close every socket made here."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()
        for flow in self._flows.values():
            self._end(flow)
        self._flows.clear()
        for raw in self._raw.values():
            raw.close()
        self._raw.clear()

    # -- from the box -------------------------------------------------------------------------

    def take_datagrams(self) -> None:
        """Read what waits at the transparent UDP socket, a batch of it."""
        for _ in range(_BATCH):
            try:
                data, ancillary, _, peer = self._udp.recvmsg(65535, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.debug("reading a box's datagrams: %s", error)
                return
            target = original_target(ancillary)
            if target is None or target.port == WAY_OUT_PORT:
                continue  # sent to the socket itself: there is nowhere to lead it
            client = endpoint_of(peer)
            if target.port == 53:
                self._take_query(client, target, data)
            else:
                self._take_udp(client, target, data)

    def take_packets(self) -> None:
        """Read what NFLOG copied: packets that are neither TCP nor UDP."""
        assert self._log is not None
        for _ in range(_BATCH):
            try:
                data = self._log.recv(65535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # ENOBUFS: some were lost
                log.debug("reading a box's packets: %s", error)
                return
            for packet in parse_logged(data):
                try:
                    self._take_packet(packet)
                except ValueError as error:
                    log.debug("a box sent %s", error)

    def _take_query(self, client: Endpoint, target: Endpoint, query: bytes) -> None:
        if self._queries >= MOST_QUERIES:
            return
        self._queries += 1

        async def answer() -> None:
            try:
                response = await self._services.answer(query)
            finally:
                self._queries -= 1
            if response is not None:
                self._send_in(target.address.version, build_udp(target, client, response))

        self._start(answer(), name="answer a query")

    def _take_udp(self, client: Endpoint, target: Endpoint, data: bytes) -> None:
        key = (client, target, False)
        flow = self._use(key)
        if flow is None:
            flow = _Flow(client, target, None, self._loop.time())
            if self._services.judge(target, "udp"):
                flow.onward = self._connect(flow, socket.SOCK_DGRAM, 0)
            self._keep(key, flow)
        if flow.onward is None:
            self._refuse(flow, "prohibited")
            return
        try:
            self._send_out(flow.onward, data)
        except OSError as error:
            self._refuse(flow, _REASONS.get(error.errno or 0, ""))

    def _take_packet(self, data: bytes) -> None:
        packet = parse_packet(data)
        echo = parse_echo(packet)
        if echo is None:
            if packet.protocol not in (ICMP, ICMP6):  # never an error about an error (RFC 1122)
                self._send_in(packet.source.version, build_unreachable(data, "prohibited"))
            return
        client, target = Endpoint(packet.source, echo.identifier), Endpoint(packet.target, 0)
        key = (client, target, True)
        flow = self._use(key)
        if flow is None:
            flow = _Flow(client, target, None, self._loop.time(), is_ping=True)
            if self._services.judge(target, "icmp"):
                self._connect_ping(flow)
            self._keep(key, flow)
        if flow.onward is None:
            self._send_in(packet.source.version, build_unreachable(data, "prohibited"))
            return
        outward = Echo(flow.raw_identifier or 0, echo.sequence, echo.data)
        request = build_echo_request(packet.source.version, outward)
        try:
            self._send_out(flow.onward, request)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0)
            if reason is not None:
                self._send_in(packet.source.version, build_unreachable(data, reason))

    @staticmethod
    def _send_out(onward: socket.socket, data: bytes) -> None:
        """Send; once more where the first try only reported an earlier datagram's failure."""
        try:
            onward.send(data)
        except BlockingIOError:
            pass  # full: datagrams may be lost
        except ConnectionRefusedError:  # of the datagram before
            onward.send(data)
            raise

    # -- from the world -----------------------------------------------------------------------

    def _take_replies(self, flow: _Flow) -> None:
        assert flow.onward is not None
        version = flow.target.address.version
        for _ in range(_BATCH):
            try:
                data = flow.onward.recv(65535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._refuse(flow, _REASONS.get(error.errno or 0, ""))
                return
            flow.used = self._loop.time()
            if flow.is_ping:
                packet = _echo_reply(flow, data)
            elif len(data) <= LARGEST_UDP:
                packet = build_udp(flow.target, flow.client, data)
            else:
                packet = None
            if packet is not None:
                self._send_in(version, packet)

    # -- flows --------------------------------------------------------------------------------

    def _use(self, key: _Key) -> _Flow | None:
        flow = self._flows.get(key)
        if flow is not None:
            flow.used = self._loop.time()
            self._flows.move_to_end(key)
        return flow

    def _keep(self, key: _Key, flow: _Flow) -> None:
        while len(self._flows) >= MOST_FLOWS:
            _, oldest = self._flows.popitem(last=False)
            self._end(oldest)
        self._flows[key] = flow
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self.sweep)

    def sweep(self) -> None:
        """End the flows that were idle for too long."""
        self._sweeper = None
        before = self._loop.time() - IDLE_SECONDS
        for key, flow in list(self._flows.items()):
            if flow.used < before:
                del self._flows[key]
                self._end(flow)
        if self._flows and not self._is_closed:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self.sweep)

    def _connect(self, flow: _Flow, kind: socket.SocketKind, protocol: int) -> socket.socket | None:
        """A host socket towards the flow's target, watched for replies; None when impossible."""
        address = flow.target.address
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            onward = socket.socket(
                family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            log.debug("cannot open a socket for a box's datagrams: %s", error)
            return None
        try:
            onward.connect((str(address), flow.target.port))
        except OSError as error:
            log.debug("cannot lead a box's datagrams to %s: %s", address, error)
            onward.close()
            return None
        self._loop.add_reader(onward, self._take_replies, flow)
        return onward

    def _connect_ping(self, flow: _Flow) -> None:
        """A ping socket (allowed by net.ipv4.ping_group_range), else a raw one (as root)."""
        protocol = ICMP if flow.target.address.version == 4 else ICMP6
        flow.onward = self._connect(flow, socket.SOCK_DGRAM, protocol)
        if flow.onward is None:
            flow.onward = self._connect(flow, socket.SOCK_RAW, protocol)
            flow.raw_identifier = secrets.randbelow(0x10000)

    def _end(self, flow: _Flow) -> None:
        if flow.onward is not None:
            self._loop.remove_reader(flow.onward)
            flow.onward.close()
            flow.onward = None

    # -- into the box -------------------------------------------------------------------------

    def _refuse(self, flow: _Flow, reason: str) -> None:
        """Tell the client by ICMP; nothing for reasons that ICMP has no word for."""
        if reason:
            version = flow.target.address.version
            self._send_in(version, build_unreachable(flow.original(), reason))

    def _send_in(self, version: int, packet: bytes) -> None:
        """Send a whole IP packet inside the box, once its raw socket is there."""
        raw = self._raw.get(version)
        if raw is not None:
            target = packet[16:20] if version == 4 else packet[24:40]
            try:
                raw.sendto(packet, (str(ip_address(target)), 0))
            except OSError as error:
                log.debug("a packet into a box was lost: %s", error)
            return
        if self._is_closed:
            return
        waiting = self._waiting.get(version)
        if waiting is None:
            self._waiting[version] = [packet]
            self._start(self._open_raw(version), name="open a raw socket")
        elif len(waiting) < MOST_WAITING:
            waiting.append(packet)

    async def _open_raw(self, version: int) -> None:
        try:
            raw = await self._services.open_raw(version)
        except OSError as error:
            log.warning("cannot answer a box's datagrams: %s", error)
            self._waiting.pop(version, None)
            return
        if self._is_closed:
            raw.close()
            return
        self._raw[version] = raw
        for packet in self._waiting.pop(version, []):
            self._send_in(version, packet)

    def _start(self, work: Coroutine[None, None, None], *, name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("failed to %s", task.get_name(), exc_info=task.exception())


def _echo_reply(flow: _Flow, data: bytes) -> bytes | None:
    """The packet that brings a ping's reply home; None for what is no reply of this flow."""
    version = flow.target.address.version
    if flow.raw_identifier is not None and version == 4:
        data = data[(data[0] & 0xF) * 4 :]  # raw(7): IPv4 raw sockets show the IP header
    reply = parse_echo_reply(version, data)
    if reply is None or flow.raw_identifier not in (None, reply.identifier):
        return None
    request = Packet(flow.client.address, flow.target.address, 0, b"")
    return build_echo_reply(request, Echo(flow.client.port, reply.sequence, reply.data))
