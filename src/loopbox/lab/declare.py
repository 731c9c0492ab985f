"""What the tables of a lab file declare, before addresses and neighbours are worked out.

Owns: which keys a box, OSPF and BGP have, their limits and defaults (links: `declare_links`).

Must never: look at two boxes at once (`resolve` does), invent an address (`addressing` does).

Example::

    draft = declare_box("r1", table, timers=PROFILES["fast"])
    assert draft.box.ospf == Ospf("0", hello=0.2, dead=1)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_network,
)
from typing import Any

from loopbox.lab.records import (
    Address,
    Anycast,
    Bgp,
    Interface,
    LabBox,
    Network,
    Ospf,
    Service,
)
from loopbox.lab.tables import Table, shown
from loopbox.rules.routing import Timers, why_ineligible

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BGP_EXAMPLE = "bgp = { as = 65000 }"
_SERVICE_EXAMPLE = '[box.r1.services.web] with run = "python3 -m http.server 8000"'
BOX_KEYS = (
    "loopback",
    "anycast",
    "virtual",
    "arp",
    "ospf",
    "bgp",
    "bfd",
    "static",
    "gateway",
    "router_id",
    "services",
    "config",
)
OSPF_KEYS = ("area", "hello", "dead", "router_id", "passive")
BGP_KEYS = (
    "as",
    "peers",
    "source",
    "reflector",
    "advertise",
    "next_hop_self",
    "keepalive",
    "hold",
    "multihop",
    "router_id",
)
RESERVED_AS = {0: "RFC 7607", 23456: "RFC 6793", 65535: "RFC 7300", 4294967295: "RFC 7300"}


@dataclass(frozen=True, slots=True)
class PeerDraft:
    """A neighbour as written: a box, and how to reach it (None: as the box's default says)."""

    box: str
    sources: tuple[str, ...]
    multihop: int | None


@dataclass(frozen=True, slots=True)
class StaticDraft:
    """A static route as written; `via` may still be a box's name."""

    to: Network
    via: str | Address | None
    table: Table


@dataclass(frozen=True, slots=True)
class BoxDraft:
    """A box as written."""

    box: LabBox
    table: Table
    auto_loopback: bool = False
    explicit_id: IPv4Address | None = None
    peers: tuple[PeerDraft, ...] | None = None
    """None: worked out (full mesh or reflectors inside the AS, links to other ASes)."""
    sources: tuple[str, ...] = ()
    multihop: int | None = None
    advertise_loopback: bool = False
    statics: tuple[StaticDraft, ...] = ()


def declare_box(name: str, table: Table, *, timers: Timers) -> BoxDraft:
    """Understand `[box.NAME]`; ConfigError for anything that cannot be."""
    if not LABEL.fullmatch(name):
        raise table.error(
            f"{shown(name)} is not a box name",
            hint="use a-z, 0-9 and -, at most 63 characters, no dot",
        )
    table.known(BOX_KEYS, what=f"box `{name}`")
    ospf_table, bgp_table = table.child("ospf"), table.child("bgp", example=_BGP_EXAMPLE)
    loopback = table.items("loopback", example="10.255.0.1/32")
    auto = loopback == ["auto"]
    config = table.text("config", example="r1.conf")
    virtual = _interfaces(table, "virtual")
    own = () if auto else _interfaces(table, "loopback")
    for item in virtual:
        if item.ip in {one.ip for one in own}:
            raise table.error(
                f"duplicate address: `{item.ip}` of box `{name}` is `virtual` and `loopback`",
                hint="take it out of one of them",
                at=("virtual",),
            )
    box = LabBox(
        name,
        loopback=own,
        anycast=_anycast(table),
        virtual=virtual,
        quiet_arp=table.choice("arp", ("normal", "quiet"), default="quiet" if virtual else "normal")
        == "quiet",
        ospf=None if ospf_table is None else _ospf(ospf_table, timers),
        bfd=table.flag("bfd"),
        services=_services(table),
        config=None if config is None else table.file.parent / config,
    )
    explicit, written = _router_id(table, ospf_table, bgp_table)
    draft = BoxDraft(
        replace(box, router_id_written=written),
        table,
        auto_loopback=auto,
        explicit_id=explicit,
        statics=tuple(_statics(table)),
    )
    return draft if bgp_table is None else _with_bgp(draft, bgp_table, timers)


def _interfaces(table: Table, key: str) -> tuple[Interface, ...]:
    found = tuple(
        table.interface(value, key=key) for value in table.items(key, example="10.255.0.1/32")
    )
    for item in found:
        refuse_unusable(table, key, item)
    return found


def refuse_unusable(table: Table, key: str, item: Interface | Network) -> None:
    """ConfigError for what cannot be an address of a box: 127/8, ::1, multicast and their like."""
    address = item.ip if isinstance(item, IPv4Interface | IPv6Interface) else item.network_address
    if address.is_loopback:
        raise table.error(
            f"`{item}` is host loopback: every box has it already and no router may tell it",
            hint=f"give {key} an address that routers can forward, such as 10.255.0.1/32",
            at=(key,),
        )
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    for why, is_so in (
        ("multicast", address.is_multicast),
        ("no address of a device", _is_this_network(address)),
        ("the broadcast address", str(address) == "255.255.255.255"),
        ("an IPv4 address in IPv6's clothes", mapped is not None),
        ("bound to a zone", getattr(address, "scope_id", None) is not None),
    ):
        if is_so:
            raise table.error(
                f"`{item}` cannot be an address of a box: it is {why}",
                hint=f"give {key} a unicast address, such as 10.255.0.1/32 or 2001:db8::1/128",
                at=(key,),
            )


def _is_this_network(address: Address) -> bool:
    """0.0.0.0/8 (RFC 1122, section 3.2.1.3) and `::`."""
    return int(address) >> 24 == 0 if address.version == 4 else int(address) == 0


def _anycast(table: Table) -> tuple[Anycast, ...]:
    found = []
    for value in table.items("anycast", example="10.99.0.1/32"):
        entry: Mapping[str, Any] = value if isinstance(value, dict) else {"address": value}
        inner = Table(entry, (*table.path, "anycast"), table.places, table.file)
        inner.known(("address", "check", "every"), what="`anycast`")
        address = inner.interface(entry.get("address"), key="anycast")
        refuse_unusable(inner, "anycast", address)
        check = inner.text("check", example="curl -fs http://127.0.0.1/")
        every = inner.number("every", low=0.1, high=3600, default=1.0, whole=False)
        found.append(Anycast(address, check, every))
    return tuple(found)


def _services(table: Table) -> tuple[Service, ...]:
    found = []
    for name, inner in table.children("services", example=_SERVICE_EXAMPLE):
        inner.known(("run", "ready"), what=f"service `{name}`")
        run = inner.text("run", example="python3 -m http.server 8000")
        if run is None:
            raise inner.error(
                f"service `{name}` has no `run`", hint='write run = "the command line"'
            )
        ready = int(inner.number("ready", low=1, high=65535, default=8000)) * ("ready" in inner)
        found.append(Service(name, run, ready or None))
    return tuple(found)


def _ospf(table: Table, timers: Timers) -> Ospf:
    table.known(OSPF_KEYS, what="`ospf`")
    dead = table.number("dead", low=1, high=65535, default=timers.dead)
    default_hello = timers.hello if dead == timers.dead else max(1, int(dead) // 4)
    hello = table.number("hello", low=0.05, high=65535, default=default_hello, whole=False)
    if hello < 1 and dead != 1:
        raise table.error(
            f"`hello` below one second needs dead = 1, not {dead}",
            hint="write dead = 1, or a hello of whole seconds",
            at=("hello",),
        )
    if hello >= 1 and hello != int(hello):
        raise table.error(
            f"`hello` above one second must be whole, not {hello}",
            hint=f"write hello = {round(hello)}",
            at=("hello",),
        )
    if hello >= dead:
        raise table.error(
            f"`hello` ({hello}) must be shorter than `dead` ({dead})",
            hint="four hellos in a dead interval are usual",
            at=("hello",),
        )
    area = read_area(table) or "0"
    return Ospf(area, hello, dead, table.names("passive", example="r1-r2"))


def read_area(table: Table) -> str | None:
    """The key `area` as a decimal number, or None; "0.0.0.1" and 1 are the same area."""
    value = table.data.get("area")
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        number = int(IPv4Address(value)) if isinstance(value, str) and "." in value else int(value)
        return str(int(IPv4Address(number)))
    except ValueError:
        raise table.error(
            f"{shown(value)} is not an OSPF area", hint="write area = 0", at=("area",)
        ) from None


def _with_bgp(draft: BoxDraft, table: Table, timers: Timers) -> BoxDraft:
    table.known(BGP_KEYS, what="`bgp`")
    asn = table.data.get("as")
    if isinstance(asn, bool) or not isinstance(asn, int) or not 1 <= asn <= 4294967294:
        raise table.error(
            f"bad AS number {shown(asn)}" if "as" in table else "`bgp` has no AS number",
            hint="write as = 65000: a number from 1 to 4294967294, private ones start at 64512",
            at=("as",),
        )
    if asn in RESERVED_AS:
        raise table.error(
            f"bad AS number {asn}: reserved ({RESERVED_AS[asn]})",
            hint="write as = 65000",
            at=("as",),
        )
    advertise = table.items("advertise", example="loopback")
    networks = [table.network(item, key="advertise") for item in advertise if item != "loopback"]
    hold = int(table.number("hold", low=3, high=65535, default=timers.hold))
    keepalive = table.number(
        "keepalive", low=1, high=hold, default=min(timers.keepalive, hold // 3)
    )
    bgp = Bgp(
        asn,
        table.flag("reflector"),
        tuple(networks),
        table.flag("next_hop_self", default=True),
        int(keepalive),
        hold,
    )
    multihop = int(table.number("multihop", low=0, high=255, default=0)) or None
    return replace(
        draft,
        box=replace(draft.box, bgp=bgp),
        peers=None if "peers" not in table else tuple(_peers(table)),
        sources=_sources(table),
        multihop=multihop,
        advertise_loopback="loopback" in advertise,
    )


def _sources(table: Table) -> tuple[str, ...]:
    chosen = table.choice("source", ("loopback", "link", "both"), default="")
    return {"": (), "both": ("loopback", "link")}.get(chosen, (chosen,))


def _peers(table: Table) -> list[PeerDraft]:
    found = []
    for value in table.items("peers", example="r2"):
        if isinstance(value, str):
            found.append(PeerDraft(value, (), None))
            continue
        if not isinstance(value, dict):
            raise table.error(
                f"`peers` must hold names of boxes, not {shown(value)}",
                hint='write peers = ["r2", { box = "r3", source = "link" }]',
                at=("peers",),
            )
        inner = Table(value, (*table.path, "peers"), table.places, table.file)
        inner.known(("box", "source", "multihop"), what="a peer")
        box = inner.text("box", example="r2")
        if box is None:
            raise inner.error("a peer has no `box`", hint='write { box = "r2" }')
        multihop = int(inner.number("multihop", low=0, high=255, default=0)) or None
        found.append(PeerDraft(box, _sources(inner), multihop))
    return found


def _router_id(*tables: Table | None) -> tuple[IPv4Address | None, bool]:
    """(explicit ID, whether to write one); the first table that has `router_id` counts."""
    for table in tables:
        if table is None or "router_id" not in table:
            continue
        value = table.data["router_id"]
        if value == "auto":
            return None, False
        try:
            if not isinstance(value, str):
                raise ValueError
            address = IPv4Address(value)
        except ValueError:
            raise table.error(
                f"{shown(value)} is not a router ID",
                hint='write it like an IPv4 address ("10.255.0.1"), or "auto"',
                at=("router_id",),
            ) from None
        if why := why_ineligible(address):
            raise table.error(
                f"router ID {address} is not usable: {why}",
                hint="leave router_id out to take the highest loopback address",
                at=("router_id",),
            )
        return address, True
    return None, True


def _statics(table: Table) -> list[StaticDraft]:
    found = []
    if gateway := table.text("gateway", example="r1"):
        via = _via(gateway)
        version = 4 if isinstance(via, str) else via.version
        default = ip_network("0.0.0.0/0" if version == 4 else "::/0")
        found.append(StaticDraft(default, via, table))
    for value in table.items("static", example="10.1.0.0/24"):
        entry = value if isinstance(value, dict) else {}
        inner = Table(entry, (*table.path, "static"), table.places, table.file)
        inner.known(("to", "via"), what="a static route")
        if "to" not in inner:
            raise inner.error(
                "a static route needs `to`", hint='write { to = "10.1.0.0/24", via = "r2" }'
            )
        to = inner.network(entry["to"], key="static")
        written = inner.text("via", example="r2")
        found.append(StaticDraft(to, None if written is None else _via(written), inner))
    return found


def _via(text: str) -> str | Address:
    try:
        return ip_address(text)
    except ValueError:
        return text
