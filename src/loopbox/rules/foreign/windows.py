"""What PowerShell tells as JSON: addresses, listeners, routes, processes of Windows.

Owns: the fields of Get-NetIPAddress, Get-NetTCPConnection, Get-NetUDPEndpoint, Get-NetRoute,
Get-Process. ConvertTo-Json prints one object, not a list, when there is only one.

Must never: read localised text (netstat's words differ by language).

Example::

    parse_listeners(json_text, protocol="tcp")
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any, TypeGuard

from loopbox.rules.network import (
    IFF_LOOPBACK,
    IFF_UP,
    InterfaceAddress,
    Link,
    ListeningSocket,
    Route,
)

PSEUDO_INTERFACE = "Loopback Pseudo-Interface"
_TENTATIVE = 1  # AddressState of Get-NetIPAddress: 4 is Preferred


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
