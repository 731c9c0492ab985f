"""Which names are known besides those that are up, and which host address belongs to which box.

Owns: the addresses in use (drawn by a hash of the name, remembered for a project's box so that it
is the same every day), and the names of boxes that have gone, for the door to say "stopped" and
not "unknown".
Must never: hold a box, touch the machine.

Example::

    address = known.draw("shop")     # in use from now on
    known.give_back("shop", address)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv4Address

from loopbox.keeper.records import Records
from loopbox.rules.naming import box_address

_MOST_GONE = 1000
"""Names of boxes that were up, remembered."""


class Known:
    """Names and addresses. Lives on the event loop's thread."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._gone: dict[str, None] = {}
        self._drawn: set[IPv4Address] = set()

    def names(self, up: Iterable[str]) -> dict[str, str]:
        """Every name known now: `up` or `stopped`, for the shared door's answers."""
        owned = self._records.owned()
        # A project that was deleted is no stopped box: its name is free, and nobody's.
        there = (name for name, entry in owned.items() if os.path.isdir(entry["directory"]))
        known = dict.fromkeys(there, "stopped")
        known.update(dict.fromkeys(self._gone, "stopped"))
        known.update(dict.fromkeys(up, "up"))
        return known

    def draw(self, name: str) -> IPv4Address:
        """The address for a box of that name, in use from now on."""
        address = self._records.address_of(name)
        if address is None or address in self._drawn:
            address = box_address(name, uid=os.getuid(), taken=self._drawn)
        self._drawn.add(address)
        return address

    def take(self, name: str, address: IPv4Address) -> IPv4Address:
        """The address a box had before if it is free, else another; in use from now on."""
        if address in self._drawn:
            return self.draw(name)
        self._drawn.add(address)
        return address

    def give_back(self, address: IPv4Address) -> None:
        """The address is in use no longer."""
        self._drawn.discard(address)

    def is_up(self, name: str) -> None:
        """A box of that name is up again."""
        self._gone.pop(name, None)

    def has_gone(self, name: str) -> None:
        """A box of that name has gone."""
        self._gone[name] = None
        while len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def forget_gone(self) -> None:
        """Forget the names of boxes that were up."""
        self._gone.clear()
