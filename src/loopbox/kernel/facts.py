"""Reading one Linux network namespace into a rules.network.Network.

Owns: the dumps of links, addresses, routes and neighbours (rtnetlink(7)) and the settings below
/proc/sys/net. All of it is for the calling thread's network namespace, needs no privilege, and
takes well under a millisecond on an ordinary machine.

Must never: change anything, decide anything.

Example::

    network = read_network()
    network.loopback.is_up

Knobs that the kernel lacks are left out of `Network.knobs`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TypeVar

from loopbox.errors import HostError
from loopbox.kernel.netlink import open_netlink
from loopbox.rules.network import SCOPES, InterfaceAddress, Link, Neighbour, Network, Route
from loopbox.wire.netlink import ROUTE_TYPES, build_message, parse_attributes, parse_messages

T = TypeVar("T")

_GETLINK, _GETADDR, _GETROUTE, _GETNEIGH = 18, 22, 26, 30
_REQUEST_DUMP = 0x1 | 0x300
_NLMSG_DONE = 3
_DUMP_INTERRUPTED = 0x10
_BUFFER = 1 << 18
_CLONED = 0x200  # RTM_F_CLONED: a cached path, not a configured route
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_NEIGHBOUR_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}

_KNOBS = (
    "ipv4/ip_forward",
    "ipv4/icmp_echo_ignore_all",
    "ipv4/ping_group_range",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ip_nonlocal_bind",
    "ipv6/icmp/echo_ignore_all",
    "ipv6/bindv6only",
    "ipv6/conf/all/forwarding",
)
_CONF_KNOBS = (
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/accept_local",
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/arp_ignore",
    "ipv4/conf/{}/promote_secondaries",
    "ipv4/conf/{}/forwarding",
    "ipv6/conf/{}/disable_ipv6",
)
"""Read for `all` and for each interface."""


def read_network() -> Network:
    """Everything rules need to know of the calling thread's network namespace.

    Raises HostError when the kernel answers no rtnetlink dump at all.
    """
    with open_netlink(socket.NETLINK_ROUTE) as netlink:
        links = dump(netlink, _GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0), parse_link)
        return Network(
            links=tuple(links),
            addresses=tuple(dump(netlink, _GETADDR, bytes(8), parse_address)),
            routes=tuple(dump(netlink, _GETROUTE, bytes(12), parse_route)),
            neighbours=tuple(dump(netlink, _GETNEIGH, bytes(12), parse_neighbour)),
            knobs=read_knobs(link.name for link in links),
        )


def read_knobs(interfaces: Iterable[str]) -> dict[str, str]:
    """The settings rules ask for, by path below /proc/sys/net."""
    names = ["all", *interfaces]
    paths = [*_KNOBS, *(path.format(name) for name in names for path in _CONF_KNOBS)]
    found = {}
    # One directory descriptor: the path walk through /proc is most of the cost.
    directory = os.open("/proc/sys/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            value = _read_at(directory, path)
            if value is not None:
                found[path] = value
    finally:
        os.close(directory)
    return found


def _read_at(directory: int, path: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.read(descriptor, 256).decode("ascii", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(descriptor)


# -- codec: the payload of one message to a value; None when it is not for us --------------------


def parse_link(payload: bytes) -> Link | None:
    """A Link from RTM_NEWLINK."""
    if len(payload) < 16:
        return None
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    found = parse_attributes(payload[16:])
    detail = parse_attributes(found.get(18, b""))
    state = found.get(16, b"\0")[:1] or b"\0"
    return Link(
        index=index,
        name=_text(found.get(3)),
        flags=flags,
        kind=_text(detail.get(1)),
        operstate=_OPERSTATES[state[0]] if state[0] < len(_OPERSTATES) else "unknown",
        carrier=bool(flags & 0x10000),
        mtu=_number(found.get(4)),
        master=_number(found.get(10)),
        elsewhere=37 in found,
    )


def parse_address(payload: bytes) -> InterfaceAddress | None:
    """An InterfaceAddress from RTM_NEWADDR."""
    if len(payload) < 8:
        return None
    _, prefix, short_flags, scope, index = struct.unpack_from("=BBBBI", payload)
    found = parse_attributes(payload[8:])
    packed = found.get(2) or found.get(1)  # IFA_LOCAL; the peer of a /31 or tunnel is IFA_ADDRESS
    if packed is None or len(packed) not in (4, 16):
        return None
    flags = _number(found.get(8)) or short_flags
    return InterfaceAddress(
        index=index,
        address=ip_address(packed),
        prefix=min(prefix, len(packed) * 8),
        scope=SCOPES.get(scope, str(scope)),
        secondary=bool(flags & 0x01) and len(packed) == 4,
        tentative=bool(flags & 0x48),
    )


def parse_route(payload: bytes) -> Route | None:
    """A Route from RTM_NEWROUTE; of a multipath route the first way."""
    if len(payload) < 12:
        return None
    family, width, _, _, table, _, _, kind, flags = struct.unpack_from("=BBBBBBBBI", payload)
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & _CLONED:
        return None
    found = parse_attributes(payload[12:])
    hop = found.get(9)
    also: tuple[int, ...] = ()
    if hop is not None and len(hop) >= 8:
        length, hop_flags, _, index = struct.unpack_from("=HBBi", hop)
        also = _further_hops(hop, length)
        found = {**found, **parse_attributes(hop[8:length]), 4: struct.pack("=i", index)}
        flags |= hop_flags
    size = 4 if family == socket.AF_INET else 16
    target = int.from_bytes(found.get(1, b"").ljust(size, b"\0")[:size], "big")
    network = IPv4Network if size == 4 else IPv6Network
    via = found.get(5) or found.get(18, b"")[2:]  # RTA_GATEWAY, or RTA_VIA of another family
    source = found.get(7, b"")
    return Route(
        destination=network((target, min(width, size * 8)), strict=False),
        table=_number(found.get(15)) or table,
        type=ROUTE_TYPES[kind] if kind < len(ROUTE_TYPES) else str(kind),
        index=_number(found.get(4)),
        gateway=ip_address(via) if len(via) in (4, 16) else None,
        source=ip_address(source) if len(source) in (4, 16) else None,
        metric=_number(found.get(6)),
        also=also,
        dead=bool(flags & 0x11),
    )


def _further_hops(hops: bytes, offset: int) -> tuple[int, ...]:
    """Interfaces of a multipath route's ways after the first (struct rtnexthop)."""
    found = []
    while 8 <= offset + 8 <= len(hops):
        length, _, _, index = struct.unpack_from("=HBBi", hops, offset)
        if length < 8:
            break
        found.append(index)
        offset += (length + 3) & ~3
    return tuple(found)


def parse_neighbour(payload: bytes) -> Neighbour | None:
    """A Neighbour from RTM_NEWNEIGH."""
    if len(payload) < 12:
        return None
    family, index, state = struct.unpack_from("=BxxxiH", payload)
    target = parse_attributes(payload[12:]).get(1, b"")
    if family not in (socket.AF_INET, socket.AF_INET6) or len(target) not in (4, 16):
        return None
    return Neighbour(index, ip_address(target), _NEIGHBOUR_STATES.get(state, "none"))


def _text(value: bytes | None) -> str:
    return (value or b"").split(b"\0", 1)[0].decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value[:4], "little" if _LITTLE else "big") if value else 0


_LITTLE = struct.pack("=H", 1) == b"\1\0"


# -- hands ----------------------------------------------------------------------------------------


def dump(
    netlink: socket.socket, kind: int, payload: bytes, parse: Callable[[bytes], T | None]
) -> list[T]:
    """One rtnetlink dump, asked again when the kernel says it changed underway."""
    for _ in range(3):
        netlink.send(build_message(kind, _REQUEST_DUMP, kind, payload))
        found: list[T] = []
        complete = True
        for flags, body in _answers(netlink, kind):
            complete = complete and not flags & _DUMP_INTERRUPTED
            value = parse(body)
            if value is not None:
                found.append(value)
        if complete:
            break
    return found


def _answers(netlink: socket.socket, sequence: int) -> Iterator[tuple[int, bytes]]:
    """(flags, payload) of each message up to the end of the dump."""
    while True:
        for message in parse_messages(netlink.recv(_BUFFER)):
            if message.sequence != sequence:
                continue
            verdict = message.error
            if verdict is not None:
                cause = verdict[1] or os.strerror(verdict[0])
                raise HostError(f"cannot read the network configuration: {cause}")
            if message.kind == _NLMSG_DONE:
                return
            yield message.flags, message.payload
