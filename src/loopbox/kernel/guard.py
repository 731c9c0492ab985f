"""The guard of the calling thread's network namespace: on, off, and whether it still stands.

Owns: telling our nftables table from somebody else's of the same name (by its mark), and noticing
when rules were taken out of it.

Must never: write rules of its own (kernel/nft has them, boxes and host share them), touch a table
without the mark, change anything else of the ruleset.

Example::

    raise_guard()        # True: it is up now, False: it was up already
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from loopbox.errors import HostError
from loopbox.kernel import nft
from loopbox.kernel.netlink import KernelError, open_netlink
from loopbox.wire.netlink import (
    ACK,
    REQUEST,
    build_attribute,
    build_message,
    parse_attributes,
    parse_messages,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_GETTABLE, _GETRULE = 1, 7
_INET = 1
_DUMP = 0x300
_NLMSG_DONE = 3


@dataclass(frozen=True, slots=True)
class GuardState:
    """What stands in this namespace."""

    state: str
    """on, off, partial (rules are missing), or foreign (a table of our name without our mark)."""
    rules: int = 0
    """How many rules our table has."""
    way_out: bool = False
    """The table also holds a box's way out, so it cannot be taken away alone."""


def guard_state() -> GuardState:
    """Read it. Raises HostError without CAP_NET_ADMIN, or where the kernel has no nftables."""
    try:
        with open_netlink(_NETLINK_NETFILTER) as netlink:
            table = _ask(netlink, _GETTABLE, _TABLE)
            if not table:
                return GuardState("off")
            if nft.COMMENT.encode() not in parse_attributes(table[0][4:]).get(6, b""):
                return GuardState("foreign")
            rules = len(_ask(netlink, _GETRULE, _TABLE, flags=_DUMP))
    except KernelError as error:
        raise _unreadable(error) from error
    except OSError as error:
        raise _unreadable(error) from error
    state = "on" if rules >= len(nft.GUARD) else "partial"
    return GuardState(state, rules, way_out=rules > len(nft.GUARD))


def raise_guard() -> bool:
    """Put the guard up; False when it stood already. Raises HostError.

    A guard with rules missing is replaced.
    """
    before = guard_state()
    if before.state == "on":
        return False
    _refuse_foreign(before)
    if before.state == "partial":
        nft.remove()
    nft.install(with_way_out=False)
    return True


def lower_guard() -> bool:
    """Take the guard away; False when there was none. Raises HostError."""
    before = guard_state()
    if before.state == "off":
        return False
    _refuse_foreign(before)
    if before.way_out:
        raise HostError(
            "cannot take the guard from a box: its way out hangs on the same table",
            hint="the guard goes with the box: loopbox down",
        )
    return nft.remove()


def _refuse_foreign(state: GuardState) -> None:
    if state.state == "foreign":
        raise HostError(
            f"cannot change the guard: table `inet {nft.TABLE}` was not made by loopbox",
            hint=f"look at it: nft list table inet {nft.TABLE}",
        )


def _unreadable(error: Exception) -> HostError:
    number = getattr(error, "number", getattr(error, "errno", 0))
    if number == errno.EPERM:
        return HostError(
            "cannot see the guard: reading nftables takes CAP_NET_ADMIN",
            hint="run it with sudo",
            code="not-permitted",
        )
    return HostError(
        f"cannot see the guard: this kernel has no nftables ({error})",
        hint="load it: sudo modprobe nf_tables",
        code="no-nftables",
    )


_TABLE = build_attribute(1, nft.TABLE.encode() + b"\0")


def _ask(netlink: socket.socket, kind: int, attributes: bytes, *, flags: int = 0) -> list[bytes]:
    """Payloads of the answer; an empty list when there is no such thing. Raises KernelError."""
    payload = struct.pack(">BBH", _INET, 0, 0) + attributes
    message = build_message(_SUBSYSTEM << 8 | kind, REQUEST | (flags or ACK), kind, payload)
    netlink.send(message)
    answers: list[bytes] = []
    while True:
        for part in parse_messages(netlink.recv(1 << 18)):
            if part.error is not None:
                number, text = part.error
                if number == errno.ENOENT:
                    return []
                if number:
                    raise KernelError("read", f"table `{nft.TABLE}`", number, text)
                return answers
            if part.kind == _NLMSG_DONE:
                return answers
            answers.append(part.payload)
