"""A box as the keeper holds it: descriptors, members, what it was asked to be.

Owns: `HeldBox` and its record on disk (what a keeper that follows needs to find it again).
Must never: do I/O of its own or decide when a box goes.

Example::

    box.record()  ->  {"name": "shop", "inode": 4026532567, "address": "127.94.3.2", ...}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from loopbox.kernel.namespaces import Namespaces
    from loopbox.kernel.sockets import ListeningSocket
    from loopbox.kernel.transparent import WayOutSockets


@dataclass(slots=True, eq=False)
class HeldBox:
    """One box that is up. Compared by identity: a box made anew under an old name is another."""

    name: str
    group: int
    """The box's number in this keeper's life: the relay's and the way out's tag."""
    address: IPv4Address
    directory: str
    created: str
    namespaces: Namespaces
    kept: bool = False
    forward: tuple[int, ...] = ()
    egress: str = "open"
    """The policy for what it begins outside (rules/egress.POLICIES; what is not there denies)."""
    admits_anyone: bool = False
    """Whether other users of the machine may come in through the front door."""
    sealed: bool = False
    """Made without a way out, on purpose (kernel/making.Wish)."""
    world6: bool | None = None
    """Whether it has a route to the IPv6 world; None when it has no way out to open."""
    way_out: WayOutSockets | None = None
    """The sockets for the way out, once the first program has entered."""
    members: dict[int, int] = field(default_factory=dict)
    """pidfd to pid, of the processes whose end is waited for (at least one while any lives)."""
    leases: int = 0
    """Open connections that hold the box without a process in it (the library's)."""
    counters: tuple[int, ...] = ()
    """sockstat descriptors; empty until the box is ready for programs."""
    dressing: asyncio.Task[None] | None = None
    """What makes the box ready for its first program, once that has begun."""
    listeners: tuple[ListeningSocket, ...] = ()
    doors: dict[tuple[str, int], str | None] = field(default_factory=dict)
    """(protocol, port) to why the host cannot reach it there, or None when it can."""
    problems: tuple[str, ...] = ()
    going: bool = False
    """True once its unmaking has begun: nobody enters any more."""

    @classmethod
    def taken_over(
        cls, record: Record, found: Reopened, *, group: int, address: IPv4Address
    ) -> HeldBox:
        """The box of an earlier keeper, before what was asked of it is asked again."""
        return cls(
            name=record.name,
            group=group,
            address=address,
            directory=record.directory,
            created=record.created,
            namespaces=found.namespaces,
            kept=record.kept,
            sealed=record.sealed,
            way_out=found.way_out,
            counters=found.counters,
            problems=() if found.problem is None else (found.problem,),
        )

    @property
    def is_occupied(self) -> bool:
        """Whether something holds the box up besides a wish to keep it."""
        return bool(self.members) or self.leases > 0

    def record(self) -> dict[str, Any]:
        """What is written to disk."""
        return {
            "name": self.name,
            "inode": self.namespaces.inode,
            "cookie": self.namespaces.cookie,
            "mounts": self.namespaces.mounts,
            "address": str(self.address),
            "directory": self.directory,
            "created": self.created,
            "kept": self.kept,
            "forward": list(self.forward),
            "egress": self.egress,
            "admits_anyone": self.admits_anyone,
            "sealed": self.sealed,
        }


@dataclass(frozen=True, slots=True)
class Reopened:
    """What one visit to a box that lives gives a keeper that did not make it."""

    namespaces: Namespaces
    way_out: WayOutSockets | None
    problem: str | None
    """Why it has no way out."""
    counters: tuple[int, ...]
    listeners: tuple[ListeningSocket, ...]
    """What listens in it, the keeper's own sockets with it."""


@dataclass(frozen=True, slots=True)
class Record:
    """A box as a keeper before this one wrote it down."""

    name: str
    inode: int
    cookie: int
    mounts: int
    """See `Namespaces`; all three are 0 in a record of a boot before this one."""
    address: IPv4Address
    directory: str
    created: str
    kept: bool
    forward: tuple[int, ...]
    egress: str
    admits_anyone: bool
    sealed: bool = False

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Record:
        """Raises ValueError, KeyError or TypeError on a record that is not ours."""
        return cls(
            name=str(document["name"]),
            inode=int(document["inode"]),
            cookie=int(document["cookie"]),
            mounts=int(document["mounts"]),
            address=IPv4Address(document["address"]),
            directory=str(document["directory"]),
            created=str(document["created"]),
            kept=bool(document["kept"]),
            forward=tuple(int(port) for port in document["forward"]),
            egress=str(document["egress"]),
            admits_anyone=bool(document["admits_anyone"]),
            sealed=bool(document.get("sealed", False)),
        )
