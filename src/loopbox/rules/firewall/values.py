"""The values nft's JSON writes: numbers, ports, addresses, TCP flags, and ranges of them.

Owns: turning one JSON value into a `Range`, or None where it cannot be read. What is no constant
(a map, a random number) is such a value.

Must never: know of rules or chains (nftables.py does), raise on odd values.

Example::

    number({"range": [20, 25]})     # Range(20, 25)
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from loopbox.rules.firewall.model import Range, Value

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51,
    "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132, "udplite": 136, "vrrp": 112, "ospf": 89,
}  # fmt: skip
_SERVICES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "http": 80, "pop3": 110,
    "ntp": 123, "imap2": 143, "snmp": 161, "https": 443, "http-alt": 8080, "mysql": 3306,
    "postgresql": 5432, "bootps": 67, "bootpc": 68, "mdns": 5353,
}  # fmt: skip

TCP_FLAGS = {
    "fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "ece": 64, "cwr": 128,
}  # fmt: skip
"""Bits of the TCP header's flag byte, by the words of nft and (in capitals) of iptables."""


def compared(operation: str, values: tuple[Value, ...]) -> tuple[Value, ...] | None:
    if len(values) != 1 or not isinstance(values[0], Range):
        return None
    bound = values[0]
    top = (1 << (32 if bound.version == 4 else 128 if bound.version == 6 else 32)) - 1
    low, high = {
        "<": (0, bound.low - 1),
        "<=": (0, bound.high),
        ">": (bound.high + 1, top),
        ">=": (bound.low, top),
    }[operation]
    return (Range(low, high, bound.version),)


def number(element: Any) -> Range | None:
    """A port, protocol or mark: a number, a known word, or a range of them."""
    if isinstance(element, bool):
        return None
    if isinstance(element, int):
        return Range(element, element)
    if isinstance(element, str):
        known = PROTOCOLS.get(element, _SERVICES.get(element))
        return None if known is None else Range(known, known)
    if isinstance(element, dict) and isinstance(element.get("range"), list):
        ends = [number(end) for end in element["range"]]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            return Range(ends[0].low, ends[1].high)
    return None


def addresses(element: Any) -> Range | None:
    """An address, a prefix, or a range of addresses."""
    if isinstance(element, dict):
        prefix, ends = element.get("prefix"), element.get("range")
        if isinstance(prefix, dict):
            try:
                network = ip_network(
                    (str(prefix.get("addr")), int(prefix.get("len", -1))), strict=False
                )
            except (ValueError, TypeError):
                return None
            return Range(int(network[0]), int(network[-1]), network.version)
        if isinstance(ends, list) and len(ends) == 2:
            low, high = address(ends[0]), address(ends[1])
            if low is not None and high is not None and low.version == high.version:
                return Range(int(low), int(high), low.version)
        return None
    one = address(element)
    return None if one is None else Range(int(one), int(one), one.version)


def address(element: Any) -> IPv4Address | IPv6Address | None:
    if not isinstance(element, str):
        return None
    try:
        return ip_address(element)
    except ValueError:
        return None


def bits(element: Any) -> Range | None:
    """TCP flags: a word, a number, or several of them joined."""
    if isinstance(element, dict):
        element = element.get("|")
    parts = element if isinstance(element, list) else [element]
    found = 0
    for part in parts:
        one = part if isinstance(part, int) else TCP_FLAGS.get(part) if part else None
        if one is None:
            return None
        found |= one
    return Range(found, found)
