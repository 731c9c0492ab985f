"""What the boxes of a lab know and tell while nothing has failed.

Owns: OSPF's edges, the prefixes told by OSPF and by whom, what each box knows without a protocol.
Indexed for `forwarding`, which adds failures.

Must never: know of a failure.

Example::

    known = without_protocol(lab, lab.box("r1"))
    assert IPv4Address("10.255.0.1") in known.local
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from itertools import permutations

from loopbox.lab.records import End, Lab, LabBox, Link, StaticRoute
from loopbox.lab.wiring import ospf_interface
from loopbox.rules.routing import why_not_neighbours

Key = tuple[int, int]
"""(prefix length, leading bits as a number)."""
Told = dict[Key, list[tuple[str, int, str | None]]]
"""Prefix to who tells it: (box, cost to add, link it stands and falls with)."""


@dataclass(slots=True)
class Known:
    """What a box knows without any protocol."""

    local: set[IPv4Address]
    connected: dict[Key, list[tuple[Link, End]]]
    static: dict[Key, list[StaticRoute]]


def key_of(network: IPv4Network) -> Key:
    """The index of a network."""
    return network.prefixlen, int(network.network_address) >> (32 - network.prefixlen)


def network_of(key: Key) -> IPv4Network:
    """The network of an index."""
    length, bits = key
    found = ip_network((bits << (32 - length), length))
    assert isinstance(found, IPv4Network)
    return found


def ospf_edges(
    lab: Lab, node: Mapping[str, int]
) -> tuple[list[tuple[int, int, int]], dict[str, list[int]]]:
    """(from, to, cost) of each adjacency, and link or box to the numbers of its edges."""
    edges_of: dict[str, list[int]] = {}
    edges: list[tuple[int, int, int]] = []
    for link in lab.links:
        speakers = [
            (end, told)
            for end in link.ends
            if (told := ospf_interface(lab, link, lab.box(end.box))) is not None
        ]
        for (near, here), (far, there) in permutations(speakers, 2):
            if why_not_neighbours(here, there) is None:
                for name in (link.name, near.box, far.box):
                    edges_of.setdefault(name, []).append(len(edges))
                edges.append((node[near.box], node[far.box], near.cost))
    return edges, edges_of


def told_by_ospf(lab: Lab) -> Told:
    """Every prefix that OSPF may tell: loopbacks and the subnets of links."""
    told: Told = {}
    for box in lab.boxes:
        if box.ospf is None:
            continue
        for item in [*box.loopback, *(entry.address for entry in box.anycast)]:
            if isinstance(item, IPv4Interface):
                told.setdefault(key_of(item.network), []).append((box.name, 0, None))
        for link in lab.links_of(box.name):
            if lab.ospf_area(link, box) is None or link.unnumbered:
                continue
            end = link.end(box.name)
            for item in end.addresses:
                if isinstance(item, IPv4Interface):
                    told.setdefault(key_of(item.network), []).append(
                        (box.name, end.cost, link.name)
                    )
    return told


def without_protocol(lab: Lab, box: LabBox) -> Known:
    """What a box has on its interfaces and in its static routes."""
    known = Known(set(), {}, {})
    on_lo = [*box.loopback, *box.virtual, *(item.address for item in box.anycast)]
    known.local.update(item.ip for item in on_lo if isinstance(item.ip, IPv4Address))
    for link in lab.links_of(box.name):
        end = link.end(box.name)
        for item in end.addresses:
            if isinstance(item, IPv4Interface):
                known.local.add(item.ip)
                known.connected.setdefault(key_of(item.network), []).append((link, end))
    for route in box.static:
        if isinstance(route.to, IPv4Network):
            known.static.setdefault(key_of(route.to), []).append(route)
    return known


def prefix_lengths(lab: Lab, told: Told, known: Iterable[Known]) -> list[int]:
    """Every prefix length in use, the longest first."""
    lengths = {length for length, _ in told}
    for item in known:
        lengths |= {length for length, _ in item.connected}
        lengths |= {length for length, _ in item.static}
    for box in lab.boxes:
        if box.bgp is not None:
            lengths |= {item.prefixlen for item in box.bgp.advertise if item.version == 4}
    return sorted(lengths, reverse=True)


def loopbacks(lab: Lab) -> Mapping[str, tuple[IPv4Address, ...]]:
    """Box to its IPv4 loopback addresses, those shared with others included."""
    return {
        box.name: tuple(
            item.ip
            for item in [*box.loopback, *(entry.address for entry in box.anycast)]
            if isinstance(item, IPv4Interface)
        )
        for box in lab.boxes
    }
