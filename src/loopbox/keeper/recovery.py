"""Finding the boxes again that a keeper before this one left, by SIGKILL or by being stopped.

Owns: from a record on disk to the living box it tells of: by the inode of its network namespace
(what /proc shows of a process) and by its cookie (an inode is given to the next namespace at
once, a cookie never again). Kept boxes that nobody lives in are made anew.
Must never: touch a namespace whose cookie is not the record's: it is another program's.

Example::

    user = open_owner(records.all())        # rootless, before the first thread starts
    await recover(life, records, roamer)    # once the parts stand
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable

from loopbox.keeper.holding import Record
from loopbox.keeper.lifecycle import Life
from loopbox.keeper.records import Records
from loopbox.keeper.roam import Roamer
from loopbox.kernel import nft
from loopbox.kernel.making import Wish
from loopbox.kernel.namespaces import (
    Namespaces,
    inode_of,
    is_network_of,
    keeper_namespace_of,
    network_cookie,
    open_namespace,
    owner_of,
)
from loopbox.kernel.processes import members

log = logging.getLogger("loopbox.recovery")


def open_owner(records: Iterable[Record]) -> int | None:
    """The user namespace that the living boxes of the records belong to; None: none lives.

    Forks: the process must have one thread only.
    """
    known = {record.inode: record for record in records if record.inode}
    for inode, pids in members(known).items():
        net = _open_network(inode, pids)
        if net is None:
            continue
        try:
            owner = keeper_namespace_of(owner_of(net))
        except OSError:
            continue
        else:
            if is_network_of(known[inode].cookie, user=owner, net=net):
                return owner
            os.close(owner)
        finally:
            os.close(net)
    return None


async def recover(life: Life, records: Records, roamer: Roamer) -> None:
    """Take over the boxes that live, make the kept ones anew, forget the rest."""
    found = records.all()
    alive = members({record.inode for record in found if record.inode})
    if any(alive.values()):
        await roamer.inside(roamer.parking, nft.learn)

    async def take(record: Record) -> None:
        pids = alive.get(record.inode, [])
        try:
            namespaces = await _reopen(record, pids, roamer)
            if namespaces is not None:
                await life.adopt(record, namespaces, pids)
            elif record.kept:
                box, _made = await life.get_or_make(
                    record.name,
                    directory=record.directory,
                    kept=True,
                    wish=Wish(sealed=record.sealed),
                )
                await life.configuration.restore(box, record)
            else:
                records.forget(record.name)
        except Exception:
            log.exception("cannot take box %s over", record.name)

    # Side by side: a box waits for the roaming thread six times, on a busy machine for long.
    await asyncio.gather(*map(take, found))


async def _reopen(record: Record, pids: list[int], roamer: Roamer) -> Namespaces | None:
    net = _open_network(record.inode, pids)
    if net is None:
        return None
    try:
        if await roamer.inside(net, network_cookie) != record.cookie:
            os.close(net)
            return None
        mnt = _open_mounts(record.mounts, pids)
        if mnt is None:
            mnt = await roamer.copy_mounts()
    except OSError as error:
        log.info("what looked like box %s is not ours: %s", record.name, error)
        os.close(net)
        return None
    return Namespaces(net, mnt, record.inode, record.cookie)


def _open_network(inode: int, pids: Iterable[int]) -> int | None:
    for pid in pids:
        try:
            net = open_namespace("net", pid)
        except OSError:
            continue
        if inode_of(net) == inode:
            return net
        os.close(net)
    return None


def _open_mounts(inode: int, pids: Iterable[int]) -> int | None:
    """The box's own mount namespace: programs inside may have made others (a sandbox does)."""
    for pid in pids:
        try:
            mnt = open_namespace("mnt", pid)
        except OSError:
            continue
        if inode_of(mnt) == inode:
            return mnt
        os.close(mnt)
    return None
