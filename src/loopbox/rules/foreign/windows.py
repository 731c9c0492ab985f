"""What PowerShell tells as JSON: addresses, listeners, routes, processes, name servers of Windows.

Owns: the fields of Get-NetIPAddress, Get-NetTCPConnection, Get-NetUDPEndpoint, Get-NetRoute,
Get-Process, Get-NetAdapter, Get-NetNeighbor, Get-DnsClientServerAddress and of .NET's Ping.
ConvertTo-Json prints one object, not a list, when there is only one.

Must never: read localised text (netstat's words differ by language).

Example::

    parse_listeners(json_text, protocol="tcp")
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any, TypeGuard

from loopbox.rules.doctor.observed import Attempt
from loopbox.rules.network import (
    IFF_LOOPBACK,
    IFF_UP,
    InterfaceAddress,
    Link,
    ListeningSocket,
    Neighbour,
    Route,
)

PSEUDO_INTERFACE = "Loopback Pseudo-Interface"
_TENTATIVE = 1  # AddressState of Get-NetIPAddress: 4 is Preferred
_NEIGHBOURS = ("failed", "incomplete", "probe", "delay", "stale", "reachable", "permanent")
"""Get-NetNeighbor's State, by number."""
_PING = {11010: "timeout", 11050: "no-host", 11002: "unreachable", 11003: "no-host"}
"""IPStatus numbers that are no success."""


def parse_addresses(text: str) -> tuple[list[Link], list[InterfaceAddress]]:
    """Interfaces and addresses from Get-NetIPAddress."""
    links: dict[int, Link] = {}
    addresses: list[InterfaceAddress] = []
    for entry in _objects(text):
        index, prefix = entry.get("InterfaceIndex"), entry.get("PrefixLength")
        plain = str(entry.get("IPAddress", "")).partition("%")[0]
        try:
            address = ip_address(plain)
        except ValueError:
            continue
        if not _is_number(index) or not _is_number(prefix) or prefix > address.max_prefixlen:
            continue
        name = str(entry.get("InterfaceAlias", f"if{index}"))
        loop = IFF_LOOPBACK if name.startswith(PSEUDO_INTERFACE) else 0
        links.setdefault(index, Link(index, name, IFF_UP | loop, operstate="up"))
        scope = "host" if address.is_loopback else "link" if address.is_link_local else "global"
        tentative = entry.get("AddressState") == _TENTATIVE
        addresses.append(InterfaceAddress(index, address, prefix, scope, tentative=tentative))
    return list(links.values()), addresses


def parse_listeners(text: str, *, protocol: str) -> list[ListeningSocket]:
    """Sockets that wait, from Get-NetTCPConnection -State Listen or Get-NetUDPEndpoint.

    `uid` is -1; `inode` holds the process id, for Windows names a socket by its owner. A wildcard
    IPv6 socket says ipv6: Windows lists the IPv4 half of a dual-stack one by itself.
    """
    found: list[ListeningSocket] = []
    for entry in _objects(text):
        port, owner = entry.get("LocalPort"), entry.get("OwningProcess")
        try:
            address = ip_address(str(entry.get("LocalAddress", "")).partition("%")[0])
        except ValueError:
            continue
        if not _is_number(port) or port > 65535:
            continue
        family = "ipv4" if address.version == 4 else "ipv6"
        pid = owner if _is_number(owner) else 0
        found.append(ListeningSocket(protocol, family, address, port, 0, pid, -1))
    return found


def parse_routes(text: str) -> list[Route]:
    """Routes from Get-NetRoute. 127/8 and ::1 are local there, whatever it prints."""
    found = [
        Route(ip_network("127.0.0.0/8"), 255, "local"),
        Route(ip_network("::1/128"), 255, "local"),
    ]
    for entry in _objects(text):
        index = entry.get("ifIndex", entry.get("InterfaceIndex"))
        try:
            target = ip_network(str(entry.get("DestinationPrefix", "")).partition("%")[0])
            hop = ip_address(str(entry.get("NextHop", "")).partition("%")[0])
        except ValueError:
            continue
        if _is_number(index):
            gateway = None if int(hop) == 0 else hop
            found.append(Route(target, 254, "unicast", index, gateway))
    return found


def parse_processes(text: str) -> dict[int, str]:
    """Process id to path or name, from Get-Process."""
    found: dict[int, str] = {}
    for entry in _objects(text):
        pid = entry.get("Id")
        if _is_number(pid):
            found[pid] = str(entry.get("Path") or entry.get("ProcessName") or "")
    return found


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects of ConvertTo-Json's output; none when it is no JSON."""
    try:
        document = json.loads(text) if text.strip() else []
    except ValueError:
        return []
    entries = document if isinstance(document, list) else [document]
    return [entry for entry in entries if isinstance(entry, dict)]


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def parse_adapters(text: str, links: list[Link]) -> list[Link]:
    """`links` with carrier and switch as Get-NetAdapter tells, and those that have no address."""
    found = {link.index: link for link in links}
    for entry in _objects(text):
        index = entry.get("ifIndex")
        if not _is_number(index):
            continue
        media, admin = entry.get("MediaConnectionState"), entry.get("InterfaceAdminStatus")
        carrier = media not in (2, "Disconnected")
        is_up = admin not in (2, "Down")
        known = found.get(index, Link(index, str(entry.get("Name", f"if{index}")), 0))
        flags = (known.flags & ~IFF_UP) | (IFF_UP if is_up else 0)
        state = "up" if is_up and carrier else "down"
        found[index] = Link(index, known.name, flags, known.kind, state, carrier, known.mtu)
    return list(found.values())


def parse_neighbours(text: str) -> list[Neighbour]:
    """ARP and ND entries from Get-NetNeighbor."""
    found: list[Neighbour] = []
    for entry in _objects(text):
        index, state = entry.get("ifIndex"), entry.get("State")
        try:
            address = ip_address(str(entry.get("IPAddress", "")).partition("%")[0])
        except ValueError:
            continue
        if not _is_number(index):
            continue
        if _is_number(state):
            word = _NEIGHBOURS[state] if state < len(_NEIGHBOURS) else "none"
        else:
            word = {"unreachable": "failed"}.get(str(state).lower(), str(state).lower())
        found.append(Neighbour(index, address, word))
    return found


def parse_servers(text: str) -> list[str]:
    """Name servers from Get-DnsClientServerAddress, each once, without the fec0:: defaults.

    Windows lists fec0:0:0:ffff::1 to 3 on interfaces that have none; nobody answers there.
    """
    found: dict[str, None] = {}
    for entry in _objects(text):
        listed = entry.get("ServerAddresses")
        for server in listed if isinstance(listed, list) else [listed]:
            try:
                address = ip_address(str(server).partition("%")[0])
            except ValueError:
                continue
            if not str(address).startswith("fec0:"):
                found[str(server)] = None
    return list(found)


def parse_ping(text: str) -> Attempt:
    """The PingReply of System.Net.NetworkInformation.Ping as JSON (IPStatus 0 is Success)."""
    for entry in _objects(text):
        status, spent = entry.get("Status"), entry.get("RoundtripTime")
        if status in (0, "Success"):
            return Attempt("ok", float(spent) if _is_number(spent) else 0.0)
        return Attempt(_PING.get(status, "no-host") if _is_number(status) else "timeout")
    return Attempt("not-tried")
