"""loopbox's own listeners in an audit: front doors, shared doors, the way out.

Owns: telling them by who holds them and where they are bound, and naming the box behind a door.

Must never: lower a verdict: a door is judged by its address like everything else, and a program
that calls itself a keeper gains a name by it and no more.

Example::

    named(listener, holders, where="host", boxes={"127.65.220.137": "shop"})
    # "loopbox front door of shop"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from loopbox.rules.addressing import LOOPBACK4, text_of
from loopbox.rules.audit.findings import Holder
from loopbox.rules.network import ListeningSocket

_SHARED = ("127.0.0.1", "::1")


def is_keeper(command: str) -> bool:
    """Whether a command line is a keeper's: `python -P -m loopbox.keeper ...`."""
    words = command.split()
    return any(pair == ("-m", "loopbox.keeper") for pair in pairwise(words))


def named(
    listener: ListeningSocket,
    holders: Sequence[Holder],
    *,
    where: str,
    boxes: Mapping[str, str],
) -> str | None:
    """What a listener of a keeper is; None for everybody else's.

    `boxes` are names by address. Boxes of another user's keeper are not known here.
    """
    if not holders or not all(is_keeper(holder.command) for holder in holders):
        return None
    if where != "host":
        return "loopbox way out"
    address = text_of(listener.address)
    if address in _SHARED:
        return "loopbox shared door"
    if address in boxes:
        return f"loopbox front door of {boxes[address]}"
    return "loopbox front door" if listener.address in LOOPBACK4 else "loopbox keeper"
