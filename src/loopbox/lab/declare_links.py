"""What a `[[link]]` table declares, before addresses are worked out.

Owns: which keys a link has, their limits and defaults.

Must never: look at a second link (`wiring` does), invent an address (`addressing` does).

Example::

    drafts = [declare_link(table) for table in root.array("link")]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Interface

from loopbox.lab.addressing import IFNAMSIZ, TAKEN_NAMES
from loopbox.lab.declare import LABEL, read_area, refuse_unusable
from loopbox.lab.records import Interface, Network
from loopbox.lab.tables import Table, quoted, shown

LINK_KEYS = (
    "ends",
    "name",
    "interfaces",
    "addresses",
    "subnet",
    "cost",
    "mtu",
    "area",
    "ospf",
    "unnumbered",
    "loss",
    "delay",
    "rate",
)
MTU_6 = 1280
"""The least that a link with IPv6 carries (RFC 8200, section 5)."""
_MOST_RATE = 10**12
_DEVICE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{IFNAMSIZ - 1}}}")
RATE = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)?bit", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True, slots=True)
class LinkDraft:
    """A link as written; `addresses[i]` belongs to `ends[i]`."""

    table: Table
    ends: tuple[str, ...]
    name: str | None
    interfaces: tuple[str, ...]
    """Names of the devices at the ends; empty: worked out."""
    addresses: tuple[tuple[Interface, ...], ...] | None
    subnets: tuple[Network, ...]
    costs: tuple[int, ...]
    mtu: int
    area: str | None
    ospf: bool | None
    unnumbered: bool
    loss: float
    delay: float
    rate: int


def declare_link(table: Table) -> LinkDraft:
    """Understand one `[[link]]`; the ends' existence is checked by `resolve`."""
    table.known(LINK_KEYS, what="a link")
    ends = table.names("ends", example="r1")
    if len(ends) < 2:
        raise table.error(
            "a link needs at least two ends", hint='write ends = ["r1", "r2"]', at=("ends",)
        )
    for end in ends:
        if ends.count(end) > 1:
            raise table.error(
                f"box `{end}` is on both ends of a link",
                hint="a link joins different boxes",
                at=("ends",),
            )
    name = table.text("name", example="core")
    if name is not None and not LABEL.fullmatch(name):
        raise table.error(
            f"{shown(name)} is not a link name", hint="use a-z, 0-9 and -", at=("name",)
        )
    unnumbered = table.flag("unnumbered")
    if unnumbered and ("addresses" in table or "subnet" in table or len(ends) > 2):
        raise table.error(
            "an unnumbered link has two ends and no addresses of its own",
            hint="take `unnumbered` or the addresses out",
            at=("unnumbered",),
        )
    return LinkDraft(
        table,
        ends,
        name,
        _interfaces(table, ends),
        _link_addresses(table, ends),
        _subnets(table),
        _costs(table, ends),
        int(table.number("mtu", low=576, high=65521, default=1500)),
        read_area(table),
        table.flag("ospf") if "ospf" in table else None,
        unnumbered,
        table.number("loss", low=0, high=100, default=0, whole=False),
        table.number("delay", low=0, high=60000, default=0, whole=False),
        _rate(table),
    )


def _interfaces(table: Table, ends: tuple[str, ...]) -> tuple[str, ...]:
    names = table.names("interfaces", example="eth1")
    if "interfaces" in table and len(names) != len(ends):
        raise table.error(
            f"`interfaces` must have one name for each of the {len(ends)} ends",
            hint='write interfaces = ["eth1", "eth2"]',
            at=("interfaces",),
        )
    for name in names:
        if not _DEVICE.fullmatch(name) or name in TAKEN_NAMES:
            raise table.error(
                f"{shown(name)} is no name for a device",
                hint=f"use at most {IFNAMSIZ} letters, digits, dots, hyphens; not lo, all, default",
                at=("interfaces",),
            )
    return names


def _rate(table: Table) -> int:
    """Bits per second; 0 where none is written."""
    text = table.text("rate", example="10mbit")
    if text is None:
        return 0
    matched = RATE.fullmatch(text)
    rate = int(float(matched[1]) * _SCALE[(matched[2] or "").lower()]) if matched else 0
    if not 1000 <= rate <= _MOST_RATE:
        why = "" if matched is None else ": from 1kbit to 1000gbit"
        raise table.error(
            f"{shown(text)} is not a rate{why}",
            hint=f"write rate = {quoted('10mbit')}",
            at=("rate",),
        )
    return rate


def _subnets(table: Table) -> tuple[Network, ...]:
    found = tuple(
        table.network(item, key="subnet") for item in table.items("subnet", example="10.0.12.0/31")
    )
    for item in found:
        refuse_unusable(table, "subnet", item)
    versions = [item.version for item in found]
    if len(set(versions)) < len(versions):
        raise table.error(
            "a link has at most one subnet of IPv4 and one of IPv6",
            hint='write subnet = ["10.0.12.0/31", "2001:db8:12::/127"]',
            at=("subnet",),
        )
    return found


def _costs(table: Table, ends: tuple[str, ...]) -> tuple[int, ...]:
    value = table.data.get("cost", 10)
    values = value if isinstance(value, list) else [value] * len(ends)
    if len(values) != len(ends) or not all(
        isinstance(item, int) and not isinstance(item, bool) and 1 <= item <= 65535
        for item in values
    ):
        raise table.error(
            f"`cost` must be a number from 1 to 65535, or one for each end, not {shown(value)}",
            hint="write cost = 10",
            at=("cost",),
        )
    return tuple(values)


def _link_addresses(
    table: Table, ends: tuple[str, ...]
) -> tuple[tuple[Interface, ...], ...] | None:
    value = table.data.get("addresses")
    if value is None:
        return None
    if isinstance(value, dict):
        unknown = [key for key in value if key not in ends]
        if unknown:
            raise table.error(
                f"`addresses` names `{unknown[0]}`, which is no end of this link",
                hint=f"the ends are {', '.join(ends)}",
                at=("addresses",),
            )
        if missing := [end for end in ends if end not in value]:
            raise table.error(
                f"`addresses` has none for end `{missing[0]}`",
                hint=f"write {missing[0]} = [] there if it shall have none",
                at=("addresses",),
            )
        value = [value[end] for end in ends]
    if not isinstance(value, list) or len(value) != len(ends):
        raise table.error(
            f"`addresses` must have one entry for each of the {len(ends)} ends",
            hint='write addresses = ["10.0.12.1/30", "10.0.12.2/30"]',
            at=("addresses",),
        )
    found = []
    for entry in value:
        items = tuple(
            table.interface(item, key="addresses")
            for item in (entry if isinstance(entry, list) else [entry])
        )
        for item in items:
            refuse_unusable(table, "addresses", item)
            if _is_edge_of_subnet(item):
                raise table.error(
                    f"`{item}` is the network or broadcast address of its subnet",
                    hint="use an address inside, or a /31",
                    at=("addresses",),
                )
        found.append(items)
    return tuple(found)


def _is_edge_of_subnet(item: Interface) -> bool:
    if not isinstance(item, IPv4Interface) or item.network.prefixlen > 30:
        return False
    return item.ip in (item.network.network_address, item.network.broadcast_address)
