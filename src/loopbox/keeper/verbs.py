"""What each verb of the control protocol does.

Owns: the verb table: request fields in, `Reply` out. A verb reads its fields, calls `Life`, and
shows the outcome; the rules behind it live elsewhere.
Must never: touch the kernel or a socket.

Example::

    await verbs.answer(client, {"verb": "show", "name": "shop"})
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from loopbox import __version__
from loopbox.errors import DeadlineError, UsageError
from loopbox.keeper.ending import end_processes
from loopbox.keeper.holding import HeldBox
from loopbox.keeper.lifecycle import Life
from loopbox.keeper.records import Records
from loopbox.keeper.server import Client, Reply
from loopbox.keeper.views import show_boxes
from loopbox.kernel.making import Wish
from loopbox.kernel.namespaces import inode_of
from loopbox.kernel.projects import Project, read_project
from loopbox.kernel.rooted import make_rooted_networks
from loopbox.rules.naming import Identity, infer, parse_box_name
from loopbox.settings import ProjectSettings

_POLICIES = ("open", "local", "none", "filter")
_SIDE_BY_SIDE = 64
_LOOK_AGAIN = 0.02
"""Seconds between two looks while a client waits for a listener."""

Fields = dict[str, str]


class Verbs:
    """The verbs of one keeper."""

    def __init__(
        self,
        *,
        life: Life,
        records: Records,
        user_namespace: int | None,
        problems: tuple[str, ...] = (),
        stop: Callable[[], None],
        status: Callable[[], dict[str, object]],
    ) -> None:
        self._life = life
        self._records = records
        self._user_namespace = user_namespace
        self._problems = problems
        self._stop = stop
        self._status = status
        self._table: dict[str, Callable[[Client, Fields], Awaitable[Reply]]] = {
            "enter": self._enter,
            "lease": self._lease,
            "identify": self._identify,
            "ls": self._ls,
            "show": self._show,
            "wait": self._wait,
            "down": self._down,
            "prune": self._prune,
            "make": self._make,
            "descriptors": self._descriptors,
            "socket": self._socket,
            "status": self._keeper_status,
            "stop": self._keeper_stop,
        }

    async def answer(self, client: Client, request: Fields) -> Reply:
        """Do what is asked. Raises LoopboxError with the reason when it cannot be done."""
        verb = self._table.get(request.get("verb", ""))
        if verb is None:
            raise UsageError(f"cannot do `{request.get('verb', '')}`: no such verb")
        return await verb(client, request)

    # -- which box ----------------------------------------------------------------------------

    def _owner_of(self, name: str) -> Path | None:
        box = self._life.boxes.get(name)
        return Path(box.directory) if box is not None else self._records.owner_of(name)

    def _identity(self, fields: Fields) -> tuple[Identity, Project]:
        file = Path(fields["file"]) if fields.get("file") else None
        project = read_project(Path(fields.get("cwd") or "/"), file=file)
        name = fields.get("name") or None
        identity = infer(
            project.facts, name=name, branch=fields.get("branch"), owner_of=self._owner_of
        )
        return identity, project

    def _name(self, fields: Fields) -> str:
        if fields.get("name"):
            return parse_box_name(fields["name"])
        return self._identity(fields)[0].name

    def _box(self, fields: Fields) -> HeldBox:
        return self._life.get(self._name(fields))

    # -- entering -----------------------------------------------------------------------------

    async def _enter(self, client: Client, fields: Fields) -> Reply:
        async with self._holding(fields) as (box, made):
            await self._life.prepare(box)
            if fields.get("pid"):
                self._life.admit(box, _number(fields["pid"]))
            else:
                self._life.admit(box, client.pid, is_gone=client.is_gone)
                client.ended.append(lambda: self._life.recheck(box, client.pid))
            return self._way_in(box, made=made)

    async def _lease(self, client: Client, fields: Fields) -> Reply:
        """As enter, but the connection holds the box, not the process that asks."""
        async with self._holding(fields) as (box, made):
            await self._life.prepare(box)
            self._life.lease(box, +1)
            client.ended.append(lambda: self._life.lease(box, -1))
            return self._way_in(box, made=made)

    @asynccontextmanager
    async def _holding(self, fields: Fields) -> AsyncIterator[tuple[HeldBox, bool]]:
        """The box asked for and whether it was made now; it cannot go before the block ends.

        Without the hold it could: its last process may end while another client is on its way
        in. And a box made for a client that then fails or goes away leaves by the same rule as
        any other: nobody is in it.
        """
        settings: ProjectSettings | None = None
        if fields.get("create") == "1":
            identity, project = self._identity(fields)
            settings = project.settings
            box, made = await self._life.get_or_make(
                identity.name,
                directory=str(identity.directory),
                owns_name=not fields.get("name"),
            )
        else:
            box, made = self._box(fields), False
        self._life.lease(box, +1)
        try:
            if settings is not None:
                await self._configure(box, fields, settings)
            yield box, made
        finally:
            self._life.lease(box, -1)

    async def _configure(self, box: HeldBox, fields: Fields, settings: ProjectSettings) -> None:
        """What the command line asks of the box, and what the project's file does."""
        policy = fields.get("egress") or (settings.egress.policy if settings.egress else None)
        if policy is not None:
            if policy not in _POLICIES:
                raise UsageError(
                    f"cannot apply egress policy `{policy}`: there is no such policy",
                    hint=f"one of {', '.join(_POLICIES)}",
                )
            self._life.configuration.set_egress(box, policy)
        await self._life.configuration.set_admission(box, anyone=settings.admit == "anyone")
        await self._life.configuration.set_forward(
            box, (*settings.forward, *_ports(fields.get("forward", "")))
        )
        if fields.get("keep") == "1":
            self._life.configuration.keep(box)

    def _way_in(self, box: HeldBox, *, made: bool) -> Reply:
        descriptors = {"net": box.namespaces.net, "mnt": box.namespaces.mnt}
        if self._user_namespace is not None:
            descriptors["user"] = self._user_namespace
        return Reply(
            fields={
                "name": box.name,
                "address": str(box.address),
                "made": "1" if made else "0",
                "problems": "\n".join((*self._problems, *box.problems, *_egress_problems(box))),
                "env.LOOPBOX_NAME": box.name,
                "env.LOOPBOX_ADDRESS": str(box.address),
                "env.LOOPBOX_URL": f"http://{box.name}.localhost",
            },
            descriptors=descriptors,
        )

    async def _identify(self, _client: Client, fields: Fields) -> Reply:
        identity, project = self._identity(fields)
        return Reply(
            fields={"name": identity.name},
            document={
                "name": identity.name,
                "directory": str(identity.directory),
                "reason": identity.reason,
                "settings": None if project.settings_file is None else str(project.settings_file),
                "up": identity.name in self._life.boxes,
            },
        )

    # -- looking ------------------------------------------------------------------------------

    async def _ls(self, _client: Client, _fields: Fields) -> Reply:
        boxes = sorted(self._life.boxes.values(), key=lambda box: box.name)
        views = await show_boxes(self._life, [box for box in boxes if not box.going])
        return Reply(document={"boxes": [view.as_json() for view in views]})

    async def _show(self, _client: Client, fields: Fields) -> Reply:
        [view] = await show_boxes(self._life, [self._box(fields)])
        return Reply(fields={"name": view.name}, document=view.as_json())

    async def _wait(self, client: Client, fields: Fields) -> Reply:
        """Until something listens; the box may not even be up yet (`run` in the background)."""
        name = self._name(fields)
        [port] = _ports(fields.get("port") or "0")
        patience = _seconds(fields.get("timeout") or "60")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            box = self._life.boxes.get(name)
            if box is not None and not box.going:
                found = await self._life.listeners_of(box)
                if any(one.protocol == "tcp" and one.port == port for one in found):
                    await self._life.look(box)
                    return Reply(fields={"name": name})
            if client.is_gone():
                raise ConnectionAbortedError("the client waits no longer")
            if loop.time() >= deadline:
                if box is None:
                    self._life.get(name)
                raise DeadlineError(
                    f"cannot wait longer for port {port} of box `{name}`: nothing listens there "
                    f"after {patience:g} s",
                    hint=f"see what does: loopbox show {name}",
                )
            await asyncio.sleep(_LOOK_AGAIN)

    # -- ending -------------------------------------------------------------------------------

    async def _down(self, client: Client, fields: Fields) -> Reply:
        if fields.get("all") == "1":
            boxes = [box for box in self._life.boxes.values() if not box.going]
        else:
            names = [name for name in fields.get("names", "").split(",") if name]
            if fields.get("missing") == "ok":
                up = {box.name for box in self._life.boxes.values() if not box.going}
                names = [name for name in names if name in up]
            boxes = [self._life.get(parse_box_name(name)) for name in names]
            if not names and fields.get("missing") != "ok":
                boxes = [self._box(fields)]
        grace = _seconds(fields.get("grace") or "5")
        await end_processes(boxes, grace=grace, spare={client.pid})
        await asyncio.gather(*(self._life.unmake_soon(box) for box in boxes))
        return Reply(document={"down": [box.name for box in boxes]})

    async def _prune(self, _client: Client, _fields: Fields) -> Reply:
        """Boxes nobody is in, and names whose directory is gone or whose box is not up."""
        idle = [box for box in self._life.boxes.values() if not box.is_occupied and not box.going]
        await asyncio.gather(*(self._life.unmake_soon(box) for box in idle))
        names = [name for name in self._records.owned() if name not in self._life.boxes]
        for name in names:
            self._records.disown(name)
        self._life.forget_gone()
        self._records.flush()
        return Reply(document={"boxes": [box.name for box in idle], "names": sorted(names)})

    # -- sockets, the keeper ------------------------------------------------------------------

    async def _socket(self, _client: Client, fields: Fields) -> Reply:
        """A new socket that lives in the box: `family` and `type` as numbers of the C library."""
        box = self._box(fields)
        family, kind = _number(fields.get("family", "")), _number(fields.get("type", ""))
        fd = await self._life.inside(box, lambda: socket.socket(family, kind).detach())
        return Reply(descriptors={"socket": fd}, release=(fd,))

    async def _make(self, _client: Client, fields: Fields) -> Reply:
        """Many kept boxes at once, by name: labs and benchmarks.

        `sealed`: without a way out. `rooted`: a plain user's daemons can be root over them.
        """
        names = [parse_box_name(name) for name in fields.get("names", "").split(",") if name]
        directory = fields.get("cwd") or "/"
        sealed = fields.get("sealed") == "1"
        with ExitStack() as held:
            networks: Iterator[int | None] = itertools.repeat(None)
            if fields.get("rooted") == "1" and self._user_namespace is not None and names:
                rooted = await asyncio.to_thread(make_rooted_networks, len(names))
                held.callback(rooted.close)
                networks = iter(rooted.networks)
            waiting = zip(names, networks, strict=False)

            async def make() -> None:
                for name, network in waiting:
                    await self._life.get_or_make(
                        name, directory=directory, kept=True, wish=Wish(sealed, network)
                    )

            # Enough to keep the makers busy; 1,000 tasks would only cost memory.
            # All are waited for: none may still make a box while the networks are closed.
            done = await asyncio.gather(
                *(make() for _ in range(_SIDE_BY_SIDE)), return_exceptions=True
            )
        for failure in done:
            if failure is not None:
                raise failure
        return Reply(document={"made": names})

    async def _descriptors(self, _client: Client, fields: Fields) -> Reply:
        """The network namespaces of some boxes, in the order asked; and the keeper's user's.

        Not as `enter`: nothing is prepared or held up. For labs, which wire boxes from outside.
        """
        names = [name for name in fields.get("names", "").split(",") if name]
        boxes = [self._life.get(parse_box_name(name)) for name in names]
        descriptors = {f"net.{place}": box.namespaces.net for place, box in enumerate(boxes)}
        if self._user_namespace is not None:
            descriptors["user"] = self._user_namespace
        return Reply(
            document=[
                {"name": box.name, "cookie": box.namespaces.cookie, "address": str(box.address)}
                for box in boxes
            ],
            descriptors=descriptors,
        )

    async def _keeper_status(self, _client: Client, _fields: Fields) -> Reply:
        document = {
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            "rootless": self._user_namespace is not None,
            "user_namespace": None
            if self._user_namespace is None
            else inode_of(self._user_namespace),
            "boxes": len(self._life.boxes),
            **self._status(),
        }
        return Reply(document=document)

    async def _keeper_stop(self, _client: Client, _fields: Fields) -> Reply:
        self._stop()
        return Reply(document={"stopped": True, "boxes": sorted(self._life.boxes)})


def _egress_problems(box: HeldBox) -> list[str]:
    # Rules of one's own come with the egress commands. Until then this fails closed, and says so.
    if box.egress != "filter":
        return []
    return ["egress policy `filter` allows nothing outside yet: this version knows no rules for it"]


def _ports(text: str) -> list[int]:
    ports = []
    for word in filter(None, text.split(",")):
        if not (word.isascii() and word.isdigit()) or not 1 <= int(word) <= 65535:
            raise UsageError(f"cannot use port `{word}`: it is no number from 1 to 65535")
        ports.append(int(word))
    return ports


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"cannot use `{text[:40]}`: it is no number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"cannot use `{text[:40]}`: it is no number of seconds")
    return seconds
