"""Work inside a lab's boxes, by a child process that goes there and does not come back.

Owns: the child (a rootless process that left the host's namespaces could never return, setns(2)),
what it does in each box (kernel settings, links, addresses, daemons, cuts), and bringing back its
result or its error.
Must never: decide what a lab is made of; leave the child behind; run in a process with threads
that matter (only the calling thread lives on in a child, fork(2)).

Example::

    places = Places({"r1": 7, "r2": 8}, user=9)
    do_away(lambda: wire(lab, places))
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from loopbox.errors import HostError, KeeperError, LoopboxError
from loopbox.kernel.links import apply_shape, silence, unsilence
from loopbox.kernel.namespaces import owner_of
from loopbox.kernel.netlink import KernelError, Request, RouteSocket
from loopbox.kernel.syscalls import CLONE_NEWNET, CLONE_NEWUSER, setns
from loopbox.lab import own_config
from loopbox.lab.frr import HEADER, render, sysctls
from loopbox.lab.frr import daemons as daemons_of
from loopbox.lab.links import (
    FABRIC,
    address_requests,
    cut_requests,
    index_of,
    mend_requests,
    wire_requests,
)
from loopbox.lab.records import Lab, LabBox, Link

if TYPE_CHECKING:  # routers' code is loaded where there are routers
    from loopbox.lab.frr_daemons import RouterDaemons

Result = TypeVar("Result")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Places:
    """Descriptors of a lab's networks. Whoever asked the keeper for them closes them."""

    networks: Mapping[str, int]
    """Box's name in the file (FABRIC for the bridges') to its network namespace."""
    user: int | None
    """The keeper's user namespace; None as root."""

    def close(self) -> None:
        """Let go of all of them."""
        for fd in (*self.networks.values(), *(() if self.user is None else (self.user,))):
            os.close(fd)


def do_away(work: Callable[[], Result]) -> Result:
    """`work()` in a child; what it returns or the LoopboxError it raises.

    An exception here (Ctrl-C, say) ends the child first. Raises KeeperError when it just ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    alive = os.pipe()
    # What a signal's handler raises inside fork's own hooks would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.close(alive[1])
        _end_with_parent(alive[0])
        _work_and_leave(work, writer)
    os.close(writer)
    os.close(alive[0])
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
        os.close(alive[1])
    if not data:
        raise KeeperError("cannot work in the boxes: the process that went there ended")
    good, found = pickle.loads(data)  # from our own child, by a pipe nobody else has
    if not good:
        raise found
    result: Result = found
    return result


def _end_with_parent(alive: int) -> None:
    """Let the kernel end this process (SIGIO) when nobody holds the pipe's other end any more.

    PR_SET_PDEATHSIG would be forgotten on the way into the user namespace (prctl(2)).
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(alive, 1) == b"":  # it was gone before
            os._exit(1)


def _work_and_leave(work: Callable[[], Any], writer: int) -> NoReturn:
    """The child's whole life. What it started lives on; Ctrl-C is the parent's to heed."""
    for number in _ENDING:
        signal.signal(number, _heed_not)  # what is ignored stays so in programs started here
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    answer: tuple[bool, object]
    try:
        answer = (True, work())
    except BaseException as error:
        answer = (False, _plain(error))
    try:
        data = pickle.dumps(answer)
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _heed_not(_number: int, _frame: object) -> None:
    """A signal that the parent answers for."""


def _plain(error: BaseException) -> LoopboxError:
    """An error that survives pickling, with the words of the first one that went wrong."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LoopboxError):
        kind = HostError if isinstance(error, KernelError) else type(error)
        plain = kind(error.message, hint=error.hint, code=error.code)
        plain.exit_status = error.exit_status
        return plain
    return KeeperError(f"cannot work in the boxes: {type(error).__name__}: {error}", code="fault")


# -- wiring -----------------------------------------------------------------------------------


def wire(lab: Lab, places: Places) -> None:
    """Settings, links, addresses and routes of every box. The calling process stays away.

    Every address is there before a daemon starts: added later, OSPF would take a physical one.
    """
    _gain_rights(places)
    with contextlib.ExitStack() as stack:
        sockets: dict[str, RouteSocket] = {}
        for place, network in places.networks.items():
            setns(network, CLONE_NEWNET)
            if place != FABRIC:
                _write_sysctls(sysctls(lab.box(place)))
            sockets[place] = stack.enter_context(RouteSocket())
        for place, requests in wire_requests(lab, namespaces=places.networks).items():
            _apply(sockets[place], requests)
        for box in lab.boxes:
            _apply(sockets[box.name], address_requests(lab, box.name))
        for link in lab.links:
            if not (link.loss or link.delay or link.rate):
                continue
            for end in link.ends:
                index = index_of(lab, link, end.box)
                apply_shape(
                    sockets[end.box], index, loss=link.loss, delay=link.delay, rate=link.rate
                )


_BATCH = 64
"""Requests in one datagram: a socket's buffer takes some 200 kB (netlink(7))."""


def _apply(route: RouteSocket, requests: Sequence[Request]) -> None:
    for start in range(0, len(requests), _BATCH):
        route.apply(*requests[start : start + _BATCH])


def _gain_rights(places: Places) -> None:
    if places.user is not None:
        setns(places.user, CLONE_NEWUSER)


def _write_sysctls(settings: Iterable[tuple[str, str]]) -> None:
    # One walk to the directory: with hundreds of boxes the walks cost more than all the rest.
    directory = os.open("/proc/sys/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for key, value in settings:
            path = key.removeprefix("net.").replace(".", "/")
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except FileNotFoundError:
                continue  # a kernel without IPv6 has nothing to set there
            except OSError as error:
                raise HostError(
                    f"cannot set `{key}` in a box: {error.strerror}",
                    hint="loopbox doctor says what this machine allows",
                ) from error
    finally:
        os.close(directory)


# -- routers ----------------------------------------------------------------------------------


def daemons_in(directory: Path, lab: Lab, box: LabBox) -> RouterDaemons:
    """The daemons of a router, to start them or to ask them. HostError without FRR."""
    from loopbox.lab.frr_daemons import RouterDaemons  # noqa: PLC0415

    files = render(lab, box)
    if box.config is not None:
        files = dict.fromkeys(daemons_of(lab, box), HEADER.format(name=box.name))
    return RouterDaemons(directory, files=files)


def start_routers(lab: Lab, places: Places, runs: Path, *, seconds: float) -> None:
    """Start every router's daemons, all routers at once, and wait until each answers.

    The daemons outlive the calling process. Raises HostError for one that ended, DeadlineError
    after `seconds`.
    """
    import asyncio  # noqa: PLC0415  30 ms, and most labs of many boxes have no router

    from loopbox.lab.frr_daemons import start_all  # noqa: PLC0415

    routers = {box.name: daemons_in(runs / box.name, lab, box) for box in _routers(lab)}
    _become_root(places, next(iter(routers)))

    async def spawn(router: RouterDaemons, daemon: str) -> None:
        setns(places.networks[router.directory.name], CLONE_NEWNET)
        router.spawn(daemon)

    asyncio.run(start_all(list(routers.values()), spawn=spawn, seconds=seconds))
    for box in _routers(lab):
        if box.config is not None:
            own_config.hand_over(routers[box.name].directory, box.config)


def needs_root(box: LabBox) -> bool:
    """Whether something in the box must be root over its network: FRR, or a health check."""
    return box.is_router or any(item.check is not None for item in box.anycast)


def _become_root(places: Places, box: str) -> None:
    """Enter the user namespace that the network of such a box belongs to.

    A plain user's are in a nested one that has a root, since ospfd serves no other
    (kernel/rooted.py). All of a lab's are in the same.
    """
    if places.user is not None:
        setns(places.user, CLONE_NEWUSER)
        owner = owner_of(places.networks[box])
        setns(owner, CLONE_NEWUSER)
        os.close(owner)


def start_checks(lab: Lab, places: Places, runs: Path) -> None:
    """Start the health checks of anycast addresses; they end with their boxes."""
    checks = {
        box.name: [
            {"address": str(item.address), "check": item.check, "every": item.every}
            for item in box.anycast
            if item.check is not None
        ]
        for box in lab.boxes
    }
    checks = {name: items for name, items in checks.items() if items}
    if not checks:
        return
    _become_root(places, next(iter(checks)))
    for name, items in checks.items():
        setns(places.networks[name], CLONE_NEWNET)
        with open(runs / f"{name}.health.log", "wb") as log:
            subprocess.Popen(
                [sys.executable, "-P", "-m", "loopbox.lab.health", json.dumps(items)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=lab.path.parent,
                start_new_session=True,
            )


def _routers(lab: Lab) -> list[LabBox]:
    return [box for box in lab.boxes if box.is_router]


# -- cutting ----------------------------------------------------------------------------------


def cut(lab: Lab, links: Sequence[Link], places: Places, *, silent: bool) -> None:
    """Take links down at every end, or let every end swallow what it receives."""
    _gain_rights(places)
    for link in links:
        for end in link.ends:
            setns(places.networks[end.box], CLONE_NEWNET)
            if silent:
                silence([end.interface])
            else:
                with RouteSocket() as route:
                    route.apply(*cut_requests(lab, link, end.box))


def mend(lab: Lab, links: Sequence[Link], places: Places, *, was_down: bool) -> None:
    """Undo `cut`. `was_down`: the links were taken down, so their routes have gone too."""
    _gain_rights(places)
    for link in links:
        for end in link.ends:
            setns(places.networks[end.box], CLONE_NEWNET)
            if was_down:
                with RouteSocket() as route:
                    route.apply(*mend_requests(lab, link, end.box))
            else:
                unsilence([end.interface])
