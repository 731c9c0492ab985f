"""The health check of a box's anycast addresses: a small process inside the box.

Owns: running each check as often as the lab file says, and having the address on lo exactly
while it succeeds. It ends with the box.
Must never: judge health itself, touch an address the file does not name.

Started by the runner, in the box's network, as::

    python -m loopbox.lab.health '[{"address": "10.99.0.53/32", "check": "true", "every": 1}]'
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from loopbox.kernel.netlink import (
    LOOPBACK_INDEX,
    KernelError,
    RouteSocket,
    add_address,
    delete_address,
)

_SHORTEST_PATIENCE = 1.0
_NO_NEWS = (errno.EEXIST, errno.EADDRNOTAVAIL)
"""What the kernel says of an address that is there, or gone, already."""


@dataclass(slots=True)
class Check:
    """One address and when it is looked after next."""

    address: IPv4Interface | IPv6Interface
    command: str
    every: float
    due: float = 0.0

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Check:
        """From the command line's JSON."""
        return cls(ip_interface(document["address"]), document["check"], document["every"])

    def is_well(self) -> bool:
        """Whether the command succeeds; one that takes too long does not."""
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", self.command],
                stdin=subprocess.DEVNULL,
                timeout=max(self.every, _SHORTEST_PATIENCE),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def look_after(checks: list[Check], route: RouteSocket) -> None:
    """Go on for ever."""
    while True:
        check = min(checks, key=lambda item: item.due)
        time.sleep(max(0.0, check.due - time.monotonic()))
        check.due = time.monotonic() + check.every
        change = add_address if check.is_well() else delete_address
        try:
            route.apply(change(LOOPBACK_INDEX, check.address))
        except KernelError as error:
            if error.number not in _NO_NEWS:
                sys.stderr.write(f"{error.message}\n")


def main(document: str) -> None:
    """Look after what the JSON names."""
    with RouteSocket() as route:
        look_after([Check.parse(item) for item in json.loads(document)], route)


if __name__ == "__main__":
    main(sys.argv[1])
