"""What a person or program is shown of the boxes, put together when asked.

Owns: turning held boxes into `model.Box`, with the processes and who holds which socket, read
from /proc only now (nothing of it is needed while nobody looks).
Must never: change a box.

Example::

    [view.as_json() for view in await show_boxes(life, [box])]
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from loopbox.keeper.frontdoor import FrontDoor
from loopbox.keeper.holding import HeldBox, Record
from loopbox.keeper.lifecycle import Life
from loopbox.kernel.netlink import LOOPBACK_INDEX, KernelError, RouteSocket
from loopbox.kernel.processes import command_of, members, socket_holders
from loopbox.kernel.sockets import ListeningSocket
from loopbox.model import Box, Listener, Process
from loopbox.rules.doors import url_for


async def show_boxes(life: Life, boxes: Sequence[HeldBox]) -> list[Box]:
    """The boxes as they are now, in the order given."""
    pids = await asyncio.to_thread(members, {box.namespaces.inode for box in boxes})
    views = []
    for box in boxes:
        own = pids[box.namespaces.inode]
        loopback = await life.inside(box, loopback_here)
        found = await life.listeners_of(box) if own else ()
        holders = socket_holders(own) if found else {}
        views.append(
            Box(
                name=box.name,
                state="up",
                address=str(box.address),
                directory=box.directory,
                created=box.created,
                loopback=loopback,
                listeners=tuple(
                    show_listener(box, socket, holders, door=life.front_door) for socket in found
                ),
                processes=tuple(Process(pid, command_of(pid)) for pid in sorted(own)),
                forward=box.forward,
                egress_policy="none" if box.sealed else box.egress,
                kept=box.kept,
                problems=box.problems,
            )
        )
    return views


_EVERY_BOX_HAS = ("127.0.0.1/8", "::1/128")


def loopback_here() -> tuple[str, ...]:
    """The addresses of lo in the calling thread's network: 127/8 and ::1 first, then IPv4's."""
    try:
        with RouteSocket() as route:
            found = [item for item in route.addresses() if item.index == LOOPBACK_INDEX]
    except (OSError, KernelError):  # no descriptors left, say: what every box has at least
        return _EVERY_BOX_HAS
    found.sort(key=lambda item: (not item.interface.is_loopback, item.interface.version))
    return tuple(str(item.interface) for item in found)


def show_stopped(record: Record) -> Box:
    """A box that is known and not up."""
    return Box(
        name=record.name,
        state="stopped",
        address=str(record.address),
        directory=record.directory,
        created=record.created,
        forward=record.forward,
        kept=record.kept,
    )


def show_listener(
    box: HeldBox, socket: ListeningSocket, holders: dict[int, int], *, door: FrontDoor
) -> Listener:
    """One listener, with where the host finds it: by name only where the shared door is ours."""
    pid = holders.get(socket.inode)
    port = socket.port
    problem = box.doors.get((socket.protocol, port))
    if problem is None and not box.counters:
        # Daemons of a lab came without the keeper; it watches from the first entry on.
        problem = f"not opened before somebody enters the box: loopbox exec {box.name} -- true"
    is_open = (socket.protocol, port) in box.doors and problem is None
    url = None
    if socket.protocol == "tcp" and problem is None:
        problem = door.shared_problems.get(port)
        by_name = door.is_shared(port) or not is_open
        url = url_for(box.name, port, address=None if by_name else box.address)
    return Listener(
        protocol=socket.protocol,
        family=socket.family,
        bind=str(socket.address),
        port=port,
        pid=pid,
        command=None if pid is None else command_of(pid),
        at=f"{box.address}:{port}" if is_open else None,
        url=url,
        problem=problem,
    )
