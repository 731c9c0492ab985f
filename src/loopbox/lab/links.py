"""What must be asked of the kernel to wire a lab, box by box; and to cut and mend a link.

Owns: which netlink requests go to which namespace, in which order, with which interface indexes.
Two passes: `wire_requests` in every place (and in the fabric, where the bridges are), then
`address_requests` in every box. Both fit one round trip per place.

Must never: enter a namespace or send anything (the runner does, with a RouteSocket).

Example::

    for place, requests in wire_requests(lab, namespaces={"r1": 7, "r2": 8}).items(): ...
"""

from __future__ import annotations

from collections.abc import Mapping

from loopbox.kernel.links import FIRST_INDEX, add_bridge, add_veth, set_link
from loopbox.kernel.netlink import LOOPBACK_INDEX, Request, add_address, add_route
from loopbox.lab.records import Interface, Lab, Link

FABRIC = ""
"""The place of bridges: a namespace of the lab that is no box."""


def index_of(lab: Lab, link: Link, box: str) -> int:
    """Index of the device that `link` is in `box`."""
    return FIRST_INDEX + lab.links_of(box).index(link)


def needs_fabric(lab: Lab) -> bool:
    """Whether a namespace for bridges is needed."""
    return any(link.is_bridge for link in lab.links)


def wire_requests(lab: Lab, *, namespaces: Mapping[str, int]) -> dict[str, list[Request]]:
    """Place (a box's name, or FABRIC) to what makes its links; far ends are down as yet.

    `namespaces`: descriptor of each box's network namespace, open until the requests were sent.
    """
    places: dict[str, list[Request]] = {}
    positions = {
        (box.name, link.name): FIRST_INDEX + position
        for box in lab.boxes
        for position, link in enumerate(lab.links_of(box.name))
    }
    fabric_index = FIRST_INDEX
    for link in lab.links:
        if link.is_bridge:
            fabric = places.setdefault(FABRIC, [])
            bridge = fabric_index
            # Devices of the fabric are named by number: two bridges may share long names.
            fabric.append(add_bridge(f"br{bridge}", index=bridge, mtu=link.mtu))
            for end in link.ends:
                fabric_index += 1
                fabric.append(
                    add_veth(
                        f"port{fabric_index}",
                        index=fabric_index,
                        peer=end.interface,
                        peer_index=positions[end.box, link.name],
                        peer_namespace=namespaces[end.box],
                        mtu=link.mtu,
                        master=bridge,
                    )
                )
            fabric_index += 1
        else:
            near, far = link.ends
            places.setdefault(near.box, []).append(
                add_veth(
                    near.interface,
                    index=positions[near.box, link.name],
                    peer=far.interface,
                    peer_index=positions[far.box, link.name],
                    peer_namespace=namespaces[far.box],
                    mtu=link.mtu,
                )
            )
    return places


def address_requests(lab: Lab, box: str) -> list[Request]:
    """Addresses of lo first, then links up with theirs, then routes of a box that is no router.

    A router's static routes are its staticd's. Everything is there before a daemon starts.
    """
    record = lab.box(box)
    on_lo: list[Interface] = [*record.loopback, *record.virtual]
    on_lo += [item.address for item in record.anycast if item.check is None]
    requests = [add_address(LOOPBACK_INDEX, item) for item in on_lo]
    for index, (_link, end) in enumerate(lab.ends_of(box), FIRST_INDEX):
        requests += [add_address(index, item) for item in end.addresses]
        requests.append(set_link(index, up=True))
    if record.static and not record.is_router:
        for link in lab.links_of(box):
            requests += route_requests(lab, box, link)
    return requests


def route_requests(lab: Lab, box: str, link: Link) -> list[Request]:
    """Static routes of a plain box that leave by `link`; the kernel drops them when it is cut."""
    interface = link.end(box).interface
    index = index_of(lab, link, box)
    requests = []
    for position, route in enumerate(lab.box(box).static):
        for rank, hop in enumerate(route.via):
            if hop.interface == interface:
                # A kernel route has one next hop here; the others stand by with a worse metric.
                metric = 100 + position * 16 + rank
                requests.append(
                    add_route(route.to, device=index, gateway=hop.address, metric=metric)
                )  # fmt: skip
    return requests


def cut_requests(lab: Lab, link: Link, box: str) -> list[Request]:
    """What takes `link` down in `box`. Send it to every end: one alone is noticed late elsewhere
    (the kernel tells a lost carrier up to a second later).
    """
    return [set_link(index_of(lab, link, box), up=False)]


def mend_requests(lab: Lab, link: Link, box: str) -> list[Request]:
    """What brings `link` back in `box`, with the routes that went with it."""
    up = set_link(index_of(lab, link, box), up=True)
    return [up] if lab.box(box).is_router else [up, *route_requests(lab, box, link)]
