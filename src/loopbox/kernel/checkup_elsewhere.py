"""The doctor's probes on macOS, the BSDs and Windows, as the same Observed as on Linux.

Owns: which tool or socket answers for which rung there. What asks the machine is a `Hands` record,
so that everything above it is tested on recorded output; nobody here has run it on those systems.

Must never: judge; send anything to 127/8 or ::1 unless the system says that its loopback interface
takes it (there is no SO_BINDTODEVICE there).

Example::

    rungs = climb(examine_elsewhere("darwin"))
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TypeVar

from loopbox.kernel import dnsprobe, foreign, probes, resolution
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
    ServerSeen,
)
from loopbox.rules.doctor.outward import candidates
from loopbox.rules.doctor.targets import Remote, usual_targets
from loopbox.rules.network import Network
from loopbox.wire.systemfiles import parse_resolv_conf

T = TypeVar("T")

_TOOL_SECONDS = 3.0
_POWERSHELL_SECONDS = 6.0
"""PowerShell and its network modules take seconds to load when they are cold."""
_REMOTE_SECONDS = 3.0
_NAME_SECONDS = 4.0
_MOST_OWN = 4
_WINDOWS_HOSTS = r"C:\Windows\System32\drivers\etc\hosts"
_POINT_TO_POINT = frozenset({"utun", "tun", "gif", "ppp"})
"""Kinds of links that have no neighbours to ask for."""


def _run(argv: Sequence[str]) -> str:
    seconds = _POWERSHELL_SECONDS if argv[0] == "powershell" else _TOOL_SECONDS
    return foreign.output_of(argv, seconds=seconds)


def _tcp(address: str) -> Attempt:
    return probes.try_tcp(address, device=None)


def _udp(address: str) -> Attempt:
    return probes.try_udp(address, device=None)


def _remote(targets: Sequence[tuple[str, int]]) -> list[Attempt]:
    return probes.try_remote(targets, seconds=_REMOTE_SECONDS)


def _look_up(name: str) -> tuple[tuple[str, ...], str | None]:
    return dnsprobe.look_up(name, seconds=_NAME_SECONDS)


def _leaks(server: str) -> bool:
    return probes.would_leak((server.partition("%")[0], 53))


@dataclass(frozen=True, slots=True)
class Hands:
    """Everything that touches the machine."""

    run: foreign.Run = _run
    tcp: Callable[[str], Attempt] = _tcp
    """A connection to an address of this device, and one byte."""
    udp: Callable[[str], Attempt] = _udp
    remote: Callable[[Sequence[tuple[str, int]]], list[Attempt]] = _remote
    look_up: Callable[[str], tuple[tuple[str, ...], str | None]] = _look_up
    """The C library's answer."""
    ask_server: Callable[[str, Sequence[str]], ServerSeen] = dnsprobe.ask_server
    leaks: Callable[[str], bool] = _leaks
    """Whether a server would be asked from a loopback address."""
    read: Callable[[str], bytes | None] = resolution.read
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


def examine_elsewhere(
    platform: str,
    *,
    remote: Remote | None = None,
    offline: bool = False,
    hands: Hands | None = None,
) -> Observed:
    """Probe everything, side by side; `platform` is sys.platform's word.

    `offline`: nobody beyond the gateway is asked.
    """
    return _Examination(platform, remote, hands or Hands(), offline=offline).observed()


class _Examination:
    """One run of all probes."""

    def __init__(
        self, platform: str, remote: Remote | None, hands: Hands, *, offline: bool
    ) -> None:
        self._offline = offline
        self._platform = platform
        self._wanted = remote
        self._hands = hands
        self._spent: dict[str, float] = {}
        start = time.perf_counter()
        self._network = _with_knobs(foreign.look_network(platform, hands.run))
        self._spent["loopback-interface"] = (time.perf_counter() - start) * 1000

    def observed(self) -> Observed:
        with ThreadPoolExecutor(max_workers=16, thread_name_prefix="doctor") as pool:
            four, six = pool.map(self._route, ("127.0.0.1", "::1"))
            servers, has_file = self._servers()
            leaky = self._leaky(servers, four=four[0], six=six[0])

            def later(name: str, probe: Callable[[], T]) -> Future[T]:
                return pool.submit(self._timed, name, probe)

            loop4 = later("loopback-ipv4", lambda: self._loopback("127.0.0.1", four))
            loop6 = later("loopback-ipv6", lambda: self._loopback("::1", six))
            localhost = later("localhost-name", lambda: self._localhost(leaky=leaky))
            own = later("own-address", self._own)
            gateways = later("gateway", self._gateways)
            reached = later("remote", lambda: self._remotes(leaky=leaky))
            names = later("dns", lambda: self._names(servers, has_file=has_file, leaky=leaky))
            return Observed(
                network=self._network,
                loopback4=loop4.result(),
                loopback6=loop6.result(),
                localhost=localhost.result(),
                own=own.result(),
                gateways=_settled(gateways.result(), reached.result()),
                remote=reached.result(),
                chosen=self._wanted is not None,
                offline=self._offline,
                names=names.result(),
                system=foreign.system_name(self._platform) or "unknown",
                ms=self._spent,
            )

    def _timed(self, name: str, probe: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return probe()
        finally:
            self._spent[name] = (time.perf_counter() - start) * 1000

    # -- inward -----------------------------------------------------------------------------------

    def _route(self, address: str) -> tuple[bool, str]:
        """Whether the system takes `address` for its own loopback, and its way, in words."""
        network = self._network
        way = foreign.ask_route(self._platform, network, address, self._hands.run)
        link = next((one for one in network.links if one.name == way.interface), None)
        if link is None:
            return False, "no route"
        refused = way.flags & {"REJECT", "BLACKHOLE"}
        is_here = link.is_loopback and link.is_up and not refused
        via = "" if way.gateway is None else f" via {way.gateway}"
        return is_here, f"route on {link.name}{via} {' '.join(sorted(refused))}".rstrip()

    def _loopback(self, address: str, route: tuple[bool, str]) -> LoopbackSeen:
        is_local, words = route
        if not is_local:
            return LoopbackSeen(False, words)
        ping = foreign.ping(self._platform, address, self._hands.run)
        tcp, udp = self._hands.tcp(address), self._hands.udp(address)
        return LoopbackSeen(True, words, tcp, udp, ping)

    def _own(self) -> tuple[tuple[str, str, Attempt], ...]:
        found = []
        chosen = {link.index: link for link in candidates(Observed(self._network))}
        for entry in self._network.addresses:
            if entry.index in chosen and not entry.address.is_link_local and not entry.tentative:
                text = str(entry.address)
                found.append((text, chosen[entry.index].name, self._hands.tcp(text)))
        return tuple(found[:_MOST_OWN])

    # -- names ------------------------------------------------------------------------------------

    def _servers(self) -> tuple[tuple[str, ...], bool]:
        """Name servers in use, and whether their configuration was found."""
        told = foreign.look_servers(self._platform, self._hands.run)
        if told is not None:
            return tuple(told), True
        data = self._hands.read("/etc/resolv.conf")
        return parse_resolv_conf(data or b"").nameservers, data is not None

    def _leaky(self, servers: tuple[str, ...], *, four: bool, six: bool) -> bool:
        """Whether asking for a name could send loopback packets onto a wire."""
        return any(
            not (six if ":" in server else four) if _is_loop(server) else self._hands.leaks(server)
            for server in servers or ("127.0.0.1",)
        )

    def _localhost(self, *, leaky: bool) -> LocalhostSeen:
        is_windows = self._platform == "win32"
        path = _WINDOWS_HOSTS if is_windows else "/etc/hosts"
        hosts = resolution.localhost_lines(self._hands.read(path))
        # Windows' resolver knows localhost itself, as systemd-resolved does ("resolve").
        sources = ("files", "resolve") if is_windows else self._sources()
        addresses: tuple[str, ...] = ()
        error: str | None = "not-tried"
        if not leaky or is_windows or (hosts and sources[:1] == ("files",)):
            addresses, error = self._hands.look_up("localhost")
        plain = tuple(dict.fromkeys(text.partition("%")[0] for text in addresses))
        proxies = resolution.unexcepted_proxies(self._hands.environment)
        return LocalhostSeen(plain, error, hosts, sources, proxies)

    def _sources(self) -> tuple[str, ...]:
        """The order of nsswitch.conf; macOS and OpenBSD have none and ask files, then DNS."""
        return resolution.sources(self._hands.read("/etc/nsswitch.conf") or b"")

    def _names(self, servers: tuple[str, ...], *, has_file: bool, leaky: bool) -> NamesSeen:
        if self._offline:
            return NamesSeen()
        if leaky and (not servers or any(_is_loop(server) for server in servers)):
            return NamesSeen(has_file=has_file, leaks=bool(servers))
        wanted = self._wanted
        asked = None if wanted is None or wanted.is_literal else wanted.host
        names = [*KNOWN, NOWHERE, *([asked] if asked else [])]
        with ThreadPoolExecutor(max_workers=4, thread_name_prefix="dns") as pool:
            known = next(iter(KNOWN))
            library = None if leaky else pool.submit(self._hands.look_up, known)
            seen = tuple(pool.map(lambda one: self._hands.ask_server(one, names), servers[:4]))
            error = "not-tried" if library is None else library.result()[1]
        return NamesSeen(has_file, seen, error or "ok", asked=asked)

    # -- outward ----------------------------------------------------------------------------------

    def _gateways(self) -> tuple[GatewaySeen, ...]:
        """Ping the gateway of the best default route of each family, then read the table."""
        network, run = self._network, self._hands.run
        tried = []
        for version in (4, 6):
            for route in network.default_routes(version):
                link = network.link(route.index)
                if route.gateway is None or link is None or link.kind in _POINT_TO_POINT:
                    continue
                zone = f"%{link.name}" if route.gateway.is_link_local else ""
                attempt = foreign.ping(self._platform, f"{route.gateway}{zone}", run)
                tried.append((route.gateway, link, attempt))
                break
        known = foreign.look_neighbours(self._platform, network, run) if tried else []
        states = {(entry.index, entry.address): entry.state for entry in known}
        return tuple(
            GatewaySeen(address, link.name, states.get((link.index, address), "none"), attempt)
            for address, link, attempt in tried
        )

    def _remotes(self, *, leaky: bool) -> tuple[RemoteSeen, ...]:
        wanted = self._wanted
        if self._offline:
            return ()
        if wanted is None:
            targets = usual_targets(self._network)
        elif wanted.is_literal:
            targets = [(wanted.host, wanted.port)]
        else:
            found = () if leaky else self._hands.look_up(wanted.host)[0]
            targets = [(address, wanted.port) for address in found[:4]]
        attempts = self._hands.remote(targets)
        return tuple(
            RemoteSeen(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                self._route(host.partition("%")[0])[1],
                attempt,
            )
            for (host, port), attempt in zip(targets, attempts, strict=True)
        )


def _is_loop(server: str) -> bool:
    return is_loopback(ip_address(server.partition("%")[0]))


def _with_knobs(network: Network) -> Network:
    """Whether there is IPv6, as the setting by which Linux tells it."""
    link = network.loopback
    if link is None or not any(entry.address.version == 6 for entry in network.addresses):
        return network
    return replace(network, knobs={f"ipv6/conf/{link.name}/disable_ipv6": "0"})


def _settled(
    gateways: tuple[GatewaySeen, ...], reached: tuple[RemoteSeen, ...]
) -> tuple[GatewaySeen, ...]:
    """A gateway that drops ping is there all the same when hosts beyond it answer."""
    families = {":" in one.target.rpartition(":")[0] for one in reached if one.attempt.is_ok}
    return tuple(
        replace(entry, state="reachable")
        if entry.state in ("stale", "delay", "probe", "none")
        and (entry.address.version == 6) in families
        else entry
        for entry in gateways
    )
