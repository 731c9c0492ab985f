"""From what a lab file declares to a `Lab` without open questions.

Owns: whether names exist and are unique, the join of boxes and links, router IDs and their
duplicates, next hops of static routes, warnings.

Must never: read files, parse tables (`declare` does), pick addresses (`addressing` does).

Example::

    lab = resolve(read_document(text, path=path))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface, ip_network
from itertools import combinations

from loopbox.lab import addressing
from loopbox.lab.declare import (
    LABEL,
    BoxDraft,
    StaticDraft,
    declare_box,
)
from loopbox.lab.declare_links import LinkDraft, declare_link
from loopbox.lab.records import (
    MAX_BOXES,
    MAX_LINKS,
    Lab,
    LabBox,
    Link,
    NextHop,
    StaticRoute,
)
from loopbox.lab.sessions import plan_sessions
from loopbox.lab.tables import Table, suggestion
from loopbox.lab.wiring import claims, ospf_interface, physical_addresses, wire, written_networks
from loopbox.rules.routing import (
    PROFILES,
    choose_router_id,
    outage,
    session_outcome,
    why_not_neighbours,
)

LAB_KEYS = ("name", "extends", "timers", "box", "link")
PROJECT_KEYS = ("forward", "names", "egress", "services", "branch", "tool")
"""Top-level keys that `settings` reads from the same file."""


def resolve(root: Table) -> Lab:
    """Work everything out; ConfigError names file, line and remedy of the first mistake."""
    root.known([*LAB_KEYS, *PROJECT_KEYS], what="a lab file")
    name = _lab_name(root)
    timers = PROFILES[root.choice("timers", PROFILES, default="fast")]
    _refuse_too_many(root)
    drafts = {
        box: declare_box(box, table, timers=timers)
        for box, table in root.children("box", example="[box.r1] on a line of its own")
    }
    link_drafts = [declare_link(table) for table in root.array("link")]
    for draft in link_drafts:
        _known_ends(draft, drafts)
    drafts = _with_loopbacks(drafts, link_drafts)
    links = wire(drafts, link_drafts)
    addressing.refuse_collisions(claims(drafts, link_drafts, links))
    boxes = {box: _identified(draft, links) for box, draft in drafts.items()}
    lab = Lab(name, root.file, timers, tuple(boxes.values()), links)
    _refuse_duplicate_ids(lab, drafts)
    _refuse_strange_passives(lab, drafts)
    lab = replace(lab, boxes=tuple(_with_statics(lab, drafts[box.name]) for box in lab.boxes))
    lab = replace(lab, sessions=plan_sessions(lab, drafts))
    return replace(lab, warnings=tuple(_warnings(lab)))


def _lab_name(root: Table) -> str:
    stem = root.file.stem
    fallback = root.file.resolve().parent.name if stem == "loopbox" else stem
    name = root.text("name", example="triangle")
    if name is None:
        return fallback.lower().replace("_", "-").replace(".", "-") or "lab"
    if not all(LABEL.fullmatch(part) for part in name.split(".")):
        raise root.error(
            f"`{name}` is not a lab name", hint="use a-z, 0-9, - and dots", at=("name",)
        )
    return name


def _refuse_too_many(root: Table) -> None:
    boxes = root.data.get("box")
    if isinstance(boxes, dict) and len(boxes) > MAX_BOXES:
        last = list(boxes)[MAX_BOXES]
        raise root.error(
            f"{len(boxes)} boxes are too many: a lab holds at most {MAX_BOXES}",
            hint="split the lab, or export it to containerlab and spread it over a cluster",
            at=("box", last),
        )
    links = root.data.get("link")
    if isinstance(links, list) and len(links) > MAX_LINKS:
        raise root.error(
            f"{len(links)} links are too many: a lab holds at most {MAX_LINKS}",
            hint="split the lab, or join boxes by links of many ends",
            at=("link", MAX_LINKS),
        )


def _known_ends(draft: LinkDraft, boxes: Mapping[str, BoxDraft]) -> None:
    for end in draft.ends:
        if end not in boxes:
            raise draft.table.error(
                f"a link ends in box `{end}`, which does not exist",
                hint=f"{suggestion(end, boxes, 'boxes')} or add [box.{end}]",
                at=("ends",),
            )


def _with_loopbacks(
    drafts: Mapping[str, BoxDraft], links: Sequence[LinkDraft]
) -> dict[str, BoxDraft]:
    """Fill in `loopback = "auto"`, and turn `advertise = ["loopback"]` into networks."""
    taken = list(written_networks(drafts, links))
    # The first address of a pool is left free: 10.255.0.0 reads like a network to people.
    v4 = addressing.Pool(addressing.LOOPBACKS_4, taken=[*taken, ip_network("10.255.0.0/32")])
    v6 = addressing.Pool(addressing.LOOPBACKS_6, taken=[*taken, ip_network("fd00:255::/128")])
    found = {}
    for name, draft in drafts.items():
        box = draft.box
        if draft.auto_loopback:
            drawn = (v4.draw(32), v6.draw(128))
            box = replace(box, loopback=tuple(ip_interface(str(net)) for net in drawn if net))
        if draft.advertise_loopback and box.bgp is not None:
            addresses = [*box.loopback, *(item.address for item in box.anycast)]
            own = tuple(ip_network(f"{item.ip}/{item.max_prefixlen}") for item in addresses)
            box = replace(box, bgp=replace(box.bgp, advertise=(*own, *box.bgp.advertise)))
        found[name] = replace(draft, box=box)
    return found


def _identified(draft: BoxDraft, links: Sequence[Link]) -> LabBox:
    """The box with its router ID by FRR's and Cisco's rule, and the reason."""
    box = draft.box
    if box.ospf is None and box.bgp is None:
        return box
    choice = choose_router_id(
        "frr",
        loopbacks=[item.ip for item in box.loopback if isinstance(item.ip, IPv4Address)],
        physical=physical_addresses(box.name, links),
        explicit=draft.explicit_id,
    )
    if choice.value is None:
        raise draft.table.error(
            f"box `{box.name}` has no address that could be its router ID",
            hint='write loopback = ["10.255.0.1/32"], or router_id = "10.255.0.1"',
        )
    return replace(box, router_id=choice)


def _refuse_duplicate_ids(lab: Lab, drafts: Mapping[str, BoxDraft]) -> None:
    seen: dict[IPv4Address, str] = {}
    for box in lab.boxes:
        if box.router_id is None or box.router_id.value is None:
            continue
        other = seen.setdefault(box.router_id.value, box.name)
        if other != box.name:
            raise drafts[box.name].table.error(
                f"duplicate router ID {box.router_id.value}: boxes `{other}` and `{box.name}` "
                f"({box.router_id.reason})",
                hint="give each router its own loopback address, or write router_id",
                at=("router_id",),
            )


def _refuse_strange_passives(lab: Lab, drafts: Mapping[str, BoxDraft]) -> None:
    for box in lab.boxes:
        own = {link.name for link in lab.links_of(box.name)}
        for name in () if box.ospf is None else box.ospf.passive:
            if name not in own:
                raise drafts[box.name].table.error(
                    f"`passive` names `{name}`, which is no link of box `{box.name}`",
                    hint=suggestion(name, sorted(own), "its links"),
                    at=("ospf", "passive"),
                )


def _with_statics(lab: Lab, draft: BoxDraft) -> LabBox:
    box = lab.box(draft.box.name)
    routes = tuple(_static(lab, box, item) for item in draft.statics)
    return replace(box, static=routes)


def _static(lab: Lab, box: LabBox, draft: StaticDraft) -> StaticRoute:
    if draft.via is None:
        return StaticRoute(draft.to, ())
    hops = []
    for link in lab.links_of(box.name):
        mine = link.end(box.name)
        for end in link.ends:
            if end is mine:
                continue
            address = end.address(draft.to.version)
            if end.box == draft.via and link.unnumbered:
                hops.append(NextHop(None, mine.interface))
            elif draft.via in (end.box, address) and address is not None:
                hops.append(NextHop(address, mine.interface))
            elif not isinstance(draft.via, str) and any(
                draft.via in item.network for item in mine.addresses
            ) and not any(hop.address == draft.via for hop in hops):  # fmt: skip
                hops.append(NextHop(draft.via, mine.interface))
    if not hops:
        raise draft.table.error(
            f"the route to {draft.to} leads via `{draft.via}`, to which box `{box.name}` "
            "has no link",
            hint="`via` is a box on a shared link, or an address in its subnet",
            at=("via",) if "to" in draft.table else ("gateway",),
        )
    return StaticRoute(draft.to, tuple(hops), draft.via if isinstance(draft.via, str) else None)


def _warnings(lab: Lab) -> Iterator[str]:
    for box in lab.boxes:
        if box.config is not None and box.ospf is None and box.bgp is None:
            yield (
                f"box `{box.name}` runs its own `{box.config.name}`, which is not understood here: "
                "say `ospf` and `bgp` of it too, or neither `up` nor `predict` can count on it"
            )
        elif box.bgp is not None and not lab.sessions_of(box.name):
            yield f"box `{box.name}` has BGP and no session: name its `peers`, or add a link"
    for link in lab.links:
        speakers = [
            (end.box, told)
            for end in link.ends
            if (told := ospf_interface(lab, link, lab.box(end.box))) is not None
        ]
        for (left, told_left), (right, told_right) in combinations(speakers, 2):
            if why := why_not_neighbours(told_left, told_right):
                yield f"link `{link.name}`: {left} and {right} will not be neighbours: {why}"
    for session in lab.sessions:
        for own, peer in session.ends():
            bgp = lab.box(own.box).bgp
            advertised = {item.network_address for item in bgp.advertise} if bgp else set()
            if session.external and session.link is None and own.address in advertised:
                yield (
                    f"session {session.name}: {own.box} advertises {own.address} over a session "
                    f"from that address: {peer.box} will not use a route that is its own next hop"
                )
        one, two = lab.box(session.left.box), lab.box(session.right.box)
        if session.link is not None or not (one.ospf and two.ospf and one.bgp and two.bgp):
            continue
        dead = max(one.ospf.dead, two.ospf.dead)
        hold = min(one.bgp.hold, two.bgp.hold)
        outcome = session_outcome(
            path_remains=True,
            path_hit=True,
            outage=outage("silent", timers=lab.timers, dead=dead, bfd=one.bfd and two.bfd),
            hold=hold,
            keepalive=max(one.bgp.keepalive, two.bgp.keepalive),
        )
        if outcome == "flaps":
            yield (
                f"session {session.name}: OSPF notices a silent failure only after {dead:g} s, "
                f"too late for a hold time of {hold} s: it will flap"
            )
