"""Links with everything on them: names, devices, addresses, what OSPF says there.

Owns: the join of `[[link]]` tables and boxes into `Link` records, and the list of all prefixes a
lab uses.

Must never: look at routing beyond one link.

Example::

    links = wire(drafts, [declare_link(table) for table in root.array("link")])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, ip_interface

from loopbox.lab import addressing
from loopbox.lab.declare import BoxDraft
from loopbox.lab.declare_links import MTU_6, LinkDraft
from loopbox.lab.records import End, Interface, Lab, LabBox, Link, Network
from loopbox.rules.routing import OspfInterface


def written_networks(
    drafts: Mapping[str, BoxDraft], links: Sequence[LinkDraft]
) -> Iterator[Network]:
    """Every network the file spells out, for the pools to keep clear of."""
    for draft in drafts.values():
        yield from (item.network for item in draft.box.loopback)
        yield from (item.address.network for item in draft.box.anycast)
        yield from (item.network for item in draft.box.virtual)
    for link in links:
        yield from link.subnets
        for items in link.addresses or ():
            yield from (item.network for item in items)


def wire(drafts: Mapping[str, BoxDraft], links: Sequence[LinkDraft]) -> tuple[Link, ...]:
    """Every link, in the order of the file."""
    names = _link_names(drafts, links)
    devices = _device_names(drafts, links, names)
    taken = list(written_networks(drafts, links))
    pools = (
        addressing.Pool(addressing.LINKS_4, taken=taken),
        addressing.Pool(addressing.LINKS_6, taken=taken),
    )
    found = []
    for index, (draft, name) in enumerate(zip(links, names, strict=True)):
        addresses = _addresses(draft, drafts, pools)
        ends = tuple(
            End(box, devices[box, index], addresses[position], draft.costs[position])
            for position, box in enumerate(draft.ends)
        )
        systems = {bgp.asn for box in draft.ends if (bgp := drafts[box].box.bgp) is not None}
        found.append(
            Link(
                name,
                ends,
                draft.mtu,
                draft.area,
                len(systems) < 2 if draft.ospf is None else draft.ospf,
                draft.unnumbered,
                draft.loss,
                draft.delay,
                draft.rate,
            )
        )
    return tuple(found)


def _link_names(drafts: Mapping[str, BoxDraft], links: Sequence[LinkDraft]) -> list[str]:
    """Names given, else the ends joined by -; a second link of the same ends gets `-2`."""
    used: set[str] = set()
    counts: dict[str, int] = {}
    for draft in links:
        if draft.name is None:
            continue
        if draft.name in used or draft.name in drafts:
            raise draft.table.error(
                f"the name `{draft.name}` is already taken",
                hint="links and boxes share one set of names",
                at=("name",),
            )
        used.add(draft.name)
    names = []
    for draft in links:
        name = draft.name
        if name is None:
            base = "-".join(draft.ends) if len(draft.ends) <= 3 else f"lan-{draft.ends[0]}"
            name = base
            while name in used or name in drafts:
                counts[base] = counts.get(base, 1) + 1
                name = f"{base}-{counts[base]}"
            used.add(name)
        names.append(name)
    return names


def _device_names(
    drafts: Mapping[str, BoxDraft], links: Sequence[LinkDraft], names: Sequence[str]
) -> dict[tuple[str, int], str]:
    """(box, index of the link) to the device's name in that box."""
    by_box: dict[str, list[int]] = {box: [] for box in drafts}
    for index, draft in enumerate(links):
        for box in draft.ends:
            by_box[box].append(index)
    found = {}
    for box, indexes in by_box.items():
        written = _written_devices(box, [links[i] for i in indexes])
        open_ones = [i for i in indexes if not links[i].interfaces]
        peers = [
            next(end for end in links[i].ends if end != box) if len(links[i].ends) == 2 else ""
            for i in open_ones
        ]
        devices = iter(
            addressing.interface_names([names[i] for i in open_ones], peers=peers, taken=written)
        )
        given = iter(written)
        found.update({(box, i): next(given if links[i].interfaces else devices) for i in indexes})
    return found


def _written_devices(box: str, links: Sequence[LinkDraft]) -> list[str]:
    """The `interfaces` of one box, in the order of its links that name some."""
    found: list[str] = []
    for draft in links:
        if not draft.interfaces:
            continue
        name = draft.interfaces[draft.ends.index(box)]
        if name in found:
            raise draft.table.error(
                f"box `{box}` has two links on `{name}`",
                hint="give each its own name in `interfaces`",
                at=("interfaces",),
            )
        found.append(name)
    return found


def _addresses(
    draft: LinkDraft,
    drafts: Mapping[str, BoxDraft],
    pools: tuple[addressing.Pool, addressing.Pool],
) -> list[tuple[Interface, ...]]:
    """Addresses of each end of one link."""
    _one_subnet(draft)
    if draft.addresses is not None:
        return list(draft.addresses)
    if draft.unnumbered:
        return [_borrowed(drafts[box]) for box in draft.ends]
    subnets = draft.subnets
    if not subnets:
        # A link too narrow for IPv6 has IPv4 alone: the kernel would take IPv6 off it.
        used = pools if draft.mtu >= MTU_6 else pools[:1]
        drawn = [
            pool.draw(addressing.subnet_prefix(pool.version, len(draft.ends))) for pool in used
        ]
        if None in drawn:
            raise draft.table.error(
                f"the pool of link addresses ({addressing.LINKS_4}) is used up",
                hint="write `addresses` or `subnet` for the larger links",
                at=("ends",),
            )
        subnets = tuple(net for net in drawn if net is not None)
    columns = []
    for subnet in subnets:
        column = addressing.number_ends(subnet, len(draft.ends))
        if column is None:
            raise draft.table.error(
                f"subnet {subnet} has no room for {len(draft.ends)} ends",
                hint="take a shorter prefix length",
                at=("subnet",),
            )
        columns.append(column)
    return [tuple(row) for row in zip(*columns, strict=True)]


def _borrowed(draft: BoxDraft) -> tuple[Interface, ...]:
    """The loopback address an unnumbered end lends from its box (RFC 2328 section 8.2).

    A router of BGP alone needs none: it finds its neighbour by IPv6 link-local address.
    """
    mine = [item for item in draft.box.loopback if isinstance(item, IPv4Interface)]
    if draft.box.ospf is None:
        return ()
    if not mine:
        raise draft.table.error(
            f"box `{draft.box.name}` has an unnumbered link and OSPF, but no IPv4 loopback to lend",
            hint='write loopback = ["10.255.0.1/32"] or loopback = "auto"',
        )
    return (ip_interface(f"{mine[0].ip}/32"),)


def _one_subnet(draft: LinkDraft) -> None:
    written = [*draft.subnets, *(item for row in draft.addresses or () for item in row)]
    if draft.mtu < MTU_6 and any(item.version == 6 for item in written):
        raise draft.table.error(
            f"`mtu` {draft.mtu} is too small for IPv6, which needs {MTU_6}",
            hint=f"write mtu = {MTU_6}, or take the IPv6 addresses out",
            at=("mtu",),
        )
    for version in (4, 6):
        nets = {
            item.network for row in draft.addresses or () for item in row if item.version == version
        }
        if len(nets) > 1:
            left, right = sorted(map(str, nets))[:2]
            raise draft.table.error(
                f"the ends of a link are in different subnets: {left} and {right}",
                hint="give all ends of a link the same subnet",
                at=("addresses",),
            )


def claims(
    drafts: Mapping[str, BoxDraft], link_drafts: Sequence[LinkDraft], links: Sequence[Link]
) -> Iterator[addressing.Claim]:
    """Every prefix in use, for the search for collisions."""
    for name, draft in drafts.items():
        for item in draft.box.loopback:
            yield addressing.Claim(
                item.network, f"`{item}` on lo of box `{name}`", draft.table, "loopback"
            )
        for entry in draft.box.anycast:
            yield addressing.Claim(
                entry.address.network,
                f"anycast `{entry.address}` of box `{name}`",
                draft.table,
                "anycast",
                group=f"anycast {entry.address.network}",
            )
    for link_draft, link in zip(link_drafts, links, strict=True):
        if link.unnumbered:
            continue
        key = "addresses" if link_draft.addresses is not None else "subnet"
        seen: set[Interface] = set()
        for end in link.ends:
            for item in end.addresses:
                if item in seen:
                    raise link_draft.table.error(
                        f"duplicate address: `{item.ip}` is on two ends of link `{link.name}`",
                        hint="give each end its own address",
                        at=(key,),
                    )
                seen.add(item)
        for network in {item.network for item in seen}:
            yield addressing.Claim(
                network, f"`{network}` of link `{link.name}`", link_draft.table, key
            )


def physical_addresses(box: str, links: Sequence[Link]) -> list[IPv4Address]:
    """IPv4 addresses of `box` on its links."""
    return [
        item.ip
        for link in links
        for end in link.ends
        if end.box == box
        for item in end.addresses
        if isinstance(item, IPv4Interface)
    ]


def ospf_interface(lab: Lab, link: Link, box: LabBox) -> OspfInterface | None:
    """What `box` tells on `link` in its hellos; None when OSPF is not there or passive."""
    area = lab.ospf_area(link, box)
    if area is None or box.ospf is None or link.name in box.ospf.passive:
        return None
    return OspfInterface(area, box.ospf.hello, box.ospf.dead, link.mtu)
