"""The relay: carries bytes between host and box, apart from the control plane.

Owns: the `Relay` interface, its values, and the choice between the two cores that do the work:
the compiled one (`loopbox.keeper._relay`, src/native/relay.c) and its pure Python twin
(`loopbox.keeper.relay_python`). Both run one edge-triggered epoll loop in a thread of their own.

Must never: decide who may talk to whom beyond the uid of the client, read what it carries, block
the caller, raise for what goes wrong on a connection (that is counted and logged).

Example::

    relay = make_relay(home_netns_fd=parking, diag_fd=diag.fileno())
    relay.start()
    relay.add_door(
        1, listener.detach(), group=7, netns_fd=box, targets=[("127.0.0.1", 80)], owner=1000
    )
    ...
    relay.stop()
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

_TARGET = struct.Struct(
    "=HH16s"
)  # struct target of relay.c: family, port in network order, address
MOST_TARGETS = 8


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """What one group (one box) has and had."""

    open: int
    """Connections now."""
    bytes: int
    """Bytes carried, both directions together."""


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """Counters since `start`; read without stopping the relay, so each is exact, their sum not."""

    open: int
    """Connections now, those being dialled included."""
    accepted: int
    """Clients taken from doors, the refused ones included."""
    refused: int
    """Clients of another user, reset."""
    failed: int
    """Connections that no target answered."""
    bytes_in: int
    """Bytes from clients (left) to boxes (right)."""
    bytes_out: int
    """Bytes from boxes (right) to clients (left)."""
    groups: Mapping[int, GroupStatistics]


@dataclass(frozen=True, slots=True)
class EndedConnection:
    """The account of one connection made by `join`, given once, after it is over."""

    id: int
    bytes_in: int
    """Left to right."""
    bytes_out: int
    """Right to left."""
    reset: bool
    """It ended by a reset (of a peer or of `drop_group`), not in order."""


class Relay(Protocol):
    """Carries bytes. Every call is thread-safe, returns at once and takes effect in order.

    `group` is a number per box. Descriptors named `netns_fd` are borrowed (copied before the call
    returns); all others pass to the relay. After `stop` the calls close what they are given.
    """

    def start(self) -> None:
        """Start the relay's thread; once. Raises RuntimeError the second time."""

    def stop(self) -> None:
        """Reset every connection, close all it owns, join the thread. Idempotent, waits."""

    def add_door(
        self,
        door: int,
        listener_fd: int,
        *,
        group: int,
        netns_fd: int,
        targets: Sequence[tuple[str, int]],
        owner: int | None,
    ) -> None:
        """Accept on a listening socket, dial the targets in order inside the box, carry bytes.

        A client that is not `owner`'s (None: anyone's) or that no target answers is reset.
        A door of the same number is replaced. Raises ValueError for no, or bad, targets.
        """

    def retarget_door(self, door: int, targets: Sequence[tuple[str, int]]) -> None:
        """Change where connections accepted from now on are led; an unknown door is ignored."""

    def remove_door(self, door: int) -> None:
        """Close the listener; its connections live on."""

    def dial(
        self,
        client_fd: int,
        *,
        group: int,
        netns_fd: int,
        targets: Sequence[tuple[str, int]],
        head: bytes,
        refusal: bytes,
    ) -> None:
        """Adopt a client from whom `head` was already read: dial, send `head`, then carry.

        When nothing answers the client reads `refusal` and an end (no refusal: a reset).
        """

    def join(
        self,
        left_fd: int,
        right_fd: int,
        *,
        group: int,
        to_right: bytes = b"",
        to_left: bytes = b"",
    ) -> int:
        """Carry bytes between two connected stream sockets; returns the connection's id."""

    def drop_group(self, group: int, netns_fd: int | None = None) -> None:
        """Reset the group's connections, remove its doors, let go of its namespaces.

        Soon after, nothing of the relay keeps them alive; `netns_fd` names one to leave even if
        the group is unknown.
        """

    def statistics(self) -> RelayStatistics:
        """The counters now."""

    def ended(self) -> list[EndedConnection]:
        """Connections made by `join` that ended since the last call (the last 65,536)."""

    def ended_fd(self) -> int:
        """An eventfd that reads as ready when `ended` has news; the relay's own, do not close."""


class Core(Protocol):
    """What the compiled and the Python core have in common, in plain numbers and bytes.

    `place` is (group, netns_fd); -1 stands for None.
    """

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def add_door(
        self, door: int, fd: int, place: tuple[int, int], targets: bytes, owner: int, /
    ) -> None: ...
    def retarget_door(self, door: int, targets: bytes, /) -> None: ...
    def remove_door(self, door: int, /) -> None: ...
    def dial(
        self, fd: int, place: tuple[int, int], targets: bytes, head: bytes, refusal: bytes, /
    ) -> None: ...
    def join(
        self, left_fd: int, right_fd: int, group: int, to_right: bytes, to_left: bytes, /
    ) -> int: ...
    def drop_group(self, group: int, netns_fd: int, /) -> None: ...
    def counters(self) -> tuple[int, int, int, int, int, int, list[tuple[int, int, int]]]: ...
    def ended(self) -> list[tuple[int, int, int, bool]]: ...
    def ended_fd(self) -> int: ...
    def complaints(self) -> list[tuple[str, int, int]]: ...


class CoreRelay:
    """The `Relay` over either core: typed values in, plain ones down, complaints to the log."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def start(self) -> None:
        self._core.start()

    def stop(self) -> None:
        self._core.stop()
        self._log_complaints()

    def add_door(
        self,
        door: int,
        listener_fd: int,
        *,
        group: int,
        netns_fd: int,
        targets: Sequence[tuple[str, int]],
        owner: int | None,
    ) -> None:
        packed = pack_targets(tuple(targets))
        uid = -1 if owner is None else owner
        self._core.add_door(door, listener_fd, (group, netns_fd), packed, uid)

    def retarget_door(self, door: int, targets: Sequence[tuple[str, int]]) -> None:
        self._core.retarget_door(door, pack_targets(tuple(targets)))

    def remove_door(self, door: int) -> None:
        self._core.remove_door(door)

    def dial(
        self,
        client_fd: int,
        *,
        group: int,
        netns_fd: int,
        targets: Sequence[tuple[str, int]],
        head: bytes,
        refusal: bytes,
    ) -> None:
        packed = pack_targets(tuple(targets))
        self._core.dial(client_fd, (group, netns_fd), packed, head, refusal)

    def join(
        self,
        left_fd: int,
        right_fd: int,
        *,
        group: int,
        to_right: bytes = b"",
        to_left: bytes = b"",
    ) -> int:
        return self._core.join(left_fd, right_fd, group, to_right, to_left)

    def drop_group(self, group: int, netns_fd: int | None = None) -> None:
        self._core.drop_group(group, -1 if netns_fd is None else netns_fd)

    def statistics(self) -> RelayStatistics:
        self._log_complaints()
        is_open, accepted, refused, failed, bytes_in, bytes_out, groups = self._core.counters()
        return RelayStatistics(
            open=is_open,
            accepted=accepted,
            refused=refused,
            failed=failed,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            groups={number: GroupStatistics(*rest) for number, *rest in groups},
        )

    def ended(self) -> list[EndedConnection]:
        return [EndedConnection(*row) for row in self._core.ended()]

    def ended_fd(self) -> int:
        return self._core.ended_fd()

    def _log_complaints(self) -> None:
        for what, number, error in self._core.complaints():
            log.warning("relay: %s %d: %s", what, number, os.strerror(error))


@functools.lru_cache(maxsize=4096)
def pack_targets(targets: tuple[tuple[str, int], ...]) -> bytes:
    """Numeric (address, port) pairs as the cores take them. Raises ValueError."""
    if not 0 < len(targets) <= MOST_TARGETS:
        raise ValueError(f"a door leads to 1 to {MOST_TARGETS} targets, not {len(targets)}")
    packed = bytearray()
    for address, port in targets:
        if not 0 < port <= 0xFFFF:
            raise ValueError(f"port {port} of target {address!r} is not 1 to 65535")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            packed += _TARGET.pack(family, socket.htons(port), socket.inet_pton(family, address))
        except OSError as problem:
            raise ValueError(f"target {address!r} is not a numeric address") from problem
    return bytes(packed)


def compiled_core() -> Callable[[int, int], Core] | None:
    """The class of the compiled core; None where there was no compiler when it was installed."""
    try:
        native = importlib.import_module("loopbox.keeper._relay")
    except ImportError:
        return None
    core: Callable[[int, int], Core] = native.Core
    return core


def make_relay(*, home_netns_fd: int, diag_fd: int, pure: bool = False) -> Relay:
    """The compiled relay where there is one, else the Python twin (`LOOPBOX_RELAY=python`).

    `home_netns_fd` is a namespace to stand in when a box goes. `diag_fd` is a sock_diag socket of
    the namespace the clients are in and for the relay alone: its answers must not go to others.
    Both are copied.
    """
    make = None
    if not pure and os.environ.get("LOOPBOX_RELAY") != "python":
        make = compiled_core()
    if make is None:
        from loopbox.keeper import relay_python  # noqa: PLC0415  8 ms that most need not pay

        make = relay_python.Core
    return CoreRelay(make(home_netns_fd, diag_fd))
