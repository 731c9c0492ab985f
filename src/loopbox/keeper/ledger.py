"""The account of who went where: every wish of a box to leave, with its verdict and its end.

Owns: a bounded list of records, and the match between them and the relay's final figures.
Must never: decide, or write to disk.

Example::

    connection = ledger.note(group=7, protocol="tcp", to=endpoint, name="pypi.org", verdict=verdict)
    ledger.joined(connection, relay.join(...))
    ledger.settle(relay.ended())
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loopbox.keeper.relay import EndedConnection
from loopbox.rules.egress import Verdict
from loopbox.wire.datagram import Endpoint

LIMIT = 4096
"""Records kept, of all boxes together; the oldest go first."""


@dataclass(slots=True, eq=False)
class Connection:
    """One wish to leave a box. Lives in the ledger and changes until it is over."""

    group: int
    time: float
    """Seconds since 1970."""
    protocol: str
    to: Endpoint
    name: str | None
    """The name the box had asked for, if it had."""
    verdict: Verdict
    outcome: str = "open"
    """`open`, `closed`, `reset`, `denied`, or why it never came to be: `refused`,
    `unreachable`, `timed out`, `failed`."""
    bytes_out: int = 0
    bytes_in: int = 0
    ms: float | None = None
    """How long it lasted; None while it does, and for datagrams."""


class Ledger:
    """The records of all boxes, oldest first."""

    def __init__(
        self,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records: deque[Connection] = deque(maxlen=limit)
        self._open: dict[int, tuple[Connection, float]] = {}
        self._clock = clock
        self._timer = timer

    def note(
        self, *, group: int, protocol: str, to: Endpoint, name: str | None, verdict: Verdict
    ) -> Connection:
        """Write a wish down, with what was decided."""
        outcome = "open" if verdict.allow else "denied"
        connection = Connection(group, self._clock(), protocol, to, name, verdict, outcome)
        self._records.append(connection)
        return connection

    def joined(self, connection: Connection, number: int) -> None:
        """The relay carries it, under this number."""
        self._open[number] = (connection, self._timer())

    def settle(self, ended: Iterable[EndedConnection]) -> None:
        """Enter the final figures. The relay's left is the box: its in is our out."""
        for account in ended:
            found = self._open.pop(account.id, None)
            if found is None:
                continue
            connection, since = found
            connection.bytes_out, connection.bytes_in = account.bytes_in, account.bytes_out
            connection.outcome = "reset" if account.reset else "closed"
            connection.ms = round((self._timer() - since) * 1000, 3)

    def records(self, group: int | None = None) -> list[Connection]:
        """What is known, of one box or of all, oldest first."""
        return [one for one in self._records if group is None or one.group == group]
