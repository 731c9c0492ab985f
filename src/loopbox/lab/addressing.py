"""Addresses and names of links: given by hand, or drawn from pools that collide with nothing.

Owns: automatic /31 and /127 blocks (a larger subnet for bridges), automatic loopbacks, device
names, and the search for duplicate addresses and overlapping prefixes.

Must never: depend on anything but the file: the same file gives the same addresses.

Example::

    assert interface_names(["r1-r2"], peers=["r2"]) == ["r2"]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Network,
    IPv6Network,
    ip_interface,
    ip_network,
)

from loopbox.errors import ConfigError
from loopbox.lab.records import Interface, Network
from loopbox.lab.tables import Table

LINKS_4 = IPv4Network("10.254.0.0/16")
LINKS_6 = IPv6Network("fd00:254::/48")
LOOPBACKS_4 = IPv4Network("10.255.0.0/16")
LOOPBACKS_6 = IPv6Network("fd00:255::/48")
IFNAMSIZ = 15
TAKEN_NAMES = frozenset({"lo", "all", "default"})


class Pool:
    """Blocks of one network, in order, leaving out what is written in the file."""

    def __init__(self, whole: Network, *, taken: Iterable[Network]) -> None:
        self.version: int = whole.version
        self._whole = whole
        self._next = int(whole.network_address)
        self._taken = sorted(
            (int(item.network_address), int(item.broadcast_address))
            for item in taken
            if item.version == whole.version and item.overlaps(whole)
        )

    def draw(self, prefix: int) -> Network | None:
        """The next free block of this prefix length; None when the pool is used up."""
        bits = self._whole.max_prefixlen - prefix
        size = 1 << bits
        start = (self._next + size - 1) >> bits << bits
        for low, high in self._taken:
            if low < start + size and high >= start:
                start = ((high + 1) + size - 1) >> bits << bits
        if start + size - 1 > int(self._whole.broadcast_address):
            return None
        self._next = start + size
        return ip_network((start, prefix))


def subnet_prefix(version: int, ends: int) -> int:
    """Prefix length of an automatic subnet: /31 or /127 for two ends, else what they need."""
    if ends == 2:
        return 31 if version == 4 else 127
    if version == 6:
        return 64
    return 32 - (ends + 1).bit_length()


def number_ends(subnet: Network, ends: int) -> list[Interface] | None:
    """One address of `subnet` for each end, in order; None when it is too small."""
    point_to_point = subnet.prefixlen >= subnet.max_prefixlen - 1
    first = 0 if point_to_point else 1
    usable = subnet.num_addresses - (0 if point_to_point else 2)
    if usable < ends:
        return None
    base = int(subnet.network_address) + first
    kind = type(subnet.network_address)
    return [ip_interface(f"{kind(base + i)}/{subnet.prefixlen}") for i in range(ends)]


def interface_names(
    links: Sequence[str], *, peers: Sequence[str], taken: Iterable[str] = ()
) -> list[str]:
    """Device names in one box, one per link: the peer's name, the link's for a bridge (peer "").

    A second link to the same peer gets `-2`; what is too long is cut and marked with a hash.
    None of `taken` is given.
    """
    names: list[str] = []
    used = {*TAKEN_NAMES, *taken}
    counts: dict[str, int] = {}
    for link, peer in zip(links, peers, strict=True):
        base = peer or link
        name = _fitted(base)
        while name in used:
            counts[base] = counts.get(base, 1) + 1
            name = _fitted(f"{base}-{counts[base]}")
        used.add(name)
        names.append(name)
    return names


def _fitted(name: str) -> str:
    if len(name) <= IFNAMSIZ:
        return name
    digest = hashlib.blake2s(name.encode(), digest_size=2).hexdigest()
    return f"{name[: IFNAMSIZ - 5]}-{digest}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A prefix somebody uses, and where it was written."""

    network: Network
    what: str
    """As it stands in an error: "`10.0.0.1` of box `r1`"."""
    table: Table
    key: str
    group: str = ""
    """Claims of one group (the ends of a link, one anycast address) may be equal."""


def refuse_collisions(claims: Iterable[Claim]) -> None:
    """ConfigError for the first two claims that are equal or overlap, unless of one group."""
    order = sorted(
        claims,
        key=lambda claim: (
            claim.network.version,
            int(claim.network.network_address),
            claim.network.prefixlen,
        ),
    )
    open_claims: list[Claim] = []
    for claim in order:
        open_claims = [
            other
            for other in open_claims
            if other.network.version == claim.network.version
            and int(other.network.broadcast_address) >= int(claim.network.network_address)
        ]
        for other in open_claims:
            if not other.group or other.group != claim.group:
                raise _collision(other, claim)
        open_claims.append(claim)


def _collision(left: Claim, right: Claim) -> ConfigError:
    first, second = sorted((left, right), key=_line)
    if left.network == right.network and left.network.prefixlen == left.network.max_prefixlen:
        return second.table.error(
            f"duplicate address: {second.what} is also {first.what}",
            hint="give one of them another address, or write both as `anycast`",
            at=(second.key,),
        )
    return second.table.error(
        f"overlapping prefix: {second.what} overlaps {first.what}",
        hint="choose prefixes that share no address",
        at=(second.key,),
    )


def _line(claim: Claim) -> tuple[bool, int]:
    path = (*claim.table.path, claim.key)
    for length in range(len(path), 0, -1):
        if place := claim.table.places.get(path[:length]):
            return place[0] == claim.table.file, place[1]
    return False, 0
