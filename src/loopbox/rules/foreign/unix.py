"""ifconfig, netstat and lsof of macOS, FreeBSD, OpenBSD and NetBSD.

Owns: the dialects: hexadecimal netmasks and /PREFIX, `addr.port` and `*.port`, `tcp46` for
dual-stack sockets, zones (`fe80::1%lo0`).

Must never: raise on a line; guess what is not printed (a UDP socket's peer, a filter).

Example::

    parse_listeners("tcp4  0  0  127.0.0.1.5432  *.*  LISTEN")[0].port       # 5432
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import pairwise

from loopbox.rules.network import (
    Address,
    InterfaceAddress,
    Link,
    ListeningSocket,
    Route,
    Subnet,
)

_HEAD = re.compile(r"^([A-Za-z][\w.\-]*): flags=(?:0x)?([0-9a-fA-F]+)(?:<[^>]*>)?(.*)$")
_MTU = re.compile(r"\bmtu (\d+)")
_SOCKET = re.compile(r"^(tcp|udp)(4|6|46)?\s+\d+\s+\d+\s+(\S+)\s+(\S+)(?:\s+(\S+))?")
_LINUX_FLAGS = ((0x1, 0x1), (0x8, 0x8), (0x40, 0x40))
"""IFF_UP, IFF_LOOPBACK and IFF_RUNNING have the same bits on the BSDs and on Linux."""
_DEFAULTS = {"inet": "0.0.0.0/0", "inet6": "::/0"}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One socket of lsof's list."""

    protocol: str
    endpoint: str
    """ADDRESS:PORT or *:PORT, IPv6 in brackets."""
    pid: int
    command: str
    uid: int | None


def parse_ifconfig(text: str) -> tuple[list[Link], list[InterfaceAddress]]:
    """Interfaces and their addresses from `ifconfig -a`. Indexes count from 1 in its order."""
    links: list[Link] = []
    addresses: list[InterfaceAddress] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head is not None:
            links.append(_link(head, len(links) + 1))
            continue
        words = line.split()
        if not links or not words or not line[:1].isspace():
            continue
        if words[0] == "status:" and words[1:] and words[1] in ("inactive", "no"):
            last = links[-1]
            links[-1] = Link(last.index, last.name, last.flags, last.kind, "down", False, last.mtu)
        elif words[0] in ("inet", "inet6"):
            entry = _address(words, links[-1])
            if entry is not None:
                addresses.append(entry)
    return links, addresses


def _link(head: re.Match[str], index: int) -> Link:
    bits = int(head[2], 16) if len(head[2]) < 17 else 0  # illumos has 64
    mtu = _MTU.search(head[3])
    name = head[1]
    kind = next((word for word in ("bridge", "utun", "tun", "tap") if name.startswith(word)), "")
    return Link(
        index=index,
        name=name,
        flags=sum(ours for theirs, ours in _LINUX_FLAGS if bits & theirs),
        kind=kind,
        operstate="up" if bits & 0x1 else "down",
        carrier=True,
        mtu=int(mtu[1]) if mtu and len(mtu[1]) < 9 else 0,
    )


def _address(words: list[str], link: Link) -> InterfaceAddress | None:
    """`inet A netmask 0xffffff00`, `inet A/P`, `inet6 A%zone prefixlen P`, `inet6 A/P`."""
    if len(words) < 2:
        return None
    plain, _, prefix = words[1].partition("/")
    try:
        address = ip_address(plain.partition("%")[0])
    except ValueError:
        return None
    width = _prefix(words, prefix, address)
    if width is None:
        return None
    scope = "host" if address.is_loopback else "link" if address.is_link_local else "global"
    return InterfaceAddress(
        link.index, address, width, scope, tentative="tentative" in words or "duplicated" in words
    )


def _prefix(words: list[str], written: str, address: Address) -> int | None:
    top = address.max_prefixlen
    options = dict(pairwise(words[2:]))
    text = written or options.get("prefixlen", "")
    if text:
        return int(text) if text.isascii() and text.isdigit() and int(text[:4]) <= top else None
    mask = options.get("netmask", "")
    try:
        is_hex = mask.startswith("0x") or len(mask) == 8  # illumos leaves out the 0x
        number = int(mask, 16) if is_hex else int(IPv4Address(mask))
    except ValueError:
        return top
    bits = f"{number & 0xFFFFFFFF:032b}"
    return bits.count("1") if "01" not in bits else None


def parse_listeners(text: str) -> list[ListeningSocket]:
    """Sockets that wait for peers, from `netstat -an`; inodes are made up (line numbers from 1).

    An IPv6 address that was cut short is taken for the wildcard.
    """
    found: list[ListeningSocket] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _SOCKET.match(line)
        if match is None:
            continue
        protocol, version, local, peer, state = match.groups()
        if peer != "*.*" or (protocol == "tcp" and state != "LISTEN"):
            continue
        end = _endpoint(local, version)
        if end is not None:
            family, address, port = end
            found.append(ListeningSocket(protocol, family, address, port, 0, number, -1))
    return found


def _endpoint(local: str, version: str | None) -> tuple[str, Address, int] | None:
    """(family, address, port) of ADDRESS.PORT or *.PORT."""
    host, _, port = local.rpartition(".")
    if not (port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        return None
    if host == "*":
        if version == "46":
            return "dual", IPv6Address("::"), int(port)
        if version == "6":
            return "ipv6", IPv6Address("::"), int(port)
        return "ipv4", IPv4Address("0.0.0.0"), int(port)
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        # An address that did not fit its column. Left out it would be taken for safe.
        return ("ipv6", IPv6Address("::"), int(port)) if ":" in host else None
    return ("ipv4" if address.version == 4 else "ipv6"), address, int(port)


def parse_routes(text: str, links: list[Link]) -> list[Route]:
    """Unicast routes from `netstat -rn`; what is cut short by its columns is left out."""
    names = {link.name: link.index for link in links}
    found: list[Route] = []
    family = "inet"
    for line in text.splitlines():
        if line.strip() in ("Internet:", "Internet6:"):
            family = "inet6" if line.strip() == "Internet6:" else "inet"
            continue
        words = line.split()
        index = next((names[word] for word in words[2:] if word in names), 0)
        target = _destination(words[0], family) if len(words) > 2 else None
        if target is None or not index:
            continue
        flags = words[2]
        if target.prefixlen == 0 and "I" in flags:
            continue  # macOS: good for sockets bound to that interface only (RTF_IFSCOPE)
        kind = "blackhole" if "B" in flags else "unreachable" if "R" in flags else "unicast"
        found.append(Route(target, 254, kind, index, _gateway(words[1])))
    return found


def _destination(text: str, family: str) -> Subnet | None:
    """`default`, `127`, `192.168.1`, `10.0.0.0/8`, `::1`, `fe80::%lo0/64`."""
    if text == "default":
        text = _DEFAULTS[family]
    text = re.sub(r"%[^/]*", "", text)
    plain, slash, prefix = text.partition("/")
    try:
        if family == "inet6":
            return IPv6Network(text, strict=False)
        parts = plain.split(".")
        width = prefix if slash else str(8 * len(parts))
        return IPv4Network(
            ".".join([*parts, *["0"] * (4 - len(parts))]) + f"/{width}", strict=False
        )
    except ValueError:
        return None


def _gateway(text: str) -> Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def parse_lsof(text: str) -> list[OpenFile]:
    """Sockets and their processes from `lsof -nP -iTCP -sTCP:LISTEN -iUDP -F pcuPn`."""
    return list(_lsof(text))


def _lsof(text: str) -> Iterator[OpenFile]:
    pid, command, uid, protocol = 0, "", None, ""
    for line in text.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p":
            pid = int(value) if value.isascii() and value.isdigit() else 0
            command, uid = "", None
        elif kind == "c":
            command = value
        elif kind == "u":
            uid = int(value) if value.isascii() and value.isdigit() else None
        elif kind == "P":
            protocol = value.lower()
        elif kind == "n" and pid and protocol in ("tcp", "udp") and "->" not in value:
            yield OpenFile(protocol, value, pid, command, uid)


def same_end(listener: ListeningSocket, opened: OpenFile) -> bool:
    """Whether lsof's entry is this listener (it does not tell V6ONLY, so families are not told)."""
    host, _, port = opened.endpoint.rpartition(":")
    if opened.protocol != listener.protocol or port != str(listener.port):
        return False
    if host == "*":
        return int(listener.address) == 0
    try:
        return ip_address(host.strip("[]").partition("%")[0]) == listener.address
    except ValueError:
        return False
