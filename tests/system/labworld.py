"""A running lab for tests: namespaces of this process, real FRR, cut and mend by hand.

`LabWorld` is what the runner does, without a keeper: it wires a `Lab` in namespaces that nobody
else sees, starts the daemons, and answers what they say. Works as root, and as a plain user inside
a user namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

from harness import in_thread
from loopbox.kernel.links import silence, unsilence
from loopbox.kernel.namespaces import open_namespace, raise_lo
from loopbox.kernel.netlink import LOOPBACK_INDEX, RouteSocket, add_address
from loopbox.kernel.rooted import make_rooted_networks
from loopbox.kernel.syscalls import CLONE_NEWNET, setns, unshare
from loopbox.lab.frr import render, sysctls
from loopbox.lab.frr_daemons import RouterDaemons, find_folder, start_all
from loopbox.lab.frr_state import (
    QUESTIONS,
    SessionState,
    parse_neighbours,
    parse_routes,
    parse_sessions,
)
from loopbox.lab.links import (
    FABRIC,
    address_requests,
    cut_requests,
    mend_requests,
    needs_fabric,
    wire_requests,
)
from loopbox.lab.topology import End, Lab, Link, Session


def has_frr() -> bool:
    """Whether FRR is installed here."""
    try:
        find_folder()
    except Exception:
        return False
    return True


def until(condition: Callable[[], Any], *, seconds: float) -> Any:
    """Ask again until `condition()` is true, and return that; AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition!r}")
        pause.wait(0.02)


def echo(targets: set[IPv4Address], source: str) -> set[IPv4Address]:
    """Those of `targets` that answer within 0.3 s, from the calling thread's namespace."""
    number = threading.get_ident() & 0xFFFF
    head = struct.pack(">BBHHH", 8, 0, 0, number, 1)
    total = sum(struct.unpack(">4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    packet = struct.pack(">BBHHH", 8, 0, ~total & 0xFFFF, number, 1)
    answered: set[IPv4Address] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        if source:
            sock.bind((source, 0))
        for target in targets:
            with contextlib.suppress(OSError):  # no route: no answer either
                sock.sendto(packet, (str(target), 0))
        deadline = time.monotonic() + 0.3
        while answered < targets and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data, (address, _) = sock.recvfrom(1024)
            except OSError:
                break
            if data[20] == 0 and int.from_bytes(data[24:26], "big") == number:
                answered.add(IPv4Address(address))
    return answered


def make_network() -> int:
    """Descriptor of a new network namespace, which the calling thread moves into."""
    unshare(CLONE_NEWNET)
    return open_namespace("net")


class LabWorld:
    """One lab that runs, from `__enter__` to `__exit__`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.routers: dict[str, RouterDaemons] = {}
        self.namespaces: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-")))
        folder.chmod(0o711)
        places = [box.name for box in self.lab.boxes]
        places += [FABRIC] if needs_fabric(self.lab) else []
        rooted = None
        if os.geteuid() == 0:
            made = tuple(in_thread(make_network) for _ in places)
            for fd in made:
                self._stack.callback(os.close, fd)
        else:
            rooted = make_rooted_networks(len(places))
            self._stack.callback(rooted.close)
            made = rooted.networks
        self.namespaces = dict(zip(places, made, strict=True))
        for place in places:
            self.inside(place, partial(self._prepare, place))
        for place, requests in wire_requests(self.lab, namespaces=self.namespaces).items():
            self.apply(place, requests)
        for box in self.lab.boxes:
            self.apply(box.name, address_requests(self.lab, box.name))
            # Nobody checks health here: every service is well.
            checked = [item.address for item in box.anycast if item.check is not None]
            self.apply(box.name, [add_address(LOOPBACK_INDEX, item) for item in checked])
            if box.is_router:
                router = RouterDaemons(
                    folder / box.name, files=render(self.lab, box), rooted=rooted
                )
                self.routers[box.name] = router
                self._stack.callback(router.stop)
        asyncio.run(start_all(list(self.routers.values()), spawn=self._spawn, seconds=60))

    def _prepare(self, place: str) -> None:
        raise_lo()
        if place != FABRIC:
            for key, value in sysctls(self.lab.box(place)):
                Path("/proc/sys", *key.split(".")).write_text(value)

    async def _spawn(self, router: RouterDaemons, daemon: str) -> None:
        self.inside(router.directory.name, lambda: router.spawn(daemon))

    def inside(self, place: str, function: Callable[[], Any]) -> Any:
        """`function()` in the namespace of a box."""

        def enter() -> Any:
            setns(self.namespaces[place], CLONE_NEWNET)
            return function()

        return in_thread(enter)

    def apply(self, place: str, requests: Iterable[Any]) -> None:
        """Send netlink requests in a box."""

        def send() -> None:
            with RouteSocket() as route:
                route.apply(*requests)

        self.inside(place, send)

    def run(self, place: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """A program in a box."""
        result: subprocess.CompletedProcess[str] = self.inside(
            place, lambda: subprocess.run(argv, capture_output=True, text=True, check=False)
        )
        return result

    def cut(self, *links: Link, silent: bool = False) -> None:
        """Take links away at both ends, or make them swallow everything."""
        self.cut_ends([(link, end) for link in links for end in link.ends], silent=silent)

    def mend(self, *links: Link) -> None:
        """Undo `cut`, whichever it was."""
        self.mend_ends([(link, end) for link in links for end in link.ends])

    def cut_ends(self, ends: Iterable[tuple[Link, End]], *, silent: bool = False) -> None:
        """Cut single ends of links."""
        for link, end in ends:
            if silent:
                self.inside(end.box, partial(silence, [end.interface]))
            else:
                self.apply(end.box, cut_requests(self.lab, link, end.box))

    def mend_ends(self, ends: Iterable[tuple[Link, End]]) -> None:
        """Undo `cut_ends`."""
        for link, end in ends:
            self.inside(end.box, partial(unsilence, [end.interface]))
            self.apply(end.box, mend_requests(self.lab, link, end.box))

    def ask(self, box: str, question: str) -> Any:
        """The JSON document that answers one of QUESTIONS."""
        daemon, command = QUESTIONS[question]
        return self.routers[box].ask_json(daemon, command)

    def session(self, session: Session, box: str) -> SessionState:
        """What `box` says of one of its sessions."""
        own, peer = session.ends()[0 if session.left.box == box else 1]
        name = str(peer.address if peer.address is not None else own.interface)
        found = {item.peer: item for item in parse_sessions(self.ask(box, "sessions"))}
        return found[name]

    def sessions(self) -> dict[str, tuple[SessionState, SessionState]]:
        """Name of each session to what both ends say of it."""
        said = {
            box.name: {item.peer: item for item in parse_sessions(self.ask(box.name, "sessions"))}
            for box in self.lab.boxes
            if box.bgp is not None
        }
        found = {}
        for session in self.lab.sessions:
            states = [
                said[own.box][str(peer.address if peer.address is not None else own.interface)]
                for own, peer in session.ends()
            ]
            found[session.name] = (states[0], states[1])
        return found

    def established(self) -> set[str]:
        """Names of the sessions that both ends call Established."""
        return {
            name
            for name, states in self.sessions().items()
            if all(state.state == "Established" for state in states)
        }

    def full(self, box: str) -> set[str]:
        """Devices of `box` on which its OSPF neighbour is Full."""
        found = parse_neighbours(self.ask(box, "neighbours"))
        return {item.interface for item in found if item.state == "Full"}

    def routes(self, box: str) -> dict[str, tuple[str, ...]]:
        """Prefix to devices of its next hops, for the selected IPv4 routes of a router."""
        return {
            item.prefix: tuple(sorted({device for _, device in item.via if device}))
            for item in parse_routes(self.ask(box, "routes"))
        }

    def reach(self, box: str, targets: Iterable[IPv4Address]) -> set[IPv4Address]:
        """Those of `targets` that answer an echo request sent from the first loopback of `box`."""
        wanted = set(targets)
        own = [item.ip for item in self.lab.box(box).loopback if item.version == 4]
        return set(self.inside(box, partial(echo, wanted, str(own[0]) if own else "")))

    def pings(self, box: str, address: str, *, source: str | None = None) -> bool:
        """Whether one echo request from `box` is answered within a second."""
        options = () if source is None else ("-I", source)
        return self.run(box, "ping", "-c1", "-W1", *options, address).returncode == 0
