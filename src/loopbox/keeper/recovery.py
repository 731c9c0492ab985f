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
import functools
import logging
import os
from collections.abc import Iterable

from loopbox.keeper.holding import Record, Reopened
from loopbox.keeper.lifecycle import Life
from loopbox.keeper.records import Records
from loopbox.keeper.roam import Roamer
from loopbox.kernel import nft
from loopbox.kernel.making import Wish, equip_anew
from loopbox.kernel.namespaces import (
    Namespaces,
    inode_of,
    is_network_of,
    keeper_namespace_of,
    network_cookie,
    open_counters,
    open_namespace,
    owner_of,
)
from loopbox.kernel.processes import members
from loopbox.kernel.sockets import listening_here

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
            reopened = await _reopen(record, pids, roamer)
            if reopened is not None:
                await life.adopt(record, reopened, pids)
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

    # Side by side: a box waits for the roaming thread, on a busy machine for long.
    await asyncio.gather(*map(take, found))


async def _reopen(record: Record, pids: list[int], roamer: Roamer) -> Reopened | None:
    """All that one visit of the roaming thread gives of a box that lives, or None."""
    net = _open_network(record.inode, pids)
    if net is None:
        return None

    mnt = None
    try:
        mnt = _open_mounts(record.mounts, pids)
        if mnt is None:
            mnt = await roamer.copy_mounts()
        namespaces = Namespaces(net, mnt, record.inode, record.cookie)
        found = await roamer.inside(net, functools.partial(_visit, record, namespaces))
    except OSError as error:
        log.info("what looked like box %s is not ours: %s", record.name, error)
        found = None
    if found is None:
        for fd in (net, mnt):
            if fd is not None:
                os.close(fd)
    return found


def _visit(record: Record, namespaces: Namespaces) -> Reopened | None:
    """Inside the box, once: every visit costs the roaming thread two ways and two wakings."""
    if network_cookie() != record.cookie:
        return None
    way_out, problem = equip_anew(sealed=record.sealed)
    counters: tuple[int, ...] = ()
    try:
        counters = open_counters()
        return Reopened(namespaces, way_out, problem, counters, tuple(listening_here()))
    except BaseException:
        for fd in counters:
            os.close(fd)
        if way_out is not None:
            way_out.close()
        raise


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
