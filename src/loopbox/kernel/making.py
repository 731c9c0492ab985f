"""A box's network, made and furnished: namespace, guard and way out.

Owns: choosing between the compiled maker (one call, no GIL: two threads make boxes side by side)
and the same steps in Python, which also explain why a box cannot be made; and what is added when
the first program enters.
Must never: keep what a failed making left; run on a thread that still needs the host's namespaces.

What only a program needs is not made with the box: its mount namespace, its settings, the keeper's
sockets for its way out. A box at rest costs one descriptor, and 1,000 of them half the time.

Example, on a roaming thread::

    [made] = make_boxes(1, group=1000, ipv6=True, wish=ORDINARY)
    made.namespaces.net, made.has_way_out, made.problem
    ready = make_ready(group=1000, sealed=False, world6=made.world6)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from loopbox.errors import HostError
from loopbox.kernel import nft, syscalls
from loopbox.kernel.namespaces import Namespaces, inode_of, make_network, open_counters, tune
from loopbox.kernel.netlink import Request
from loopbox.kernel.syscalls import CLONE_NEWNET, setns
from loopbox.kernel.transparent import (
    WayOutSockets,
    lay_way_out,
    open_sockets,
    open_way_out,
    way_out_requests,
)
from loopbox.wire.netlink import ACK, REQUEST


@dataclass(frozen=True, slots=True)
class MadeBox:
    """A new box's network; whoever holds it closes the namespaces."""

    namespaces: Namespaces
    has_way_out: bool
    world6: bool = False
    """Whether it was given a route to the IPv6 world."""
    problem: str | None = None
    """Why there is no way out although one was wanted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a box is to be besides a box."""

    sealed: bool = False
    """No way out: what its own routes do not reach is unreachable, as on a router."""
    network: int | None = None
    """A fresh network namespace to take instead of making one; the asker keeps and closes it."""


ORDINARY = Wish()


def make_boxes(count: int, *, group: int, ipv6: bool, wish: Wish) -> list[MadeBox]:
    """Make up to `count` boxes in one go, and at least one; this thread then stands in the last.

    `group` is the gid that may ping; `count` is 1 for a wish with a network. Between the boxes
    this thread never waits for the interpreter: with many threads busy that takes as long as a
    box. A kernel that lacks part of the way out gives a box without one, and the reason. Raises
    OSError when there can be no box at all; nothing is left then.
    """
    if syscalls.COMPILED:
        try:
            return _make_at_once(count, group=group, ipv6=ipv6, wish=wish)
        except OSError:
            pass  # the slow way finds out which step it was, and what can be had without it
    return [_make_in_steps(group=group, ipv6=ipv6, wish=wish)]


@dataclass(frozen=True, slots=True)
class ProgramParts:
    """What is open in a box for its programs' sake; whoever holds it closes it."""

    counters: tuple[int, ...]
    """See namespaces.open_counters."""
    way_out: WayOutSockets | None
    problem: str | None
    """Why there is no way out although one was wanted."""

    def close(self) -> None:
        """Let go of all of it."""
        for descriptor in self.counters:
            os.close(descriptor)
        if self.way_out is not None:
            self.way_out.close()


def make_ready(*, group: int, sealed: bool, world6: bool | None) -> ProgramParts:
    """Inside a box, before its first program.

    `world6` is None for a box that was made without a way out. Raises OSError, leaving nothing.
    """
    if not sealed:  # a sealed box was given them when it was made, and may have changed them since
        tune(group)
    way_out, problem = None, None
    if world6 is not None:
        try:
            way_out = open_sockets(world6=world6)
        except HostError as error:
            problem = f"no way out: {error.message}"
    try:
        return ProgramParts(open_counters(), way_out, problem)
    except BaseException:
        if way_out is not None:
            way_out.close()
        raise


def equip_anew(*, sealed: bool) -> tuple[WayOutSockets | None, str | None]:
    """Inside a box of an earlier keeper: its way out, or why it has none. It still is a box."""
    if sealed:
        return None, None
    try:
        return open_way_out(), None
    except HostError as error:
        return None, f"no way out: {error.message}"


def _make_at_once(count: int, *, group: int, ipv6: bool, wish: Wish) -> list[MadeBox]:
    made = [
        Namespaces(net, -1, inode_of(net), cookie)
        for net, cookie in syscalls.make_boxes(
            count,
            -1 if wish.network is None else wish.network,
            *(_sealing() if wish.sealed else _batches(ipv6=ipv6)),
        )
    ]
    if not wish.sealed:
        return [MadeBox(namespaces, True, ipv6) for namespaces in made]
    try:
        for namespaces in made:  # links come soon, and programs by other ways than the keeper's
            setns(namespaces.net, CLONE_NEWNET)
            tune(group)
    except BaseException:
        for namespaces in made:
            namespaces.close()
        raise
    return [MadeBox(namespaces, False) for namespaces in made]


def _make_in_steps(*, group: int, ipv6: bool, wish: Wish) -> MadeBox:
    net, cookie = make_network(wish.network)
    namespaces = Namespaces(net, -1, inode_of(net), cookie)
    try:
        if wish.sealed:
            tune(group)
            nft.install(with_way_out=False)
            return MadeBox(namespaces, False)
        return MadeBox(namespaces, True, lay_way_out(ipv6=ipv6))
    except HostError as error:
        return MadeBox(namespaces, False, problem=f"no way out: {error.message}")
    except BaseException:
        namespaces.close()
        raise


@cache
def _batches(*, ipv6: bool) -> tuple[bytes, bytes, bytes]:
    """The ready-made requests: nftables, routes of IPv4 and of IPv6."""
    requests4, requests6 = way_out_requests(ipv6=ipv6)
    return nft.fresh_batch(with_way_out=True), _join(requests4), _join(requests6)


def _sealing() -> tuple[bytes, bytes, bytes]:
    """As `_batches`, for a box without a way out."""
    return nft.fresh_batch(with_way_out=False), b"", b""


def _join(requests: tuple[Request, ...]) -> bytes:
    """One datagram; only its last message asks for an acknowledgement (netlink(7))."""
    last = len(requests)
    return b"".join(
        request.build(number, extra_flags=REQUEST | (ACK if number == last else 0))
        for number, request in enumerate(requests, start=1)
    )
