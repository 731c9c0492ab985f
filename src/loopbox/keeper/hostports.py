"""Ports of the host: opening one, and saying why it cannot be had.

Owns: how a listener on the host is made, and the search for the program that is in the way.

Must never: keep a socket, try another port.

Example::

    try:
        listener = listen_at("127.106.1.2", 3000)
    except OSError as error:
        problem = explain_bind(error, diag=diag, address="127.106.1.2", port=3000)
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import Final

from loopbox.errors import HostError
from loopbox.kernel.sockets import ListeningSocket, listening
from loopbox.rules.refusals import bind_problem

log = logging.getLogger(__name__)

_BACKLOG: Final = 4096
"""Cut by the kernel to net.core.somaxconn."""


def listen_at(address: str, port: int) -> socket.socket:
    """A non-blocking TCP listener; raises OSError as bind(2) does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # So that connections of an earlier keeper in TIME_WAIT do not hold the port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def explain_bind(
    error: OSError, *, diag: socket.socket, address: str, port: int, protocol: str = "tcp"
) -> str:
    """Why the port could not be opened, with the host's program that holds it if there is one."""
    holders: list[ListeningSocket] = []
    if error.errno == errno.EADDRINUSE:
        try:
            found = listening(diag, protocols=(protocol,))
            holders = [one for one in found if one.port == port and _covers(one, address)]
        except (HostError, OSError) as problem:
            log.debug("cannot find who holds port %d: %s", port, problem)
    return bind_problem(error, at=address, port=port, holders=holders)


def _covers(listener: ListeningSocket, address: str) -> bool:
    """Whether a listener takes what is sent to this address."""
    if not listener.address.is_unspecified:
        return str(listener.address) == address
    return listener.family in ("dual", "ipv6" if ":" in address else "ipv4")
