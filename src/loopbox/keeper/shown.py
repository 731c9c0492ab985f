"""The values that the parts of the front door share: a box as it is shown on the host.

Owns: `DoorBox` (what the keeper tells of a box), `ShownBox` (what its doors need to lead to it),
and the one-method interface by which a door has something done inside a box.

Must never: hold a socket of its own, open or close a descriptor.

Example::

    box = DoorBox(name="shop", address=IPv4Address("127.106.1.2"), group=7, netns_fd=31, owner=1000)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Targets = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DoorBox:
    """A box as the front door knows it."""

    name: str
    address: IPv4Address
    """Its address on the host's loopback."""
    group: int
    """The relay's number for it."""
    netns_fd: int
    """Its network namespace; borrowed, valid until `FrontDoor.hide` has returned."""
    owner: int | None
    """Whose clients are let in, None: every user's of this machine."""


@dataclass(slots=True)
class ShownBox:
    """A box and the ports that lead into it now."""

    box: DoorBox
    tcp: dict[int, Targets] = field(default_factory=dict)
    """For each TCP port that loopback reaches: the addresses to dial, in order."""


class Roam(Protocol):
    """Something that runs functions inside boxes: the roaming thread."""

    async def inside(self, netns_fd: int, function: Callable[[], Result], /) -> Result:
        """Run the function in that network namespace and give its result."""
