"""What an address is: one strict parser, one canonical spelling, one classification.

Owns: reading addresses for *every* use (deciding, displaying, connecting), so that no text is ever
read two ways; unwrapping of IPv4-mapped addresses before judging; the words of `loopbox classify`.

Must never: resolve names, accept inet_aton shorthand (`127.1`, `0x7f.1`, `2130706433`), or trust
`is_loopback`, `is_private`, `str()` of `ipaddress`, whose answers for mapped addresses differ
between Python 3.12 and 3.13.

Example::

    classify("::ffff:127.0.0.1").loopback      # True on every supported Python
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from loopbox.errors import UsageError
from loopbox.rules.registry import registered

Address = IPv4Address | IPv6Address

LOOPBACK4 = IPv4Network("127.0.0.0/8")
LOOPBACK6 = IPv6Address("::1")

_ZONE = re.compile(r"[A-Za-z0-9_.:-]{1,15}")
_SHORTHAND = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+)){0,3}")
"""What inet_aton(3) would take for an IPv4 address, beside dotted decimal."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer of `loopbox classify` for one address; field names as in the contract's JSON."""

    input: str
    address: str
    """Canonical text, with the zone; safe to hand to connect(2)."""
    kind: str
    """The contract's `class`: one of the kinds of rules/registry.Block."""
    loopback: bool
    unspecified: bool
    source: bool | None
    """May it be a source address? None where the registry says "not applicable"."""
    destination: bool | None
    forwardable: bool | None
    is_global: bool | None
    reserved: bool | None
    rfc: str
    note: str
    embeds: str | None
    """The IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo ...), if any."""

    def as_json(self) -> dict[str, object]:
        """The contract's object."""
        return {
            "input": self.input,
            "address": self.address,
            "class": self.kind,
            "loopback": self.loopback,
            "unspecified": self.unspecified,
            "source": self.source,
            "destination": self.destination,
            "forwardable": self.forwardable,
            "global": self.is_global,
            "reserved": self.reserved,
            "rfc": self.rfc,
            "note": self.note,
            "embeds": self.embeds,
        }


def parse_address(text: str) -> Address:
    """The address `text` spells in full, or UsageError saying what is wrong with it.

    Every part of loopbox reads addresses here and dials what `text_of` makes of the value.
    """
    plain, percent, zone = text.partition("%")
    try:
        address: Address = IPv6Address(plain) if ":" in plain else IPv4Address(plain)
    except ValueError:
        raise UsageError(
            f"cannot read address {text!r}: {_complaint(plain)}", hint=_hint(plain)
        ) from None
    if not percent:
        return address
    if not isinstance(address, IPv6Address) or not _ZONE.fullmatch(zone):
        raise UsageError(
            f"cannot read address {text!r}: a zone is an interface name after an IPv6 address",
            hint="write it like fe80::1%eth0",
        )
    return IPv6Address(f"{plain}%{zone}")


def parse_interface(text: str) -> tuple[Address, int | None]:
    """ADDRESS or ADDRESS/PREFIX as (address, prefix length or None); raises UsageError."""
    plain, slash, prefix = text.partition("/")
    address = parse_address(plain)
    if not slash:
        return address, None
    top = address.max_prefixlen
    if not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= top):
        raise UsageError(
            f"cannot read address {text!r}: invalid prefix length {prefix!r}",
            hint=f"use 0 to {top}",
        )
    return address, int(prefix)


def text_of(address: Address) -> str:
    """Canonical text (RFC 5952), the same on every Python: mapped addresses end dotted."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if mapped is None or not isinstance(address, IPv6Address):
        return str(address)
    zone = f"%{address.scope_id}" if address.scope_id else ""
    return f"::ffff:{mapped}{zone}"


def unwrapped(address: Address) -> Address:
    """The IPv4 address inside a mapped one; anything else as it is (zone dropped)."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def is_loopback(address: Address) -> bool:
    """Whether it is 127/8 or ::1, mapped or not."""
    bare = unwrapped(address)
    return bare in LOOPBACK4 if isinstance(bare, IPv4Address) else bare == LOOPBACK6


def is_unspecified(address: Address) -> bool:
    """Whether it is 0.0.0.0 or ::, mapped or not."""
    return int(unwrapped(address)) == 0


def classify(text: str) -> Classification:
    """Everything the registries say about the address `text`; raises UsageError."""
    address = parse_address(text)
    bare = unwrapped(address)
    block = registered(bare)
    embedded = embedded_ipv4(address)
    return Classification(
        input=text,
        address=text_of(address),
        kind=block.kind,
        loopback=is_loopback(address),
        unspecified=is_unspecified(address),
        source=block.source,
        destination=block.destination,
        forwardable=block.forwardable,
        is_global=block.is_global,
        reserved=block.reserved,
        rfc=block.rfc,
        note="; ".join(_notes(address, bare, block.name, embedded)),
        embeds=None if embedded is None else str(embedded),
    )


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address an IPv6 address carries by its format, if its format carries one."""
    if not isinstance(address, IPv6Address) or int(address) < 1 << 24:
        return None  # ::, ::1 and their neighbours are no IPv4-compatible addresses
    for network, extract in _EMBEDDING:
        if address in network:
            return IPv4Address(extract(int(address)) & 0xFFFFFFFF)
    if (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE:  # ISATAP, RFC 5214 section 6.1
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


_Extract = Callable[[int], int]
_EMBEDDING: tuple[tuple[IPv6Network, _Extract], ...] = (
    (IPv6Network("::ffff:0:0/96"), lambda bits: bits),
    (IPv6Network("64:ff9b::/96"), lambda bits: bits),  # RFC 6052 section 2.2
    (IPv6Network("64:ff9b:1::/48"), lambda bits: bits),  # RFC 8215; with a /96 inside it
    (IPv6Network("2002::/16"), lambda bits: bits >> 80),  # RFC 3056 section 2
    (IPv6Network("2001::/32"), lambda bits: ~bits),  # RFC 4380 section 4: client, inverted
    (IPv6Network("::/96"), lambda bits: bits),  # RFC 4291 section 2.5.5.1
)

_REMARKS: dict[str, str] = {
    "0.0.0.0/32": "bind: every IPv4 address of the machine; connect on Linux: 127.0.0.1",
    "::/128": "bind: every IPv6 address (and every IPv4 address unless V6ONLY is set); "
    "connect on Linux: ::1",
    "127.255.255.255/32": "broadcast address of 127.0.0.0/8: bind works, TCP connect does not, "
    "UDP needs SO_BROADCAST",
    "0.0.0.0/8": "not loopback: Linux 5.3 and later sends it to the default gateway like any "
    "unicast address",
    "127.0.0.0/8": "must never appear outside a host; only 127.0.0.1 exists on macOS and the "
    "BSDs until an alias is added",
    "::1/128": "the only IPv6 loopback address; must never appear outside a host",
    "169.254.169.254/32": "cloud metadata service",
    "fd00:ec2::254/128": "cloud metadata service",
    "255.255.255.255/32": "limited broadcast: never forwarded",
    "169.254.0.0/16": "valid on one link only",
    "fe80::/10": "valid on one link only; needs a zone such as %eth0",
}
"""Network to what the registry does not say. The most specific one applies."""
_REMARK_ROWS = tuple(
    (IPv4Network(prefix) if "." in prefix else IPv6Network(prefix), remark)
    for prefix, remark in _REMARKS.items()
)


def _notes(address: Address, bare: Address, name: str, embedded: IPv4Address | None) -> list[str]:
    """The registry's name, then remarks, most specific first."""
    matching = [
        (network.prefixlen, remark)
        for network, remark in _REMARK_ROWS
        if network.version == bare.version and bare in network
    ]
    notes = [name]
    if matching:
        notes.append(max(matching)[1])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        notes.append(f"IPv4-mapped: judged as {bare}")
    elif embedded is not None and embedded in LOOPBACK4:
        notes.append(f"embeds {embedded} of 127/8, but is not loopback")
    if bare.version == 4 and name == "Unicast":
        notes.append("public space: somebody's own address")
    return notes


def _complaint(plain: str) -> str:
    """Why `plain` is no address, in words."""
    if not plain:
        return "it is empty"
    if plain.startswith("["):
        return "brackets belong to URLs"
    if "/" in plain:
        return "it has a prefix length, one address is wanted"
    if _SHORTHAND.fullmatch(plain):
        return "shorthand, octal, hexadecimal and whole numbers are read differently by programs"
    return "it is not an IPv4 or IPv6 address"


def _hint(plain: str) -> str:
    if plain.startswith("["):
        return f"write {plain.strip('[]')!r}"
    return "write it in full: four decimal numbers, as 127.0.0.1, or IPv6, as ::1"
