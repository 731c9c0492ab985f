"""The box's side of the way out: addresses, routes and the sockets that catch what it sends.

Owns: making, inside a box's network namespace, everything by which TCP and UDP for the wide world
end at sockets the keeper holds; the raw sockets that answer under foreign addresses; listeners
for forwarded ports.
Must never: stay in a box (the roaming thread calls these), accept, read, or judge.

Layout inside a box: the world is `local default dev lo` in a table of its own, looked up last and
only for what the box itself sends (`iif lo`), so that links and routing daemons in the box go
first and forwarded traffic is never caught. nftables then hands it to the sockets (kernel/nft.py).
One dual-stack socket per protocol serves both families (checked on Linux 6.18: TPROXY for IPv4
finds a transparent IPv6 socket). Replies to UDP leave by raw sockets and not by sockets bound to
the far address: such a bind would collide with a box's own server on 0.0.0.0 and the same port.

Example, on a thread that stands in the box::

    sockets = open_way_out(ipv6=True)
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
    ip_network,
)

from loopbox.errors import HostError
from loopbox.kernel import nft
from loopbox.kernel.netlink import (
    LOOPBACK_INDEX,
    KernelError,
    Request,
    RouteSocket,
    add_address,
    add_route,
    add_rule,
    delete_route,
    open_netlink,
)
from loopbox.rules.addressing import unwrapped
from loopbox.wire.datagram import Endpoint
from loopbox.wire.netlink import ACK, REQUEST, build_attribute, build_message, parse_messages

BOX_ADDRESS4 = ip_interface("198.18.0.1/32")
"""What a box sends from (RFC 2544's benchmarking block: nobody's). Every box has the same."""
BOX_ADDRESS6 = IPv6Interface(nft.BOX_ADDRESS6)
NAMESERVER = "198.18.0.53"
"""What a box's resolv.conf names. Not local, so no port 53 of the box is taken."""

_TABLE = 0x6C62
_PRIORITY = 40000
"""After the main table's 32766 and the default table's 32767 (ip-rule(8))."""
_WORLD4, _WORLD6 = ip_network("0.0.0.0/0"), ip_network("::/0")
_BACKLOG = 4096
_UDP_BUFFER = 1 << 20
"""Octets of datagrams that wait for the keeper."""

# linux/in.h, linux/in6.h, linux/netfilter/nfnetlink_log.h
_IP_TRANSPARENT, _IP_RECVORIGDSTADDR = 19, 20
_IPV6_TRANSPARENT, _IPV6_RECVORIGDSTADDR = 75, 74
_NETLINK_NETFILTER, _LOG_CONFIG = 12, 4 << 8 | 1
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class WayOutSockets:
    """What catches a box's traffic. Whoever holds it closes it."""

    tcp: socket.socket
    """Listening; an accepted socket's own name is where the box wanted to go."""
    udp: socket.socket
    """Each datagram comes with its original destination as ancillary data."""
    log: socket.socket | None
    """Packets that are neither, by NFLOG; None when this kernel has no such thing."""
    world6: bool
    """Whether the box was given a route to the IPv6 world."""

    @property
    def inodes(self) -> frozenset[int]:
        """The sockets' inodes, to leave them out of what the box itself listens on."""
        return frozenset(os.fstat(one.fileno()).st_ino for one in (self.tcp, self.udp))

    def close(self) -> None:
        """Let go of all of them."""
        for one in (self.tcp, self.udp, self.log):
            if one is not None:
                one.close()


def world_route(*, add: bool = True) -> Request:
    """The request that gives a box its IPv6 way out, or takes it."""
    if not add:
        return delete_route(_WORLD6, device=LOOPBACK_INDEX, kind="local", table=_TABLE)
    return add_route(
        _WORLD6, device=LOOPBACK_INDEX, source=BOX_ADDRESS6.ip, kind="local", table=_TABLE
    )


_REQUESTS4 = (
    add_address(LOOPBACK_INDEX, BOX_ADDRESS4),
    add_rule(4, table=_TABLE, priority=_PRIORITY, incoming="lo"),
    add_route(_WORLD4, device=LOOPBACK_INDEX, source=BOX_ADDRESS4.ip, kind="local", table=_TABLE),
)
_REQUESTS6 = (
    # The kernel enters the address into the local table a moment later (net/ipv6/addrconf.c).
    # Until then the way out's own route must find it, and not a prefix route, whose packets
    # would go to be forwarded: they were lost.
    add_address(LOOPBACK_INDEX, BOX_ADDRESS6, prefix_route=False),
    add_rule(6, table=_TABLE, priority=_PRIORITY, incoming="lo", without_mark=nft.WORLDLESS_MARK),
)


def open_way_out(*, ipv6: bool = True) -> WayOutSockets:
    """Give the box the calling thread stands in its guard, its way out and the sockets for it.

    As `open_sockets` and `lay_way_out`, in this order: what already runs in the box is caught at
    once. Calling it again (a keeper that follows a dead one) replaces what is there.
    """
    try:
        sockets = open_sockets(world6=False)
    except HostError:
        nft.install(with_way_out=False)
        raise
    try:
        return replace(sockets, world6=lay_way_out(ipv6=ipv6))
    except BaseException:
        sockets.close()
        raise


def open_sockets(*, world6: bool) -> WayOutSockets:
    """What catches what the box the calling thread stands in sends to the world.

    `world6` is what `lay_way_out` gave. Raises HostError when the kernel refuses.
    """
    with ExitStack() as undo:
        try:
            tcp = undo.enter_context(_transparent(socket.SOCK_STREAM))
            tcp.listen(_BACKLOG)
            udp = undo.enter_context(_transparent(socket.SOCK_DGRAM))
            log = _open_log()
        except OSError as error:
            raise _socket_error(error) from error
        undo.pop_all()
        return WayOutSockets(tcp, udp, log, world6=world6)


def lay_way_out(*, ipv6: bool) -> bool:
    """Give the box the calling thread stands in its guard, and routes to the world. `lo` is up.

    `ipv6`: whether the wide world is reachable over IPv6; without, such connects fail at once
    with ENETUNREACH. Gives whether it now is, from the box. Until there are sockets for it, what
    the box sends to the world is dropped. Raises HostError when the kernel lacks a part or
    refuses (the guard is set up even so, where nftables allows it).
    """
    try:
        nft.install(with_way_out=True)
    except HostError as error:
        if error.code == "no-tproxy":
            nft.install(with_way_out=False)
        raise
    has_family6 = _has_family6()
    with RouteSocket() as route:
        requests4, requests6 = way_out_requests(ipv6=ipv6)
        _apply(route, requests4)
        if has_family6:
            _apply(route, requests6)
    return ipv6 and has_family6


def _has_family6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return False
    return True


def set_world6(*, reachable: bool) -> None:
    """Give the box the calling thread stands in its IPv6 way out, or take it. Idempotent."""
    with RouteSocket() as route:
        try:
            route.apply(world_route(add=reachable))
        except KernelError as error:
            if error.number not in (errno.EEXIST, errno.ESRCH):
                raise


def _apply(route: RouteSocket, requests: tuple[Request, ...]) -> None:
    """All at once; one by one where something is there already."""
    try:
        route.apply(*requests)
    except KernelError as error:
        if error.number != errno.EEXIST:
            raise
        for request in requests:
            try:
                route.apply(request)
            except KernelError as again:
                if again.number != errno.EEXIST:
                    raise


def _transparent(kind: socket.SocketKind) -> socket.socket:
    """A bound transparent socket for both families, or for IPv4 where there is no IPv6."""
    flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        opened = socket.socket(socket.AF_INET6, kind | flags)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        opened = socket.socket(socket.AF_INET, kind | flags)
    try:
        dual = opened.family == socket.AF_INET6
        if dual:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        if kind == socket.SOCK_DGRAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER)
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
            if dual:
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
        else:
            # A keeper that follows a dead one finds its predecessor's connections in TIME_WAIT.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("::" if dual else "0.0.0.0", nft.WAY_OUT_PORT))
    except BaseException:
        opened.close()
        raise
    return opened


def _socket_error(error: OSError) -> HostError:
    hint = None
    if error.errno == errno.EADDRINUSE:
        hint = f"end the program in the box that uses port {nft.WAY_OUT_PORT}"
    return HostError(
        f"cannot give the box a way out: port {nft.WAY_OUT_PORT}: {error.strerror}", hint=hint
    )


def _build_log_request() -> bytes:
    """The request that binds a netfilter socket to our NFLOG group."""
    command = build_attribute(1, b"\1")  # NFULA_CFG_CMD: bind
    mode = build_attribute(2, struct.pack(">IBx", nft.LOG_BYTES, 2))  # copy the packet
    header = struct.pack(">BBH", socket.AF_UNSPEC, 0, nft.LOG_GROUP)
    return build_message(_LOG_CONFIG, REQUEST | ACK, 1, header + command + mode)


def way_out_requests(*, ipv6: bool) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    """What a box's addresses, rules and routes are asked of the kernel with: IPv4's and IPv6's."""
    return _REQUESTS4, (*_REQUESTS6, world_route()) if ipv6 else _REQUESTS6


def _open_log() -> socket.socket | None:
    """A socket bound to our NFLOG group, or None where the kernel has no NFLOG."""
    log = open_netlink(_NETLINK_NETFILTER)
    try:
        log.send(_build_log_request())
        verdicts = [message.error for message in parse_messages(log.recv(4096))]
        if any(verdict is None or verdict[0] for verdict in verdicts):
            log.close()
            return None
        log.setblocking(False)
    except OSError:
        log.close()
        return None
    return log


def open_raw(version: int) -> socket.socket:
    """A socket that sends whole IP packets inside this box, under any source address."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return socket.socket(family, socket.SOCK_RAW | flags, socket.IPPROTO_RAW)


def open_forward(port: int) -> list[socket.socket]:
    """Listeners on both loopback addresses of this box. Raises OSError, having closed all."""
    with ExitStack() as undo:
        opened = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                one = socket.socket(
                    family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                )
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    continue
                raise
            undo.enter_context(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                    continue  # IPv6 is switched off in this namespace
                raise
            one.listen(_BACKLOG)
            opened.append(one)
        undo.pop_all()
        return opened


def endpoint_of(name: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """A socket name as an Endpoint, IPv4-mapped addresses unwrapped, zones dropped."""
    return Endpoint(unwrapped(ip_address(name[0])), name[1])


def original_target(ancillary: list[tuple[int, int, bytes]]) -> Endpoint | None:
    """Where a datagram was sent to, from IP_RECVORIGDSTADDR's ancillary data (ip(7))."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVORIGDSTADDR):
            (port,) = struct.unpack_from(">H", data, 2)
            return Endpoint(IPv4Address(data[4:8]), port)
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR):
            (port,) = struct.unpack_from(">H", data, 2)
            return Endpoint(unwrapped(IPv6Address(data[8:24])), port)
    return None


def reset(connection: socket.socket) -> None:
    """Close a TCP connection so that its peer sees a reset at once."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        pass  # it is gone already
    connection.close()
