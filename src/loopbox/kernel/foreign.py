"""The network of macOS, the BSDs and Windows, by their own tools.

Owns: which tool tells what on which system, for audit, addr and doctor. Nobody here has
run this on those systems: it is tested on recorded output.

Must never: be imported on Linux's paths, parse (rules/foreign does), judge.

Example::

    network, listeners, owners = look("darwin")
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address

from loopbox.rules.audit.findings import Holder
from loopbox.rules.doctor.observed import Attempt
from loopbox.rules.foreign import holders, paths, unix, windows
from loopbox.rules.foreign.paths import WayTaken
from loopbox.rules.network import ListeningSocket, Neighbour, Network

Run = Callable[[Sequence[str]], str]
"""A program's output; empty when it is missing or fails."""
Seen = tuple[Network, tuple[ListeningSocket, ...], dict[int, tuple[Holder, ...]]]

SYSTEMS = {
    "darwin": "macos",
    "freebsd": "freebsd",
    "openbsd": "openbsd",
    "netbsd": "netbsd",
    "aix": "aix",
    "sunos": "solaris",
    "win32": "windows",
}
"""The beginning of sys.platform to the name in rules/alias_systems."""
_SECONDS = 10.0
_POWERSHELL = ("powershell", "-NoProfile", "-NonInteractive", "-Command")
_QUERIES = {
    "addresses": "Get-NetIPAddress | Select-Object IPAddress,PrefixLength,InterfaceIndex,"
    "InterfaceAlias,AddressState | ConvertTo-Json",
    "tcp": "Get-NetTCPConnection -State Listen | Select-Object LocalAddress,LocalPort,"
    "OwningProcess | ConvertTo-Json",
    "udp": "Get-NetUDPEndpoint | Select-Object LocalAddress,LocalPort,OwningProcess"
    " | ConvertTo-Json",
    "routes": "Get-NetRoute | Select-Object DestinationPrefix,NextHop,ifIndex | ConvertTo-Json",
    "processes": "Get-Process | Select-Object Id,ProcessName,Path | ConvertTo-Json",
    "adapters": "Get-NetAdapter | Select-Object ifIndex,Name,MediaConnectionState,"
    "InterfaceAdminStatus | ConvertTo-Json",
    "neighbours": "Get-NetNeighbor | Select-Object ifIndex,IPAddress,State | ConvertTo-Json",
    "servers": "Get-DnsClientServerAddress | Select-Object ServerAddresses | ConvertTo-Json",
    "ping": "(New-Object System.Net.NetworkInformation.Ping).Send('{}', 1500)"
    " | Select-Object Status,RoundtripTime | ConvertTo-Json",
}
_WIDE = {"darwin": "-anW", "freebsd": "-anW", "openbsd": "-anv", "netbsd": "-anv"}
"""netstat's option on each system against addresses cut short by their column."""
_PING = {
    "macos": ("-t", "2"),
    "freebsd": ("-t", "2"),
    "openbsd": ("-w", "2"),
    "netbsd": ("-w", "2"),
}
"""How each system's ping is told to give up after two seconds; the others are cut off."""


def output_of(argv: Sequence[str], *, seconds: float = _SECONDS) -> str:
    """What a program prints, within `seconds`."""
    try:
        done = subprocess.run(
            list(argv),
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def look(platform: str, run: Run = output_of) -> Seen:
    """(network, listeners, holders by the listeners' made-up inodes) of this machine."""
    return _look_windows(run) if platform == "win32" else _look_unix(platform, run)


def look_network(platform: str, run: Run = output_of) -> Network:
    """Links, addresses and routes alone."""
    return _network_windows(run) if platform == "win32" else _network_unix(run)


def look_neighbours(platform: str, network: Network, run: Run = output_of) -> list[Neighbour]:
    """What the system knows of hosts on its links."""
    if platform == "win32":
        return windows.parse_neighbours(run([*_POWERSHELL, _QUERIES["neighbours"]]))
    indexes = {link.name: link.index for link in network.links}
    tables = (["arp", "-an"], ["ndp", "-an"])
    return [entry for argv in tables for entry in paths.parse_neighbours(run(argv), indexes)]


def ask_route(platform: str, network: Network, address: str, run: Run = output_of) -> WayTaken:
    """The way a packet for `address` would take; an empty interface where there is none.

    Windows' stack delivers 127/8 and ::1 itself, so what was read of its routes is enough.
    """
    if platform == "win32":
        return _way_windows(network, address)
    family = ["-inet6"] if ":" in address else []
    return paths.parse_route_get(run(["route", "-n", "get", *family, address])) or WayTaken("")


def ping(platform: str, address: str, run: Run = output_of) -> Attempt:
    """One echo request by the system's own ping, which has the privilege that takes."""
    if platform == "win32":
        return windows.parse_ping(run([*_POWERSHELL, _QUERIES["ping"].format(address)]))
    if ":" in address:
        return paths.parse_ping(run(["ping6", "-n", "-c", "1", address]))
    patience = _PING.get(system_name(platform) or "", ())
    return paths.parse_ping(run(["ping", "-n", "-c", "1", *patience, address]))


def look_servers(platform: str, run: Run = output_of) -> list[str] | None:
    """Name servers where a tool tells them; None where /etc/resolv.conf does."""
    if platform == "win32":
        return windows.parse_servers(run([*_POWERSHELL, _QUERIES["servers"]]))
    return paths.parse_scutil(run(["scutil", "--dns"])) if platform == "darwin" else None


def _network_unix(run: Run) -> Network:
    links, addresses = unix.parse_ifconfig(run(["ifconfig", "-a"]))
    routes = unix.parse_routes(run(["netstat", "-rn"]), links)
    return Network(tuple(links), tuple(addresses), tuple(routes))


def _network_windows(run: Run) -> Network:
    """The three questions at once: PowerShell takes seconds to start."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = ("addresses", "adapters", "routes")
        told = list(pool.map(lambda what: run([*_POWERSHELL, _QUERIES[what]]), asked))
    links, addresses = windows.parse_addresses(told[0])
    links = windows.parse_adapters(told[1], links)
    return Network(tuple(links), tuple(addresses), tuple(windows.parse_routes(told[2])))


def _way_windows(network: Network, address: str) -> WayTaken:
    target = ip_address(address)
    fitting = [
        route
        for route in network.routes
        if route.destination.version == target.version and target in route.destination
    ]
    if not fitting:
        return WayTaken("")
    best = max(fitting, key=lambda route: route.destination.prefixlen)
    link = network.loopback if best.type == "local" else network.link(best.index)
    return WayTaken("" if link is None else link.name, best.gateway)


def _look_unix(platform: str, run: Run) -> Seen:
    network = _network_unix(run)
    wide = next((option for name, option in _WIDE.items() if platform.startswith(name)), "-an")
    listeners = unix.parse_listeners(run(["netstat", wide]))
    opened = _opened(platform, run)
    owners = {
        entry.inode: tuple(
            Holder(one.pid, one.command, one.uid) for one in opened if unix.same_end(entry, one)
        )
        for entry in listeners
    }
    return network, tuple(listeners), owners


def _opened(platform: str, run: Run) -> list[unix.OpenFile]:
    """Sockets with their processes, by lsof or what the system has in its stead."""
    command = ["lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-iUDP", "-F", "pcuPn"]
    found = unix.parse_lsof(run(command))
    if not found and platform.startswith(("freebsd", "netbsd")):
        found = holders.parse_sockstat(run(["sockstat", "-n"]))
    if not found and platform.startswith(("openbsd", "netbsd")):
        found = holders.parse_fstat(run(["fstat", "-n"]))
    return found


def _look_windows(run: Run) -> Seen:
    def ask(what: str) -> str:
        return run([*_POWERSHELL, _QUERIES[what]])

    network = _network_windows(run)
    processes = windows.parse_processes(ask("processes"))
    found = [
        entry
        for protocol in ("tcp", "udp")
        for entry in windows.parse_listeners(ask(protocol), protocol=protocol)
    ]
    owners: dict[int, tuple[Holder, ...]] = {}
    listeners = []
    for number, entry in enumerate(found, start=1):
        pid = entry.inode
        owners[number] = (Holder(pid, processes.get(pid, "")),) if pid else ()
        listeners.append(replace(entry, inode=number))
    return network, tuple(listeners), owners


def system_name(platform: str) -> str | None:
    """The name in rules/alias_systems for a sys.platform; None for Linux and the unknown."""
    return next((name for start, name in SYSTEMS.items() if platform.startswith(start)), None)
