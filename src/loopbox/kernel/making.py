"""A whole box at once: namespaces, settings, guard and way out.

Owns: choosing between the compiled maker (one call, no GIL: two threads make boxes side by side)
and the same steps in Python, which also explain why a box cannot be made.
Must never: keep what a failed making left; run on a thread that still needs the host's namespaces.

Example, on a roaming thread::

    made = make_box(template, group=1000, ipv6=True)
    made.namespaces.net, made.way_out, made.problem
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache

from loopbox.errors import HostError
from loopbox.kernel import nft, syscalls
from loopbox.kernel.namespaces import Namespaces, inode_of, make_namespaces, ping_range
from loopbox.kernel.netlink import Request
from loopbox.kernel.transparent import (
    BACKLOG,
    NETLINK_NETFILTER,
    UDP_BUFFER,
    WayOutSockets,
    build_log_request,
    open_way_out,
    way_out_requests,
)
from loopbox.wire.netlink import ACK, REQUEST


@dataclass(frozen=True, slots=True)
class MadeBox:
    """A new box's descriptors; whoever holds it closes them."""

    namespaces: Namespaces
    way_out: WayOutSockets | None
    problem: str | None
    """Why there is no way out, None when there is one."""

    def close(self) -> None:
        """Let go of all of it."""
        self.namespaces.close()
        if self.way_out is not None:
            self.way_out.close()


@dataclass(frozen=True, slots=True)
class Wish:
    """What a box is to be besides a box."""

    sealed: bool = False
    """No way out: what its own routes do not reach is unreachable, as on a router."""
    network: int | None = None
    """A fresh network namespace to take instead of making one; the asker keeps and closes it."""


ORDINARY = Wish()


def make_box(template: int, *, group: int, ipv6: bool, wish: Wish = ORDINARY) -> MadeBox:
    """Make a box; this thread then stands in it. `template` is a mount namespace to copy.

    A kernel that lacks part of the way out gives a box without one, and the reason. Raises
    OSError when there can be no box at all; nothing is left then.
    """
    if syscalls.COMPILED:
        try:
            return _make_at_once(template, group=group, ipv6=ipv6, wish=wish)
        except OSError:
            pass  # the slow way finds out which step it was, and what can be had without it
    return _make_in_steps(template, group=group, ipv6=ipv6, wish=wish)


def equip_anew(*, sealed: bool) -> tuple[WayOutSockets | None, str | None]:
    """Inside a box of an earlier keeper: its way out, or why it has none. It still is a box."""
    if sealed:
        return None, None
    try:
        return open_way_out(), None
    except HostError as error:
        return None, f"no way out: {error.message}"


def _make_at_once(template: int, *, group: int, ipv6: bool, wish: Wish) -> MadeBox:
    batches = _sealing() if wish.sealed else _batches(ipv6=ipv6)
    net, mnt, tcp, udp, log, cookie = syscalls.make_box(
        template,
        -1 if wish.network is None else wish.network,
        0 if wish.sealed else nft.WAY_OUT_PORT,
        UDP_BUFFER,
        BACKLOG,
        ping_range(group),
        *batches,
    )
    namespaces = Namespaces(net, mnt, inode_of(net), cookie)
    if wish.sealed:
        return MadeBox(namespaces, None, None)
    # Family and type are given so that Python need not ask the kernel for them, twice a socket.
    sockets = WayOutSockets(
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, tcp),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 0, udp),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER, log),
        world6=ipv6,
    )
    for one in (sockets.tcp, sockets.udp, sockets.log):
        if one is not None:
            one.setblocking(False)
    return MadeBox(namespaces, sockets, None)


def _make_in_steps(template: int, *, group: int, ipv6: bool, wish: Wish) -> MadeBox:
    namespaces = make_namespaces(template, group=group, network=wish.network)
    try:
        if wish.sealed:
            nft.install(with_way_out=False)
            return MadeBox(namespaces, None, None)
        return MadeBox(namespaces, open_way_out(ipv6=ipv6), None)
    except HostError as error:
        return MadeBox(namespaces, None, f"no way out: {error.message}")
    except BaseException:
        namespaces.close()
        raise


@cache
def _batches(*, ipv6: bool) -> tuple[bytes, bytes, bytes, bytes]:
    """The ready-made requests: NFLOG, nftables, routes of IPv4 and of IPv6."""
    requests4, requests6 = way_out_requests(ipv6=ipv6)
    batch = nft.fresh_batch(with_way_out=True)
    return build_log_request(), batch, _join(requests4), _join(requests6)


def _sealing() -> tuple[bytes, bytes, bytes, bytes]:
    """As `_batches`, for a box without a way out."""
    return b"", nft.fresh_batch(with_way_out=False), b"", b""


def _join(requests: tuple[Request, ...]) -> bytes:
    """One datagram; only its last message asks for an acknowledgement (netlink(7))."""
    last = len(requests)
    return b"".join(
        request.build(number, extra_flags=REQUEST | (ACK if number == last else 0))
        for number, request in enumerate(requests, start=1)
    )
