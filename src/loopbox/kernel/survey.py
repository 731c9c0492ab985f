"""Everything the audit needs of one network namespace, and who holds which socket.

Owns: putting together listeners, network, packet filter of the calling thread's namespace; the
scan of /proc for the holders of sockets (all of them, one pass for any number of namespaces).

Must never: judge (rules/audit does), show a command line to a terminal unescaped (cli does).

Example::

    seen = survey()
    holders = socket_owners({entry.inode for entry in seen.listeners})
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from loopbox.errors import HostError
from loopbox.kernel import foreign
from loopbox.kernel.facts import read_network
from loopbox.kernel.firewall import read_firewall
from loopbox.kernel.hooks import read_hooks
from loopbox.kernel.processes import command_of, pids
from loopbox.kernel.sockets import listening, listening_raw, open_diag
from loopbox.rules.audit.findings import Holder
from loopbox.rules.audit.reach import View
from loopbox.rules.network import ListeningSocket, Network

PROTOCOLS = ("tcp", "udp", "raw")
_MOST_COMMAND = 4096


@dataclass(frozen=True, slots=True)
class Survey:
    """One namespace."""

    view: View
    listeners: tuple[ListeningSocket, ...]
    unseen: tuple[str, ...] = ()
    """What could not be looked at, in words."""
    owners: Mapping[int, tuple[Holder, ...]] = field(default_factory=dict)
    """Holders by inode, where the system's tools tell them along with the sockets (not Linux)."""


def survey(*, is_box: bool = False) -> Survey:
    """Look at the calling thread's network namespace (elsewhere than on Linux: the machine)."""
    if sys.platform != "linux":
        return survey_elsewhere(sys.platform)
    unseen: list[str] = []
    found: list[ListeningSocket] = []
    with open_diag() as diag:
        for protocol in PROTOCOLS:
            try:
                found += listening(diag, protocols=(protocol,))
            except HostError as error:
                if protocol == "raw":
                    found += listening_raw()
                else:
                    unseen.append(error.message)
    firewall = read_firewall(ours_counts=not is_box)
    if firewall.problem is not None:
        unseen.append(f"packet filter: {firewall.problem}")
    beside = read_hooks(is_box=is_box)
    unseen += beside.unseen
    view = View(read_network(), firewall.ruleset, firewall.is_complete, is_box, beside.hooks)
    return Survey(view, tuple(found), tuple(unseen))


def survey_elsewhere(platform: str, run: foreign.Run = foreign.output_of) -> Survey:
    """The same by the tools of another system, whose packet filter nobody reads here."""
    network, listeners, owners = foreign.look(platform, run)
    view = View(network, is_firewall_seen=False)
    return Survey(view, listeners, ("packet filter: not read on this system",), owners)


def network_here() -> Network:
    """Links, addresses and routes, on any system."""
    if sys.platform != "linux":
        return foreign.look(sys.platform)[0]
    return read_network()


def socket_owners(inodes: Collection[int]) -> tuple[dict[int, tuple[Holder, ...]], bool]:
    """(socket inode to every process that holds it, whether all processes could be looked at).

    Sockets are looked for by the names of /proc/PID/fd's links; processes of others are closed to
    us unless we are root.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, list[Holder]] = {}
    all_seen = True
    for pid in pids():
        try:
            held = _held(pid, wanted)
        except PermissionError:
            all_seen = False
            continue
        except OSError:
            continue
        if held:
            holder = Holder(pid, command_of(pid)[:_MOST_COMMAND], _uid_of(pid))
            for inode in held:
                found.setdefault(inode, []).append(holder)
    return {inode: tuple(holders) for inode, holders in found.items()}, all_seen


def _held(pid: int, wanted: dict[str, int]) -> set[int]:
    """Which of the wanted sockets a process holds."""
    held: set[int] = set()
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            try:
                inode = wanted.get(os.readlink(name, dir_fd=directory))
            except FileNotFoundError:
                continue
            if inode is not None:
                held.add(inode)
    finally:
        os.close(directory)
    return held


def _uid_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
