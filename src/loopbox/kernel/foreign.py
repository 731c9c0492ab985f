"""The network of macOS, the BSDs and Windows, by their own tools.

Owns: which tool tells what on which system. Nobody here has run this on those systems: it is
tested on recorded output.

Must never: be imported on Linux's paths, parse (rules/foreign does), judge.

Example::

    network, listeners, owners = look("darwin")
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace

from loopbox.rules.audit.findings import Holder
from loopbox.rules.foreign import unix, windows
from loopbox.rules.network import ListeningSocket, Network

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
}


def output_of(argv: Sequence[str]) -> str:
    """What a program prints."""
    try:
        done = subprocess.run(
            list(argv),
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def look(platform: str, run: Run = output_of) -> Seen:
    """(network, listeners, holders by the listeners' made-up inodes) of this machine."""
    return _look_windows(run) if platform == "win32" else _look_unix(run)


def _look_unix(run: Run) -> Seen:
    links, addresses = unix.parse_ifconfig(run(["ifconfig", "-a"]))
    routes = unix.parse_routes(run(["netstat", "-rn"]), links)
    listeners = unix.parse_listeners(run(["netstat", "-an"]))
    command = ["lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-iUDP", "-F", "pcuPn"]
    opened = unix.parse_lsof(run(command))
    owners = {
        entry.inode: tuple(
            Holder(one.pid, one.command, one.uid) for one in opened if unix.same_end(entry, one)
        )
        for entry in listeners
    }
    network = Network(tuple(links), tuple(addresses), tuple(routes))
    return network, tuple(listeners), owners


def _look_windows(run: Run) -> Seen:
    def ask(what: str) -> str:
        return run([*_POWERSHELL, _QUERIES[what]])

    links, addresses = windows.parse_addresses(ask("addresses"))
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
    network = Network(tuple(links), tuple(addresses), tuple(windows.parse_routes(ask("routes"))))
    return network, tuple(listeners), owners


def system_name(platform: str) -> str | None:
    """The name in rules/alias_systems for a sys.platform; None for Linux and the unknown."""
    return next((name for start, name in SYSTEMS.items() if platform.startswith(start)), None)
