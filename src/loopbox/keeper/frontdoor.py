"""The front door: makes what listens in the boxes reachable from the host, and nothing else.

Owns: the desired state of the host's side. For each box its TCP ports at its own address (the
relay accepts and carries there), its UDP ports (`udpdoor`), and the shared doors of all boxes on
127.0.0.1 and ::1 (`shareddoor`), with 80 and 443 while any box is up.

Must never: touch a port that a program of the host holds, forget to close what it opened, wait
for anything but a job inside a box.

Example::

    problems = await door.show(box, listeners)      # {("tcp", 3000): None, ("udp", 53): "…"}
    await door.hide(box)

`show` takes everything that listens in a box; showing the same again changes nothing, but tries
once more what could not be opened. It runs without a break in the event loop's thread, so that
calls for one box never overlap.
"""

from __future__ import annotations

import itertools
import logging
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from loopbox.keeper.hostports import explain_bind, listen_at
from loopbox.keeper.relay import Relay
from loopbox.keeper.shareddoor import HEAD_SECONDS, SharedDoors, SharedDoorStatistics
from loopbox.keeper.shown import DoorBox, Roam, ShownBox, Targets
from loopbox.keeper.udpdoor import UdpDoors
from loopbox.kernel.sockets import ListeningSocket
from loopbox.rules import doors

__all__ = ["DoorBox", "FrontDoor", "FrontDoorStatistics"]

log = logging.getLogger(__name__)

WEB_DOORS: Final = (80, 443)

Key = tuple[str, int]
"""Protocol and port."""


@dataclass(slots=True)
class _Held:
    """What is open on the host for one box."""

    shown: ShownBox
    numbers: dict[int, int]
    """For each TCP port the relay's number of its door."""
    problems: dict[Key, str]
    errors: dict[Key, int | None]


@dataclass(frozen=True, slots=True)
class FrontDoorStatistics:
    """What is open now."""

    boxes: int
    tcp_doors: int
    udp_flows: int
    shared: SharedDoorStatistics


class FrontDoor:
    """The host's side of all boxes. Lives in the event loop's thread, in the host's namespace."""

    def __init__(
        self,
        *,
        relay: Relay,
        roam: Roam,
        diag: socket.socket,
        owner: int,
        directory: Callable[[], Mapping[str, str]],
        shared_doors: bool = True,
        head_seconds: float = HEAD_SECONDS,
        hidden_ports: Collection[int] = (),
    ) -> None:
        """Inside a running event loop.

        `diag` is a sock_diag socket of the host's namespace for the event loop's thread alone;
        borrowed. `directory` gives every name known now: `up` or `stopped`. `hidden_ports` are
        ports of the keeper's own in every box, for which no door opens.
        """
        self._relay = relay
        self._diag = diag
        self._hidden = frozenset(hidden_ports)
        self._numbers = itertools.count(1)
        self._boxes: dict[str, _Held] = {}
        self._uses: Counter[int] = Counter()
        """How many boxes listen on each TCP port."""
        self._udp = UdpDoors(roam=roam, diag=diag)
        self._shared: SharedDoors | None = None
        if shared_doors:
            self._shared = SharedDoors(
                relay=relay,
                diag=diag,
                owner=owner,
                directory=directory,
                shown=self._find,
                admits_everyone=lambda: any(
                    held.shown.box.owner is None for held in self._boxes.values()
                ),
                head_seconds=head_seconds,
            )

    @property
    def shared_problems(self) -> dict[int, str]:
        """For each port that the shared door could not open: why, and what helps."""
        return dict(self._shared.problems) if self._shared else {}

    def is_shared(self, port: int) -> bool:
        """Whether 127.0.0.1 and ::1 serve this port by name."""
        return self._shared is not None and self._shared.is_open(port)

    def statistics(self) -> FrontDoorStatistics:
        """What is open now."""
        shared = self._shared.statistics if self._shared else SharedDoorStatistics(*([0] * 6))
        return FrontDoorStatistics(
            boxes=len(self._boxes),
            tcp_doors=sum(len(held.numbers) for held in self._boxes.values()),
            udp_flows=self._udp.flow_count,
            shared=shared,
        )

    async def show(
        self, box: DoorBox, listeners: Iterable[ListeningSocket]
    ) -> dict[Key, str | None]:
        """Make the host's side true for this box.

        Gives for each port that loopback reaches why it could not be opened at the box's address,
        None where it is open.
        """
        held = self._boxes.get(box.name)
        if held is not None and held.shown.box != box:
            await self.hide(held.shown.box)
            held = None
        if held is None:
            held = _Held(shown=ShownBox(box), numbers={}, problems={}, errors={})
            self._boxes[box.name] = held
        wanted = self._wanted(listeners)
        tcp = {port: targets for (kind, port), targets in wanted.items() if kind == "tcp"}
        udp = {port: targets for (kind, port), targets in wanted.items() if kind == "udp"}
        self._set_tcp(held, tcp)
        self._set_udp(held, udp)
        self._set_shared(held, tcp)
        for key in held.problems.keys() - wanted.keys():
            del held.problems[key]
            held.errors.pop(key, None)
        return {key: held.problems.get(key) for key in wanted}

    async def hide(self, box: DoorBox) -> None:
        """Close everything that leads into this box; connections that exist are the relay's."""
        held = self._boxes.get(box.name)
        if held is None:
            return
        self._set_tcp(held, {})
        self._set_udp(held, {})
        self._set_shared(held, {})
        del self._boxes[box.name]
        if not self._boxes and self._shared is not None:
            for port in WEB_DOORS:
                self._shared.close(port)

    async def close(self) -> None:
        """Close every door; the front door is not used again."""
        for held in list(self._boxes.values()):
            await self.hide(held.shown.box)
        if self._shared is not None:
            self._shared.close_all()
        await self._udp.aclose()

    def _find(self, name: str) -> ShownBox | None:
        held = self._boxes.get(name)
        return held.shown if held is not None else None

    def _wanted(self, listeners: Iterable[ListeningSocket]) -> dict[Key, Targets]:
        """Where each port leads; ports that loopback does not reach are left out."""
        groups: dict[Key, list[ListeningSocket]] = {}
        for listener in listeners:
            if listener.protocol in ("tcp", "udp") and listener.port not in self._hidden:
                groups.setdefault((listener.protocol, listener.port), []).append(listener)
        found = {key: tuple(doors.dial_targets(key[1], binds)) for key, binds in groups.items()}
        return {key: targets for key, targets in sorted(found.items()) if targets}

    # -- the box's own address ----------------------------------------------------------------

    def _set_tcp(self, held: _Held, wanted: Mapping[int, Targets]) -> None:
        box = held.shown.box
        for port in held.numbers.keys() - wanted.keys():
            self._relay.remove_door(held.numbers.pop(port))
        for port, targets in wanted.items():
            number = held.numbers.get(port)
            if number is not None:
                if held.shown.tcp.get(port) != targets:
                    self._relay.retarget_door(number, targets)
                continue
            try:
                listener = listen_at(str(box.address), port)
            except OSError as error:
                self._note(held, ("tcp", port), error)
                continue
            number = next(self._numbers)
            self._relay.add_door(
                number,
                listener.detach(),
                group=box.group,
                netns_fd=box.netns_fd,
                targets=targets,
                owner=box.owner,
            )
            held.numbers[port] = number
            self._clear(held, ("tcp", port))

    def _set_udp(self, held: _Held, wanted: Mapping[int, Targets]) -> None:
        box = held.shown.box
        for port in self._udp.ports(box.name) - wanted.keys():
            self._udp.close(box.name, port)
        for port, targets in wanted.items():
            try:
                self._udp.open(box, port, target=targets[0])
            except OSError as error:
                self._note(held, ("udp", port), error)
            else:
                self._clear(held, ("udp", port))

    def _note(self, held: _Held, key: Key, error: OSError) -> None:
        """Remember the problem; who holds the port is looked up once for each kind of error."""
        if key in held.problems and held.errors.get(key) == error.errno:
            return
        address: IPv4Address = held.shown.box.address
        held.errors[key] = error.errno
        held.problems[key] = explain_bind(
            error, diag=self._diag, address=str(address), port=key[1], protocol=key[0]
        )
        log.info("box %s: %s", held.shown.box.name, held.problems[key])

    def _clear(self, held: _Held, key: Key) -> None:
        held.problems.pop(key, None)
        held.errors.pop(key, None)

    # -- the shared doors ---------------------------------------------------------------------

    def _set_shared(self, held: _Held, wanted: Mapping[int, Targets]) -> None:
        """Serve the ports that any box listens on, and take new targets for this box."""
        before = held.shown.tcp.keys()
        self._uses.update(wanted.keys() - before)
        for port in before - wanted.keys():
            self._uses[port] -= 1
            if self._uses[port] == 0:
                del self._uses[port]
                if self._shared is not None and port not in WEB_DOORS:
                    self._shared.close(port)
        held.shown.tcp = dict(wanted)
        if self._shared is not None:
            for port in {*wanted, *WEB_DOORS}:
                self._shared.open(port)
