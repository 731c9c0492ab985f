"""Wires between boxes as netlink requests: veth pairs, bridges, carrier, shaping, silent failure.

Owns: the requests that make, cut, mend and shape links, and the nftables table that drops every
packet a device receives. Requests go to a `RouteSocket` of the namespace they are meant for.
Must never: know what a lab is, enter a namespace, remember anything.

Sources: linux/if_link.h, linux/veth.h, linux/pkt_sched.h, linux/netfilter/nf_tables.h,
ip-link(8), tc-netem(8), nft(8).

Example::

    with RouteSocket() as route:        # in r1's namespace; r2 is a descriptor of the other's
        route.apply(add_veth("r2", index=100, peer="r1", peer_index=100, peer_namespace=r2))
        route.apply(set_link(100, up=False))
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from loopbox.errors import HostError
from loopbox.kernel.netlink import KernelError, RouteSocket, open_netlink
from loopbox.wire.netlink import (
    ACK,
    CREATE,
    EXCL,
    REQUEST,
    Request,
    build_attribute,
    build_message,
    build_nested,
    parse_messages,
)

FIRST_INDEX = 100
"""Interface indexes of a box's links begin here: chosen by us, so that nobody has to ask."""

_NEWLINK, _DELLINK, _NEWQDISC, _DELQDISC = 16, 17, 36, 38
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 4, 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_TCA_KIND, _TCA_OPTIONS = 1, 2
_ROOT = 0xFFFFFFFF
_REPLACE = 0x100


def _uint32(value: int) -> bytes:
    return struct.pack("=I", value)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _link_header(index: int, flags: int, change: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def add_veth(
    name: str,
    *,
    index: int,
    peer: str,
    peer_index: int,
    peer_namespace: int,
    mtu: int = 1500,
    master: int | None = None,
) -> Request:
    """A veth pair: `name` here and up, `peer` down, in the namespace behind a descriptor.

    Indexes are chosen by the caller and must be free. `master`: index of a bridge here that `name`
    becomes a port of. Needs CAP_NET_ADMIN over both namespaces.
    """
    far = (
        _link_header(peer_index, 0, 0)  # not up: it has no peer yet then (ENOTCONN, veth_open)
        + build_attribute(_IFLA_IFNAME, _text(peer))
        + build_attribute(_IFLA_MTU, _uint32(mtu))
        + build_attribute(_IFLA_NET_NS_FD, _uint32(peer_namespace))
    )
    payload = (
        _link_header(index, _IFF_UP, _IFF_UP)
        + build_attribute(_IFLA_IFNAME, _text(name))
        + build_attribute(_IFLA_MTU, _uint32(mtu))
        + (b"" if master is None else build_attribute(_IFLA_MASTER, _uint32(master)))
        + build_nested(
            _IFLA_LINKINFO,
            build_attribute(_INFO_KIND, b"veth\0"),
            build_nested(_INFO_DATA, build_attribute(_VETH_INFO_PEER, far)),
        )
    )
    return Request("add", f"link `{name}` to `{peer}`", _NEWLINK, CREATE | EXCL, payload)


def add_bridge(name: str, *, index: int, mtu: int = 1500) -> Request:
    """A bridge, up, without spanning tree."""
    payload = (
        _link_header(index, _IFF_UP, _IFF_UP)
        + build_attribute(_IFLA_IFNAME, _text(name))
        + build_attribute(_IFLA_MTU, _uint32(mtu))
        + build_nested(_IFLA_LINKINFO, build_attribute(_INFO_KIND, b"bridge\0"))
    )
    return Request("add", f"bridge `{name}`", _NEWLINK, CREATE | EXCL, payload)


def set_link(index: int, *, up: bool) -> Request:
    """Take a link up or down. A veth whose end is down has no carrier at the other end."""
    act = "bring up" if up else "take down"
    payload = _link_header(index, _IFF_UP if up else 0, _IFF_UP)
    return Request(act, f"link {index}", _NEWLINK, 0, payload)


def delete_link(index: int) -> Request:
    """Delete a link, and with one end of a veth the other."""
    return Request("delete", f"link {index}", _DELLINK, 0, _link_header(index, 0, 0))


# --- shaping -------------------------------------------------------------------------------


def shape(index: int, *, loss: float = 0.0, delay: float = 0.0, rate: int = 0) -> Request:
    """Loss (per cent), delay (ms) and rate (bits/s) of what leaves by a link, by netem.

    Replaces an earlier shape. See `apply_shape` for kernels without netem.
    """
    # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter. Latency is in ticks of
    # 64 ns (psched), the 64-bit attribute in ns replaces it; loss is a share of 2**32.
    share = min(round(loss / 100 * 0xFFFFFFFF), 0xFFFFFFFF)
    options = struct.pack("=IIIIII", 0, 10_000, share, 0, 0, 0)
    options += build_attribute(10, struct.pack("=q", round(delay * 1e6)))  # TCA_NETEM_LATENCY64
    if rate:
        # TCA_NETEM_RATE: struct tc_netem_rate {rate, packet_overhead, cell_size, cell_overhead}
        options += build_attribute(6, struct.pack("=IiIi", min(rate // 8, 0xFFFFFFFF), 0, 0, 0))
    return _qdisc(index, "netem", options, "shape")


def limit_rate(index: int, *, rate: int) -> Request:
    """Only a rate (bits/s) for what leaves by a link, by a token bucket."""
    per_second = max(rate // 8, 1)
    burst = max(per_second // 100, 5 * 1514)
    ticks = round(burst / per_second * 1e9 / 64)  # psched ticks are 64 ns
    spec = struct.pack("=BBHhHI", 0, 1, 0, -1, 0, min(per_second, 0xFFFFFFFF))
    options = build_attribute(
        1, spec + struct.pack("=BBHhHI", 0, 0, 0, 0, 0, 0) + struct.pack("=III", 1 << 20, ticks, 0)
    )  # TCA_TBF_PARMS: struct tc_tbf_qopt {rate, peakrate, limit, buffer, mtu}
    options += build_attribute(6, _uint32(burst))  # TCA_TBF_BURST
    return _qdisc(index, "tbf", options, "limit")


def _qdisc(index: int, kind: str, options: bytes, act: str) -> Request:
    payload = (
        struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, 0, _ROOT, 0)
        + build_attribute(_TCA_KIND, _text(kind))
        + build_attribute(_TCA_OPTIONS, options)
    )
    return Request(act, f"link {index}", _NEWQDISC, CREATE | _REPLACE, payload)


def unshape(index: int) -> Request:
    """Take the shape off; ENOENT when there is none."""
    payload = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, 0, _ROOT, 0)
    return Request("unshape", f"link {index}", _DELQDISC, 0, payload)


def apply_shape(route: RouteSocket, index: int, *, loss: float, delay: float, rate: int) -> None:
    """Shape a link with what the kernel has; HostError in plain words when it lacks netem."""
    if not (loss or delay or rate):
        return
    try:
        route.apply(shape(index, loss=loss, delay=delay, rate=rate))
    except KernelError as error:
        if error.number != errno.ENOENT:
            raise
        if loss or delay:
            raise HostError(
                "cannot give a link loss or delay: this kernel has no netem",
                hint="load it: sudo modprobe sch_netem; a `rate` alone works without",
                code="no-netem",
            ) from error
        route.apply(limit_rate(index, rate=rate))


# --- silent failure ------------------------------------------------------------------------

_NETLINK_NETFILTER, _SUBSYSTEM, _NETDEV = 12, 10, 5
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN = 0, 2, 3


def silence(devices: Iterable[str]) -> None:
    """Drop all that these devices receive, carrier up, in the calling thread's namespace.

    One table per device, so that links are cut and mended apart; already silent is no error.
    Both ends of a link silenced make a failure that only timers notice. KernelError otherwise.
    """
    for device in devices:
        name = build_attribute(1, _text(_table(device)))
        hook = build_nested(
            4,  # NFTA_CHAIN_HOOK: number 0 (ingress), priority 0, device
            build_attribute(1, struct.pack(">I", 0)),
            build_attribute(2, struct.pack(">i", 0)),
            build_attribute(3, _text(device)),
        )
        chain = (
            name
            + build_attribute(3, b"ingress\0")
            + hook
            + build_attribute(7, b"filter\0")
            + build_attribute(5, struct.pack(">I", 0))  # policy drop
        )
        _nft("silence", device, (_NEWTABLE, CREATE, name), (_NEWCHAIN, CREATE, chain))


def unsilence(devices: Iterable[str]) -> None:
    """Undo `silence`; a device that was not silent is no error."""
    for device in devices:
        try:
            _nft("unsilence", device, (_DELTABLE, 0, build_attribute(1, _text(_table(device)))))
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise


def _table(device: str) -> str:
    return f"loopbox-cut-{device}"


def _nft(act: str, device: str, *messages: tuple[int, int, bytes]) -> None:
    """Send one nftables batch for the netdev family; KernelError with the first complaint."""
    generic = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    parts = [build_message(_BATCH_BEGIN, REQUEST, 0, generic)]
    for sequence, (kind, flags, payload) in enumerate(messages, start=1):
        header = struct.pack(">BBH", _NETDEV, 0, 0)
        ack = ACK if sequence == len(messages) else 0
        parts.append(
            build_message(_SUBSYSTEM << 8 | kind, REQUEST | flags | ack, sequence, header + payload)
        )
    parts.append(build_message(_BATCH_END, REQUEST, len(messages) + 1, generic))
    with open_netlink(_NETLINK_NETFILTER) as netlink:
        netlink.send(b"".join(parts))
        while True:
            for message in parse_messages(netlink.recv(65536)):
                if message.error is None:
                    continue
                number, text = message.error
                if number:
                    raise KernelError(act, f"device `{device}`", number, text)
                if message.sequence == len(messages):
                    return
