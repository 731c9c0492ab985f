"""Routing netlink: links, addresses, routes and rules as requests, and the kernel's answers.

Owns: the few rtnetlink requests of the hot path, and what their answers say.
Must never: open a socket; kernel/netlink.py carries requests out.

Sources: linux/rtnetlink.h, linux/fib_rules.h, rtnetlink(7).

Example::

    add_address(1, ip_interface("198.18.0.1/32")).build(sequence=7)      # bytes for the kernel
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)

from loopbox.wire.netlink import (
    CREATE,
    DUMP,
    EXCL,
    ROUTE_TYPES,
    Request,
    build_attribute,
    parse_attributes,
    text_of,
)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

LOOPBACK_INDEX = 1
"""The index of `lo` in every network namespace (net/core/dev.c: LOOPBACK_IFINDEX)."""

TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}

# socket.h of Linux: numbers of the protocol here, on whatever machine this is read
_AF_UNSPEC, _AF_INET, _AF_INET6 = 0, 2, 10
# linux/rtnetlink.h
_NEWLINK, _GETLINK = 16, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE = 32, 33
_IFF_UP, _IFF_LOOPBACK, _IFF_LOWER_UP = 0x1, 0x8, 0x10000
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_PROTOCOL_STATIC = 4


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    index: int
    name: str
    is_up: bool
    has_carrier: bool
    is_loopback: bool
    mtu: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """One address of one interface."""

    index: int
    interface: Interface
    scope: str


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the kernel would do with a packet to an address."""

    type: str
    """One of ROUTE_TYPES; "unreachable", "prohibit" and "blackhole" also when it is an errno."""
    device: int = 0
    """Interface index; 0 when there is none."""
    source: Address | None = None
    gateway: Address | None = None


def _family(version: int) -> int:
    return _AF_INET if version == 4 else _AF_INET6


def _uint32(value: int) -> bytes:
    return struct.pack("=I", value)


# --- requests ------------------------------------------------------------------------------


def link_up(link: int | str) -> Request:
    """Bring a link up, by index or by name."""
    index, name = (link, b"") if isinstance(link, int) else (0, link.encode() + b"\0")
    payload = struct.pack("=BxHiII", _AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    if name:
        payload += build_attribute(3, name)  # IFLA_IFNAME
    return Request("bring up", f"link `{link}`", _NEWLINK, 0, payload)


def add_address(
    index: int,
    interface: Interface,
    *,
    scope: str | None = None,
    nodad: bool = True,
    prefix_route: bool = True,
) -> Request:
    """Give a link an address.

    Scope None means `host` for 127/8 and ::1, else `global` (as ip-address(8)). `nodad`: an IPv6
    address is usable at once; without, it is tentative for a moment and is refused as a route's
    source. `prefix_route`: False keeps the kernel from adding its route to the prefix. The address
    being there already is an error with errno EEXIST.
    """
    flags = _IFA_F_NODAD if nodad and interface.version == 6 else 0
    flags |= 0 if prefix_route else _IFA_F_NOPREFIXROUTE
    payload = _address_payload(index, interface, scope=scope, flags=flags)
    target = f"`{interface}` to link {index}"
    return Request("add address", target, _NEWADDR, CREATE | EXCL, payload)


def delete_address(index: int, interface: Interface) -> Request:
    """Take an address from a link; EADDRNOTAVAIL when it is not there."""
    payload = _address_payload(index, interface, scope=None, flags=0)
    return Request("delete address", f"`{interface}` from link {index}", _DELADDR, 0, payload)


def _address_payload(index: int, interface: Interface, *, scope: str | None, flags: int) -> bytes:
    packed = interface.ip.packed
    word = scope or ("host" if interface.ip.is_loopback else "global")
    header = struct.pack(
        "=BBBBI",
        _family(interface.version),
        interface.network.prefixlen,
        flags & 0xFF,
        SCOPES[word],
        index,
    )
    parts = [header, build_attribute(2, packed), build_attribute(1, packed)]  # IFA_LOCAL, _ADDRESS
    if flags > 0xFF:
        parts.append(build_attribute(8, _uint32(flags)))  # IFA_FLAGS
    return b"".join(parts)


def add_route(
    destination: Network,
    *,
    device: int | None = None,
    gateway: Address | None = None,
    source: Address | None = None,
    kind: str = "unicast",
    table: int = TABLE_MAIN,
    metric: int | None = None,
) -> Request:
    """Add a route; `device` is an interface index, `kind` one of ROUTE_TYPES."""
    payload = _route_payload(
        destination,
        device=device,
        gateway=gateway,
        source=source,
        kind=kind,
        table=table,
        metric=metric,
    )
    return Request("add route", f"to `{destination}`", _NEWROUTE, CREATE | EXCL, payload)


def delete_route(
    destination: Network,
    *,
    device: int | None = None,
    gateway: Address | None = None,
    kind: str = "unicast",
    table: int = TABLE_MAIN,
) -> Request:
    """Delete the route that matches; ESRCH when there is none."""
    payload = _route_payload(
        destination, device=device, gateway=gateway, source=None, kind=kind, table=table
    )
    return Request("delete route", f"to `{destination}`", _DELROUTE, 0, payload)


def _route_payload(
    destination: Network,
    *,
    device: int | None,
    gateway: Address | None,
    source: Address | None,
    kind: str,
    table: int,
    metric: int | None = None,
) -> bytes:
    scope = SCOPES["host" if kind == "local" else "global" if gateway else "link"]
    parts = [
        struct.pack(
            "=BBBBBBBBI",
            _family(destination.version),
            destination.prefixlen,
            0,
            0,
            table if table < 256 else 0,
            _PROTOCOL_STATIC,
            scope if destination.version == 4 else 0,
            ROUTE_TYPES.index(kind),
            0,
        ),
        build_attribute(15, _uint32(table)),  # RTA_TABLE
    ]
    if destination.prefixlen:
        parts.append(build_attribute(1, destination.network_address.packed))  # RTA_DST
    if device is not None:
        parts.append(build_attribute(4, _uint32(device)))  # RTA_OIF
    if gateway is not None:
        parts.append(build_attribute(5, gateway.packed))  # RTA_GATEWAY
    if source is not None:
        parts.append(build_attribute(7, source.packed))  # RTA_PREFSRC
    if metric is not None:
        parts.append(build_attribute(6, _uint32(metric)))  # RTA_PRIORITY
    return b"".join(parts)


def add_rule(
    version: int,
    *,
    table: int,
    priority: int,
    incoming: str | None = None,
    without_mark: int = 0,
) -> Request:
    """A policy rule (ip-rule(8)): look in `table`, of those rules the lowest `priority` first.

    `incoming="lo"` matches what this namespace itself sends; `without_mark` excludes packets that
    bear any of these mark bits.
    """
    parts = [
        struct.pack(
            "=BBBBBBBBI", _family(version), 0, 0, 0, table if table < 256 else 0, 0, 0, 1, 0
        ),
        build_attribute(6, _uint32(priority)),  # FRA_PRIORITY
        build_attribute(15, _uint32(table)),  # FRA_TABLE
    ]
    if incoming is not None:
        parts.append(build_attribute(3, incoming.encode() + b"\0"))  # FRA_IIFNAME
    if without_mark:
        parts.append(build_attribute(10, _uint32(0)))  # FRA_FWMARK
        parts.append(build_attribute(16, _uint32(without_mark)))  # FRA_FWMASK
    target = f"for IPv{version} table {table}"
    return Request("add routing rule", target, _NEWRULE, CREATE | EXCL, b"".join(parts))


def ask_links() -> Request:
    """Dump every interface."""
    return Request("list", "links", _GETLINK, DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0))


def ask_addresses() -> Request:
    """Dump every address of every interface."""
    return Request("list", "addresses", _GETADDR, DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 0))


def ask_route(address: Address) -> Request:
    """Ask which route a packet from here to `address` would take."""
    header = struct.pack(
        "=BBBBBBBBI", _family(address.version), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0
    )
    payload = header + build_attribute(1, address.packed)  # RTA_DST
    return Request("find a route to", f"`{address}`", _GETROUTE, 0, payload)


# --- answers -------------------------------------------------------------------------------


def parse_link(payload: bytes) -> Link:
    """A Link from the payload of RTM_NEWLINK."""
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    found = parse_attributes(payload[16:])
    (mtu,) = struct.unpack("=I", found.get(4, bytes(4)))
    return Link(
        index=index,
        name=text_of(found.get(3, b"")),
        is_up=bool(flags & _IFF_UP),
        has_carrier=bool(flags & _IFF_LOWER_UP),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        mtu=mtu,
    )


def parse_address(payload: bytes) -> AddressRecord:
    """An AddressRecord from the payload of RTM_NEWADDR."""
    _, prefix, _, scope, index = struct.unpack_from("=BBBBI", payload)
    found = parse_attributes(payload[8:])
    packed = found[2] if 2 in found else found[1]  # IFA_LOCAL; a peer is in IFA_ADDRESS
    names = {number: name for name, number in SCOPES.items()}
    return AddressRecord(
        index=index,
        interface=ip_interface((packed, prefix)),
        scope=names.get(scope, str(scope)),
    )


def parse_route(payload: bytes) -> RouteAnswer:
    """A RouteAnswer from the payload of RTM_NEWROUTE."""
    found = parse_attributes(payload[12:])
    return RouteAnswer(
        type=route_type_of(payload),
        device=struct.unpack("=I", found.get(4, bytes(4)))[0],
        source=ip_address(found[7]) if 7 in found else None,
        gateway=ip_address(found[5]) if 5 in found else None,
    )


def route_type_of(payload: bytes) -> str:
    """The type alone, one of ROUTE_TYPES, from the payload of RTM_NEWROUTE."""
    kind = payload[7]
    return ROUTE_TYPES[kind] if kind < len(ROUTE_TYPES) else str(kind)
