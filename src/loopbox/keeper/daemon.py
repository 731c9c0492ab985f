"""The keeper as a whole: put together, served, ended.

Owns: the order in which the parts start and stop, when the keeper ends by itself (no box, no
client, for a while), and the signals it heeds.
Must never: hold logic of a part; die because one part's work failed.

Example::

    await serve(Setup(...), ready=tell_the_starter)
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  (asyncio imports it late: no descriptor may be left)
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from loopbox.keeper.files import PrivateFiles
from loopbox.keeper.frontdoor import FrontDoor
from loopbox.keeper.lifecycle import Life
from loopbox.keeper.records import Records
from loopbox.keeper.recovery import recover
from loopbox.keeper.relay import Relay, make_relay
from loopbox.keeper.roam import Roamer
from loopbox.keeper.server import ControlServer
from loopbox.keeper.verbs import Verbs
from loopbox.keeper.wayout import WayOut
from loopbox.kernel.transparent import NAMESERVER
from loopbox.settings import UserSettings

log = logging.getLogger("loopbox.keeper")

_HOUSEKEEPING = 0.5
"""Seconds between two looks at whether to write names down or to end."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a keeper starts with; all descriptors are its own from here on."""

    runtime_fd: int
    runtime: Path
    state: Path
    user_namespace: int | None
    """None as root: boxes are then made without one."""
    diag: socket.socket
    """A sock_diag socket of the host, opened before the user namespace was entered: inside it
    foreign uids would all read as 65534."""
    relay_diag: socket.socket
    """Another for the relay's thread: two threads on one would read each other's answers."""
    settings: UserSettings
    problems: tuple[str, ...]
    """What was wrong with the settings, for every command that enters a box to say."""
    idle_seconds: float


async def serve(setup: Setup, *, ready: Callable[[], None]) -> None:
    """Serve until told to stop or idle for long. Calls `ready` once clients can connect."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    async with AsyncExitStack() as stack:
        records = Records(runtime=setup.runtime, state=setup.state)
        stack.callback(records.flush)
        files = PrivateFiles(setup.runtime / "files", nameserver=NAMESERVER)
        roamer = Roamer(files.shared)
        await roamer.start()
        stack.push_async_callback(roamer.stop)
        relay = make_relay(home_netns_fd=roamer.parking, diag_fd=setup.relay_diag.fileno())
        relay.start()
        stack.callback(relay.stop)
        life = await _assemble(
            setup, stack, roamer=roamer, relay=relay, records=records, files=files
        )
        verbs = Verbs(
            life=life,
            records=records,
            user_namespace=setup.user_namespace,
            problems=setup.problems,
            stop=stopping.set,
            status=lambda: _statistics(relay, life.front_door),
        )
        server = ControlServer(setup.runtime_fd, answer=verbs.answer)
        await recover(life, records, roamer)
        await files.lay_over_all()
        server.start()
        stack.push_async_callback(server.close)
        log.info("serving, pid %d, %d boxes taken over", os.getpid(), len(life.boxes))
        ready()
        await _until_done(stopping, life=life, server=server, records=records, setup=setup)
        log.info("ending, %d boxes are left to the next keeper", len(life.boxes))


async def _assemble(
    setup: Setup,
    stack: AsyncExitStack,
    *,
    roamer: Roamer,
    relay: Relay,
    records: Records,
    files: PrivateFiles,
) -> Life:
    life: Life | None = None

    def names() -> dict[str, str]:
        return {} if life is None else life.names()

    way_out = WayOut(relay=relay, roam=roamer)
    stack.push_async_callback(way_out.aclose)
    front_door = FrontDoor(
        relay=relay,
        roam=roamer,
        diag=setup.diag,
        owner=os.getuid(),
        directory=names,
        shared_doors=setup.settings.shared_doors,
    )
    stack.push_async_callback(front_door.close)
    life = Life(
        roamer=roamer,
        relay=relay,
        front_door=front_door,
        way_out=way_out,
        records=records,
        files=files,
    )
    held = life

    async def let_go() -> None:
        await held.close()
        await files.close(remove=not held.boxes)

    stack.push_async_callback(let_go)
    files.serve(roamer, lambda: list(held.boxes.values()))
    return life


async def _until_done(
    stopping: asyncio.Event,
    *,
    life: Life,
    server: ControlServer,
    records: Records,
    setup: Setup,
) -> None:
    loop = asyncio.get_running_loop()
    idle_since = loop.time()
    while not stopping.is_set():
        try:
            await asyncio.wait_for(stopping.wait(), _HOUSEKEEPING)
        except TimeoutError:
            pass
        records.flush()
        if life.boxes or server.connections:
            idle_since = loop.time()
        since = max(idle_since, server.idle_since)
        if loop.time() - since > setup.idle_seconds:
            log.info("idle for %g s", setup.idle_seconds)
            return
        if not server.is_in_place():
            log.warning("the control socket was removed; ending so that another keeper can serve")
            return


def _statistics(relay: Relay, front_door: FrontDoor) -> dict[str, object]:
    found, doors = relay.statistics(), front_door.statistics()
    return {
        "relay": {
            "open": found.open,
            "accepted": found.accepted,
            "refused": found.refused,
            "failed": found.failed,
            "bytes_in": found.bytes_in,
            "bytes_out": found.bytes_out,
        },
        "shared_door": {
            "ports": doors.shared.ports,
            "foreign": doors.shared.foreign,
            "answered": doors.shared.answered,
            "problems": {
                str(port): text for port, text in sorted(front_door.shared_problems.items())
            },
        },
    }
