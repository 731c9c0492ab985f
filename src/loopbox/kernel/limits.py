"""How much this process may still hold, asked before it is too late to say so.

Owns: the question whether enough descriptors are left.
Must never: raise a limit (the keeper does, as it starts).

Example::

    demand_descriptors()     # HostError where fewer than 40 are left
"""

from __future__ import annotations

import os
import resource

from loopbox.errors import HostError

_RESERVE = 40
"""Descriptors that are left to look, to enter boxes that are there, and to take them down. A new
box takes up to 12."""


def demand_descriptors(reserve: int = _RESERVE) -> None:
    """Raise HostError unless `reserve` descriptors are left to this process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        lowest = os.dup(0)  # the lowest free number (dup(2)): those below it are in use
    except OSError:
        lowest = limit
    else:
        os.close(lowest)
    if lowest + reserve > limit:
        raise HostError(
            f"cannot make a box: too many open files: the keeper may hold {limit}",
            hint="raise it for the keeper: ulimit -n 65536, then: loopbox keeper stop",
            code="too-many-files",
        )
