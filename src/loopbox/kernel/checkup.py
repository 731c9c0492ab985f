"""All of the doctor's probes, side by side, as one Observed.

Owns: which probes run at once, their deadlines (all together under 15 s, under 1 s when all is
well), reading the files of name resolution, and what this machine allows of boxes.

Must never: judge (rules/doctor does); send anything to 127/8 or ::1 that the kernel would not
deliver here.

Example::

    rungs = climb(examine(remote=None))
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address
from typing import TypeVar

from loopbox.errors import HostError
from loopbox.kernel import dnsprobe, probes, resolution
from loopbox.kernel.boxability import BoxTrial
from loopbox.kernel.facts import read_network
from loopbox.kernel.netlink import RouteSocket
from loopbox.rules.addressing import is_loopback
from loopbox.rules.doctor.naming import KNOWN, NOWHERE
from loopbox.rules.doctor.observed import (
    Attempt,
    GatewaySeen,
    LocalhostSeen,
    LoopbackSeen,
    NamesSeen,
    Observed,
    RemoteSeen,
)
from loopbox.rules.doctor.outward import candidates
from loopbox.rules.doctor.targets import Remote, usual_targets
from loopbox.rules.network import Address, Network
from loopbox.wire.systemfiles import parse_resolv_conf

T = TypeVar("T")

_BOX_TARGETS = (("1.1.1.1", 80), ("9.9.9.9", 80))
_BOX_REQUEST = b"HEAD / HTTP/1.0\r\n\r\n"
"""In a box the keeper accepts at once, so only an answer proves that the way out leads anywhere.

Whoever speaks first, or takes this for nonsense, answers too."""
_REMOTE_SECONDS = 3.0
_NAME_SECONDS = 4.0
_MOST_OWN = 4


def examine(
    *,
    remote: Remote | None = None,
    is_box: bool = False,
    offline: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Observed:
    """Probe everything from the calling thread's network namespace.

    `offline`: nobody beyond the gateway is asked.
    """
    environment = os.environ if environment is None else environment
    clock = _Clock()
    boxes = None if is_box else BoxTrial()  # forks: before the first thread
    network = clock.run("loopback-interface", read_network)
    four, six = _loopback_routes(network)
    answered = threading.Event()
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="doctor") as pool:
        later: dict[str, Future[object]] = {}

        def start(name: str, probe: Callable[[], object]) -> None:
            later[name] = pool.submit(clock.run, name, probe)

        start("loopback-ipv4", lambda: _loopback("127.0.0.1", network, four))
        start("loopback-ipv6", lambda: _loopback("::1", network, six))
        leaky = _leaky(four=four[0], six=six[0])
        start("localhost-name", lambda: _localhost(environment, leaky=leaky))
        start("own-address", lambda: _own(network))
        start("gateway", lambda: () if is_box else _gateways(network, answered))
        if not offline:
            start("remote", lambda: _remote(network, remote, answered, is_box=is_box, leaky=leaky))
            start("dns", lambda: _names(remote, leaky=leaky))
        start("boxes", lambda: None if boxes is None else boxes.seen())
        found = {name: future.result() for name, future in later.items()}
    return Observed(
        network=read_network(),
        loopback4=_as(found["loopback-ipv4"], LoopbackSeen),
        loopback6=_as(found["loopback-ipv6"], LoopbackSeen),
        localhost=_as(found["localhost-name"], LocalhostSeen),
        own=_as(found["own-address"], tuple),
        gateways=_as(found["gateway"], tuple),
        remote=_as(found.get("remote", ()), tuple),
        chosen=remote is not None,
        names=_as(found.get("dns", NamesSeen()), NamesSeen),
        boxes=found["boxes"],  # type: ignore[arg-type]
        is_box=is_box,
        offline=offline,
        ms=clock.spent,
    )


def _as(value: object, kind: type[T]) -> T:
    assert isinstance(value, kind)
    return value


class _Clock:
    """How long each rung's probes took."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def run(self, name: str, probe: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return probe()
        finally:
            self.spent[name] = (time.perf_counter() - start) * 1000


# -- inward ---------------------------------------------------------------------------------------


def _loopback_routes(network: Network) -> tuple[tuple[bool, str], tuple[bool, str]]:
    """(delivered here?, in words) for 127.0.0.1 and ::1."""
    return _route(network, "127.0.0.1"), _route(network, "::1")


def _route(network: Network, address: str) -> tuple[bool, str]:
    """Whether the kernel delivers `address` here, and what it would do, in words."""
    try:
        with RouteSocket() as route:
            answer = route.route_to(ip_address(address))
    except HostError as error:
        return False, error.message
    link = network.link(answer.device)
    name = link.name if link is not None else "no device"
    via = f" via {answer.gateway}" if answer.gateway is not None else ""
    source = f", source {answer.source}" if answer.source is not None else ""
    is_here = answer.type == "local" and link is not None and link.is_up
    return is_here, f"{answer.type} route on {name}{via}{source}"


def _loopback(address: str, network: Network, route: tuple[bool, str]) -> LoopbackSeen:
    is_local, words = route
    link = network.loopback
    if not is_local or link is None:
        return LoopbackSeen(False, words)
    return LoopbackSeen(
        True,
        words,
        tcp=probes.try_tcp(address, device=link.name),
        udp=probes.try_udp(address, device=link.name),
        ping=probes.try_ping(address, device=link.name),
    )


def _own(network: Network) -> tuple[tuple[str, str, Attempt], ...]:
    chosen = candidates(Observed(network))
    found = []
    for entry in network.addresses:
        device = next((one for one in chosen if one.index == entry.index), None)
        if device is None or entry.address.is_link_local or entry.tentative:
            continue
        text = str(entry.address)
        is_local, _ = _route(network, text)
        attempt = probes.try_tcp(text, device=None) if is_local else Attempt("unreachable")
        found.append((text, device.name, attempt))
        if len(found) == _MOST_OWN:
            break
    return tuple(found)


# -- names ----------------------------------------------------------------------------------------


def _leaky(*, four: bool, six: bool) -> bool:
    """Whether asking the C library for a name could send loopback packets onto a wire.

    Without a name server the library asks 127.0.0.1 and ::1 (research: measured).
    """
    servers = parse_resolv_conf(resolution.read("/etc/resolv.conf") or b"").nameservers or (
        "127.0.0.1",
    )
    return any(
        not (six if ":" in server else four)
        if _is_loop(server)
        else probes.would_leak((server.partition("%")[0], 53))
        for server in servers
    )


def _is_loop(server: str) -> bool:
    return is_loopback(ip_address(server.partition("%")[0]))


def _localhost(environment: Mapping[str, str], *, leaky: bool) -> LocalhostSeen:
    hosts = resolution.localhost_lines(resolution.read("/etc/hosts"))
    sources = resolution.sources()
    safe = not leaky or (bool(hosts) and sources[:1] == ("files",))
    if safe:
        addresses, error = dnsprobe.look_up("localhost", seconds=_NAME_SECONDS)
    else:
        addresses, error = (), "not-tried"
    return LocalhostSeen(
        addresses, error, hosts, sources, resolution.unexcepted_proxies(environment)
    )


def _names(remote: Remote | None, *, leaky: bool) -> NamesSeen:
    data = resolution.read("/etc/resolv.conf")
    servers = parse_resolv_conf(data or b"").nameservers
    if leaky and (not servers or any(_is_loop(server) for server in servers)):
        return NamesSeen(has_file=data is not None, leaks=bool(servers))
    asked = None if remote is None or remote.is_literal else remote.host
    names = [*KNOWN, NOWHERE, *([asked] if asked else [])]
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="dns") as pool:
        known = next(iter(KNOWN))
        library = pool.submit(
            lambda: (
                ((), "not-tried")
                if leaky
                else dnsprobe.look_up(known, seconds=dnsprobe.SERVER_SECONDS)
            )
        )
        # glibc asks 127.0.0.1 when no server is named; if that answers, all is well.
        seen = list(pool.map(lambda one: dnsprobe.ask_server(one, names), servers or ["127.0.0.1"]))
        _, error = library.result()
    if not servers:
        seen = [server for server in seen if server.outcome == "ok"]
    return NamesSeen(data is not None, tuple(seen), error or "ok", asked=asked)


# -- outward --------------------------------------------------------------------------------------


def _gateways(network: Network, answered: threading.Event) -> tuple[GatewaySeen, ...]:
    """Look for the gateway of the best default route of each family, both at once."""
    places: list[tuple[Address, int, str]] = []
    for version in (4, 6):
        for route in network.default_routes(version):
            link = network.link(route.index)
            usable = route.type == "unicast" and route.table != 255 and not route.dead
            if usable and route.gateway is not None and link is not None:
                places.append((route.gateway, link.index, link.name))
                break
    if not places:
        return ()
    with ThreadPoolExecutor(max_workers=len(places)) as pool:
        tries = [
            pool.submit(probes.try_gateway, address, index=index, device=name, settled=answered)
            for address, index, name in places
        ]
        return tuple(future.result() for future in tries)


def _remote(
    network: Network,
    remote: Remote | None,
    answered: threading.Event,
    *,
    is_box: bool,
    leaky: bool,
) -> tuple[RemoteSeen, ...]:
    targets = _targets(network, remote, is_box=is_box, leaky=leaky)
    ask = _BOX_REQUEST if is_box else None
    attempts = probes.try_remote(targets, seconds=_REMOTE_SECONDS, ask=ask)
    if any(attempt.is_ok for attempt in attempts):
        answered.set()
    return tuple(
        RemoteSeen(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            _route(network, host)[1],
            attempt,
        )
        for (host, port), attempt in zip(targets, attempts, strict=True)
    )


def _targets(
    network: Network, remote: Remote | None, *, is_box: bool, leaky: bool
) -> list[tuple[str, int]]:
    """Addresses to try: the user's, else hosts that are up whenever the Internet is."""
    if remote is not None:
        if remote.is_literal:
            return [(remote.host, remote.port)]
        found: tuple[str, ...] = ()
        if not leaky:
            found, _error = dnsprobe.look_up(remote.host, seconds=_NAME_SECONDS)
        return [(address, remote.port) for address in found[:4]]
    if is_box:
        return list(_BOX_TARGETS)
    return usual_targets(network, has_ipv6=socket.has_ipv6)
