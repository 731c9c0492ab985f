"""The special-purpose address registries of IANA, as a table.

Owns: one row per registered block (RFC 6890, RFC 8190; IANA "IPv4/IPv6 Special-Purpose Address
Registry"), with the five facts the registry states and the one-word class loopbox uses, plus the
few blocks that are special without being registered there (multicast, IPv4-compatible, site-local).

Must never: decide anything, or ask Python's `ipaddress` what is private or global: its answers
changed between 3.9 and 3.13, this table does not.

Example::

    registered(IPv4Address("127.0.0.2")).name      # "Loopback"
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network


@dataclass(frozen=True, slots=True)
class Block:
    """One registered block. The five facts are None where the registry says "N/A"."""

    network: IPv4Network | IPv6Network
    name: str
    rfc: str
    kind: str
    """loopback, unspecified, this-network, lan, link, lab, documentation, multicast, special,
    anycast, translation or public."""
    source: bool | None
    destination: bool | None
    forwardable: bool | None
    is_global: bool | None
    reserved: bool | None


_FACT = {"T": True, "F": False, "-": None}

_ROWS = """
0.0.0.0/8          TFFFT this-network   RFC 791 section 3.2      | This network
0.0.0.0/32         TFFFT unspecified    RFC 1122 section 3.2.1.3 | This host on this network
10.0.0.0/8         TTTFF lan            RFC 1918                 | Private-Use
100.64.0.0/10      TTTFF lan            RFC 6598                 | Shared Address Space
127.0.0.0/8        FFFFT loopback       RFC 1122 section 3.2.1.3 | Loopback
169.254.0.0/16     TTFFT link           RFC 3927                 | Link Local
172.16.0.0/12      TTTFF lan            RFC 1918                 | Private-Use
192.0.0.0/24       FFFFF special        RFC 6890 section 2.1     | IETF Protocol Assignments
192.0.0.0/29       TTTFF special        RFC 7335                 | IPv4 Service Continuity Prefix
192.0.0.8/32       TFFFF special        RFC 7600                 | IPv4 dummy address
192.0.0.9/32       TTTTF anycast        RFC 7723                 | Port Control Protocol Anycast
192.0.0.10/32      TTTTF anycast        RFC 8155                 | TURN Anycast
192.0.0.170/32     FFFFT special        RFC 8880, RFC 7050       | NAT64/DNS64 Discovery
192.0.0.171/32     FFFFT special        RFC 8880, RFC 7050       | NAT64/DNS64 Discovery
192.0.2.0/24       FFFFF documentation  RFC 5737                 | Documentation (TEST-NET-1)
192.31.196.0/24    TTTTF anycast        RFC 7535                 | AS112-v4
192.52.193.0/24    TTTTF anycast        RFC 7450                 | AMT
192.88.99.0/24     ----- special        RFC 7526                 | Deprecated (6to4 Relay Anycast)
192.88.99.2/32     TTTFF special        RFC 6751                 | 6a44-relay anycast address
192.168.0.0/16     TTTFF lan            RFC 1918                 | Private-Use
192.175.48.0/24    TTTTF anycast        RFC 7534                 | Direct Delegation AS112 Service
198.18.0.0/15      TTTFF lab            RFC 2544                 | Benchmarking
198.51.100.0/24    FFFFF documentation  RFC 5737                 | Documentation (TEST-NET-2)
203.0.113.0/24     FFFFF documentation  RFC 5737                 | Documentation (TEST-NET-3)
224.0.0.0/4        FT-F- multicast      RFC 5771                 | Multicast
240.0.0.0/4        FFFFT special        RFC 1112 section 4       | Reserved
255.255.255.255/32 FTFFT special        RFC 8190, RFC 919 section 7| Limited Broadcast
::/128             TFFFT unspecified    RFC 4291 section 2.5.2   | Unspecified Address
::1/128            FFFFT loopback       RFC 4291 section 2.5.3   | Loopback Address
::/96              FFFFT special        RFC 4291 section 2.5.5.1 | IPv4-compatible (deprecated)
::ffff:0:0/96      FFFFT translation    RFC 4291 section 2.5.5.2 | IPv4-mapped Address
64:ff9b::/96       TTTTF translation    RFC 6052                 | IPv4-IPv6 Translation
64:ff9b:1::/48     TTTFF translation    RFC 8215                 | IPv4-IPv6 Translation, local use
100::/64           TTTFF special        RFC 6666                 | Discard-Only Address Block
100:0:0:1::/64     TFFFF special        RFC 9780                 | Dummy IPv6 Prefix
2001::/23          FFFFF special        RFC 2928                 | IETF Protocol Assignments
2001::/32          TTT-F translation    RFC 4380, RFC 8190       | TEREDO
2001:1::1/128      TTTTF anycast        RFC 7723                 | Port Control Protocol Anycast
2001:1::2/128      TTTTF anycast        RFC 8155                 | TURN Anycast
2001:1::3/128      TTTTF anycast        RFC 9665                 | DNS-SD SRP Anycast
2001:2::/48        TTTFF lab            RFC 5180                 | Benchmarking
2001:3::/32        TTTTF anycast        RFC 7450                 | AMT
2001:4:112::/48    TTTTF anycast        RFC 7535                 | AS112-v6
2001:10::/28       ----- special        RFC 4843                 | Deprecated (previously ORCHID)
2001:20::/28       TTTTF special        RFC 7343                 | ORCHIDv2
2001:30::/28       TTTTF special        RFC 9374                 | Drone Remote ID Entity Tags
2001:db8::/32      FFFFF documentation  RFC 3849                 | Documentation
2002::/16          TTT-F translation    RFC 3056                 | 6to4
2620:4f:8000::/48  TTTTF anycast        RFC 7534                 | Direct Delegation AS112 Service
3fff::/20          FFFFF documentation  RFC 9637                 | Documentation
5f00::/16          TTTFF special        RFC 9602                 | Segment Routing (SRv6) SIDs
fc00::/7           TTTFF lan            RFC 4193, RFC 8190       | Unique-Local
fe80::/10          TTFFT link           RFC 4291 section 2.5.6   | Link-Local Unicast
fec0::/10          TTTFF lan            RFC 3879                 | Site-Local (deprecated)
ff00::/8           FT-F- multicast      RFC 4291 section 2.7     | Multicast
"""
"""Prefix, then source, destination, forwardable, globally reachable, reserved-by-protocol
(T true, F false, - not applicable), class, RFC, name. Multicast, ::/96 and fec0::/10 stand in
other registries or RFCs; their five facts are ours."""


def _read(row: str) -> Block:
    left, name = row.split("|")
    prefix, facts, kind, rfc = left.split(maxsplit=3)
    values = [_FACT[letter] for letter in facts]
    return Block(ip_network(prefix), name.strip(), rfc.strip(), kind, *values)


BLOCKS: tuple[Block, ...] = tuple(
    sorted(
        (_read(row) for row in _ROWS.strip().splitlines()),
        key=lambda block: (block.network.version, -block.network.prefixlen),
    )
)
"""Every row, most specific first within its family."""

_PUBLIC = {
    version: Block(ip_network(everything), "Unicast", rfc, "public", True, True, True, True, False)
    for version, everything, rfc in ((4, "0.0.0.0/0", "RFC 791"), (6, "::/0", "RFC 4291"))
}


def registered(address: IPv4Address | IPv6Address) -> Block:
    """The most specific block that holds `address`; ordinary unicast is a block named so."""
    for block in BLOCKS:
        if block.network.version == address.version and address in block.network:
            return block
    return _PUBLIC[address.version]
