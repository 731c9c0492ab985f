"""What a box that is up is asked to be: forwards, egress policy, who may come in, whether it stays.

Owns: bringing the way out and the front door in line with what is asked, and writing it down.
Must never: make or unmake a box.

Example::

    await configuration.set_forward(box, (5432,))
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from loopbox.errors import BoxError
from loopbox.keeper.holding import HeldBox, Record
from loopbox.keeper.records import Records
from loopbox.keeper.wayout import WayOut

log = logging.getLogger("loopbox.life")


class Configuration:
    """Changes what boxes are asked to be. Each change is idempotent."""

    def __init__(
        self,
        *,
        way_out: WayOut,
        records: Records,
        look: Callable[[HeldBox], Awaitable[None]],
    ) -> None:
        self._way_out = way_out
        self._records = records
        self._look = look

    async def set_forward(self, box: HeldBox, ports: Iterable[int]) -> None:
        """Let these ports of the box's loopback lead to the host's, besides those that do."""
        wanted = tuple(sorted({*box.forward, *ports}))
        if wanted == box.forward:
            return
        problems = await self._way_out.set_forwards(box.group, box.namespaces.net, wanted)
        for port, problem in problems.items():
            if problem is not None:
                raise BoxError(f"cannot forward port {port} into box `{box.name}`: {problem}")
        box.forward = wanted
        self._records.save(box)

    def set_egress(self, box: HeldBox, policy: str) -> None:
        """Judge what the box begins outside from now on by this policy."""
        if box.egress != policy:
            self._way_out.set_policy(box.group, box.namespaces.net, policy)
            box.egress = policy
            self._records.save(box)

    async def set_admission(self, box: HeldBox, *, anyone: bool) -> None:
        """Let other users of the machine in through the front door, or not."""
        if box.admits_anyone != anyone:
            box.admits_anyone = anyone
            self._records.save(box)
            if box.doors:
                await self._look(box)

    def keep(self, box: HeldBox) -> None:
        """Let the box stay when its last process has gone."""
        if not box.kept:
            box.kept = True
            self._records.save(box)

    async def restore(self, box: HeldBox, record: Record) -> None:
        """Ask of a box what was asked of it before. Forwards that fail now are logged."""
        box.admits_anyone = record.admits_anyone
        box.forward, box.egress = record.forward, record.egress
        found = await self._way_out.set_forwards(box.group, box.namespaces.net, box.forward)
        self._way_out.set_policy(box.group, box.namespaces.net, box.egress)
        for port, problem in found.items():
            if problem is not None:
                log.warning("cannot forward port %d into box %s: %s", port, box.name, problem)
