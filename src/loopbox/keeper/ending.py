"""Ending the processes of boxes: TERM, grace, KILL.

Owns: the order of signals. Stopped jobs are continued, or they would sleep through their TERM.
Must never: signal what is not in the box at that moment; signal by a pid that may have been
given to somebody else meanwhile (a pidfd is opened, and membership checked after).

Example::

    await end_processes([box], grace=5.0, spare={client.pid})
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Sequence

from loopbox.keeper.holding import HeldBox
from loopbox.kernel.processes import members, network_of

_LOOK_AGAIN = 0.02
_KILL_GRACE = 5.0
"""Seconds after KILL; what is still there then cannot be ended by anyone (state D)."""


async def end_processes(
    boxes: Sequence[HeldBox], *, grace: float, spare: Collection[int] = ()
) -> None:
    """End every process of the boxes. `grace` is in seconds; `spare` are pids left alone.

    Without grace nobody is asked first: hundreds of daemons that begin to end in good order would
    only be in each other's way.
    """
    networks = {box.namespaces.inode for box in boxes}
    if grace > 0 and await _signal_and_wait(
        networks, (signal.SIGTERM, signal.SIGCONT), grace, spare
    ):
        return
    await _signal_and_wait(networks, (signal.SIGKILL,), _KILL_GRACE, spare)


async def _signal_and_wait(
    networks: Collection[int],
    signals: Sequence[signal.Signals],
    patience: float,
    spare: Collection[int],
) -> bool:
    """Whether all are gone within `patience` seconds. Those born meanwhile are signalled too."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    told: set[int] = set()
    while True:
        found = await asyncio.to_thread(members, networks)
        alive = {pid for pids in found.values() for pid in pids} - set(spare)
        if not alive:
            return True
        for pid in alive - told:
            _signal(pid, signals, networks)
        told |= alive
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_LOOK_AGAIN)


def _signal(pid: int, signals: Sequence[signal.Signals], networks: Collection[int]) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if network_of(pid) in networks:
            for number in signals:
                signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass
    finally:
        os.close(pidfd)
