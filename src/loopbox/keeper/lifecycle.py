"""The life of boxes: made once however many ask, found again after a crash, unmade whole.

Owns: the boxes that are up. A box is made in ordered steps, each with its undo pushed right
after it; a box that cannot be finished is unmade. Unmaking carries on past what fails.
Must never: speak to clients or render anything.

Example::

    box = await life.get_or_make("shop", directory="/home/a/shop")
    life.admit(box, pid)
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from loopbox.errors import BoxError, HostError
from loopbox.keeper.census import Census
from loopbox.keeper.configuration import Configuration
from loopbox.keeper.files import PrivateFiles
from loopbox.keeper.frontdoor import DoorBox, FrontDoor
from loopbox.keeper.holding import HeldBox, Record, Reopened
from loopbox.keeper.known import Known
from loopbox.keeper.records import Records
from loopbox.keeper.relay import Relay
from loopbox.keeper.roam import Roamer
from loopbox.keeper.shown import Result
from loopbox.keeper.watch import Watch
from loopbox.keeper.wayout import WayOut
from loopbox.kernel.limits import demand_descriptors
from loopbox.kernel.making import (
    ORDINARY,
    Wish,
    make_ready,
)
from loopbox.kernel.sockets import ListeningSocket, listening_here

log = logging.getLogger("loopbox.life")


class Life:
    """All boxes of this keeper. Lives on the event loop's thread."""

    def __init__(
        self,
        *,
        roamer: Roamer,
        relay: Relay,
        front_door: FrontDoor,
        way_out: WayOut,
        records: Records,
        files: PrivateFiles,
    ) -> None:
        self._roamer = roamer
        self._relay = relay
        self._front_door = front_door
        self._way_out = way_out
        self._records = records
        self._files = files
        self._loop = asyncio.get_running_loop()
        self._making: dict[str, asyncio.Task[HeldBox]] = {}
        self._unmaking: dict[str, asyncio.Task[None]] = {}
        self._groups = 0
        self._known = Known(records)
        self.boxes: dict[str, HeldBox] = {}
        self.census = Census(on_empty=self._box_is_empty)
        self.configuration = Configuration(way_out=way_out, records=records, look=self.look)
        self.watch = Watch(boxes=lambda: list(self.boxes.values()), look=self.look)

    @property
    def front_door(self) -> FrontDoor:
        """The host's side of all boxes, to be asked what is open."""
        return self._front_door

    # -- names known --------------------------------------------------------------------------

    def get(self, name: str) -> HeldBox:
        """The box of that name. Raises BoxError when it is not up."""
        box = self.boxes.get(name)
        if box is None or box.going:
            hint = f"start it: loopbox run --name {name} -- CMD"
            if self.boxes:
                hint = "see which are up: loopbox ls"
            raise BoxError(f"cannot find box `{name}`: it is not up", hint=hint, code="no-box")
        return box

    def names(self) -> dict[str, str]:
        """Every name known now: `up` or `stopped`, for the shared door's answers."""
        return self._known.names(self.boxes)

    # -- making -------------------------------------------------------------------------------

    async def get_or_make(
        self,
        name: str,
        *,
        directory: str,
        kept: bool = False,
        owns_name: bool = False,
        wish: Wish = ORDINARY,
    ) -> tuple[HeldBox, bool]:
        """The box of that name and whether it was made now. Raises HostError when it cannot be."""
        made_now = False
        while True:
            while (ending := self._unmaking.get(name)) is not None:
                await asyncio.wait({ending})
            box = self.boxes.get(name)
            if box is not None and not box.going:
                break
            task = self._making.get(name)
            made_now = task is None
            if task is None:
                task = self._loop.create_task(
                    self._make(name, directory=directory, kept=kept, wish=wish),
                    name=f"make {name}",
                )
                self._making[name] = task
                task.add_done_callback(lambda _done: self._making.pop(name, None))
            # Shielded: a client that goes away must not leave a half-made box to those who wait.
            box = await asyncio.shield(task)
            if not box.going:
                break
        if owns_name:
            self._records.own(name, directory, box.address)
        return box, made_now

    async def _make(self, name: str, *, directory: str, kept: bool, wish: Wish) -> HeldBox:
        demand_descriptors()
        # Both are drawn before the first await: boxes made side by side never share them.
        group = self._next_group()
        address = self._known.draw(name)
        async with AsyncExitStack() as undo:
            undo.callback(self._known.give_back, address)
            try:
                made = await self._roamer.make(
                    group=os.getegid(), ipv6=self._way_out.has_ipv6, wish=wish
                )
            except OSError as error:
                raise HostError(
                    f"cannot make box `{name}`: {error.strerror}",
                    hint="loopbox doctor says what this machine allows",
                ) from error
            undo.callback(made.namespaces.close)
            box = HeldBox(
                name=name,
                group=group,
                address=address,
                directory=directory,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                namespaces=made.namespaces,
                kept=kept,
                sealed=wish.sealed,
                world6=made.world6 if made.has_way_out else None,
                problems=() if made.problem is None else (made.problem,),
            )
            if kept:  # another's record waits for its first program, without which it would go
                self._records.save(box)
            self.boxes[name] = box
            self._known.is_up(name)
            undo.pop_all()
        log.info("made box %s at %s", name, address)
        return box

    def _next_group(self) -> int:
        self._groups += 1
        return self._groups

    # -- members ------------------------------------------------------------------------------

    async def prepare(self, box: HeldBox) -> None:
        """Make the box ready for its first program; later calls only check its private files."""
        await self._files.freshen()
        if box.counters:
            return
        if box.dressing is None:
            box.dressing = self._loop.create_task(self._dress(box), name=f"dress {box.name}")
        try:
            await asyncio.shield(box.dressing)
        except OSError as error:
            box.dressing = None
            raise HostError(
                f"cannot enter box `{box.name}`: {error.strerror}",
                hint="loopbox doctor says what this machine allows",
            ) from error

    async def _dress(self, box: HeldBox) -> None:
        """Make and open what only programs need."""
        if box.going:
            return
        laid = self._files.laid
        mnt, ready = await self._roamer.dress(
            box.namespaces.net,
            self._files.of(box.name),
            functools.partial(make_ready, group=os.getegid(), sealed=box.sealed, world6=box.world6),
        )
        if box.going:
            os.close(mnt)
            ready.close()
            return
        box.namespaces = dataclasses.replace(box.namespaces, mnt=mnt)
        box.counters, box.way_out = ready.counters, ready.way_out
        if ready.problem is not None:
            box.problems = (*box.problems, ready.problem)
        self._records.save(box)
        if box.way_out is not None:
            await self._way_out.open(box.group, box.namespaces.net, box.way_out)
        if self._files.laid != laid:  # meanwhile, and not yet over this box's
            await self._roamer.rebind([(mnt, self._files.of(box.name) or self._files.shared)])

    def admit(self, box: HeldBox, pid: int, *, is_gone: Callable[[], bool] = lambda: False) -> None:
        """Count a process in. Raises BoxError when the box has begun to go."""
        if box.going:
            raise BoxError(f"cannot enter box `{box.name}`: it is being taken down", code="going")
        self.census.admit(box, pid, is_gone=is_gone)

    def recheck(self, box: HeldBox, pid: int) -> None:
        """A client that was admitted has hung up: only if it is inside does it hold the box."""
        if not box.going:
            self.census.recheck(box, pid)

    def lease(self, box: HeldBox, change: int) -> None:
        """Hold the box for a connection (+1), or let go (-1)."""
        box.leases += change
        if change < 0 and not box.is_occupied:
            self.census.doubt(box)

    def _box_is_empty(self, box: HeldBox) -> None:
        if not box.kept:
            self.unmake_soon(box)

    # -- listeners ----------------------------------------------------------------------------

    async def listeners_of(self, box: HeldBox) -> tuple[ListeningSocket, ...]:
        """What waits for peers in the box now, the keeper's own sockets left out."""
        hidden = self._way_out.own_inodes(box.group)
        found = await self.inside(box, listening_here)
        return tuple(one for one in found if one.inode not in hidden)

    async def look(self, box: HeldBox) -> None:
        """Bring the front door of a box in line with what listens in it."""
        await self._show(box, await self.listeners_of(box))

    async def _show(self, box: HeldBox, found: tuple[ListeningSocket, ...]) -> None:
        if box.going:
            return
        box.doors = await self._front_door.show(self._door_box(box), found)
        box.listeners = found

    def _door_box(self, box: HeldBox) -> DoorBox:
        return DoorBox(
            name=box.name,
            address=box.address,
            group=box.group,
            netns_fd=box.namespaces.net,
            owner=None if box.admits_anyone else os.getuid(),
        )

    async def inside(self, box: HeldBox, function: Callable[[], Result]) -> Result:
        """What the function gives in the box's network."""
        return await self._roamer.inside(box.namespaces.net, function)

    def forget_gone(self) -> None:
        """Forget the names of boxes that were up."""
        self._known.forget_gone()

    # -- unmaking -----------------------------------------------------------------------------

    def unmake_soon(self, box: HeldBox) -> asyncio.Future[None]:
        """Begin to unmake a box; what is given is done when nothing of it is left."""
        if self.boxes.get(box.name) is not box:
            gone: asyncio.Future[None] = self._loop.create_future()
            gone.set_result(None)
            return gone
        task = self._unmaking.get(box.name)
        if task is None:
            box.going = True
            task = self._loop.create_task(self._unmake(box), name=f"unmake {box.name}")
            self._unmaking[box.name] = task
        return task

    async def _unmake(self, box: HeldBox) -> None:
        self.watch.forget(box)
        self.census.dismiss(box)
        try:
            # Also with no door open now: the shared one may still lead to where one was.
            await self._front_door.hide(self._door_box(box))
        except Exception:
            log.exception("cannot close the front door of box %s", box.name)
        for step in (
            functools.partial(self._way_out.close, box.group),
            functools.partial(self._relay.drop_group, box.group, box.namespaces.net),
            functools.partial(_close_all, box.counters),
            functools.partial(self._records.forget, box.name),
            functools.partial(self._files.forget, box.name),
        ):
            try:
                step()
            except Exception:
                log.exception("one step of unmaking box %s failed", box.name)
        box.counters = ()
        try:
            await self._roamer.release(box.namespaces)
        except OSError:
            log.exception("cannot let go of box %s", box.name)
        self._known.give_back(box.address)
        if self.boxes.get(box.name) is box:
            del self.boxes[box.name]
        self._unmaking.pop(box.name, None)
        self._known.has_gone(box.name)
        log.info("box %s is gone", box.name)

    # -- recovery -----------------------------------------------------------------------------

    async def adopt(self, record: Record, found: Reopened, pids: list[int]) -> None:
        """Take over a box whose processes live; all that was found is ours from here on."""
        group = self._next_group()
        address = self._known.take(record.name, record.address)
        async with AsyncExitStack() as undo:
            undo.callback(found.namespaces.close)
            undo.callback(_close_all, found.counters)
            undo.callback(self._known.give_back, address)
            box = HeldBox.taken_over(record, found, group=group, address=address)
            undo.callback(self._way_out.close, group)
            # Before anything leaves the box: what was denied stays denied.
            await self.configuration.restore(box, record)
            if found.way_out is not None:
                await self._way_out.open(group, box.namespaces.net, found.way_out)
            self.boxes[box.name] = box
            undo.pop_all()
        if not any(self.census.admit(box, pid) for pid in pids):
            self.census.doubt(box)
        if Record.parse(box.record()) != record:
            self._records.save(box)
        hidden = self._way_out.own_inodes(group)
        await self._show(box, tuple(one for one in found.listeners if one.inode not in hidden))
        log.info("took box %s over from an earlier keeper", box.name)

    async def close(self) -> None:
        """Let go of every box: what runs in one goes on, and a later keeper finds it."""
        await self.watch.close()
        for box in list(self.boxes.values()):
            self.census.dismiss(box)
        self.census.close()


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)
