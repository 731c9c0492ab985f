"""Which BGP sessions a lab has: written by hand, full mesh, or reflectors and clients.

Owns: the neighbours that follow from `peers`, `source`, `reflector` and the links.

Must never: know how a daemon is told.

Example::

    # three boxes with bgp = { as = 65000 } and loopbacks: r1-r2, r1-r3, r2-r3
    plan_sessions(lab, drafts)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from loopbox.lab.declare import BoxDraft, PeerDraft
from loopbox.lab.records import Lab, LabBox, Session, SessionEnd
from loopbox.lab.tables import suggestion

Key = tuple[str, str, str | None]
DEFAULT_MULTIHOP = 2
"""One router more than the direct neighbour: a loopback behind it."""


def plan_sessions(lab: Lab, drafts: Mapping[str, BoxDraft]) -> tuple[Session, ...]:
    """All sessions, each once, whichever side asked for it; in the order of the file."""
    found: dict[Key, Session] = {}
    for name, draft in drafts.items():
        for peer in _wanted(lab, drafts, name):
            _refuse_bad_peer(lab, draft, peer)
            for session in _sessions(lab, draft, drafts[peer.box], peer):
                ends = sorted((session.left.box, session.right.box))
                found.setdefault((ends[0], ends[1], session.link), session)
    return tuple(found.values())


def _wanted(lab: Lab, drafts: Mapping[str, BoxDraft], name: str) -> Iterator[PeerDraft]:
    draft = drafts[name]
    if draft.peers is not None:
        yield from draft.peers
        return
    mine = draft.box.bgp
    if mine is None:
        return
    inside = [
        box
        for box in lab.boxes
        if box.bgp
        and box.bgp.asn == mine.asn
        and box.name != name
        and _can_meet(lab, draft.box, box)
    ]
    reflectors = [box for box in inside if box.bgp and box.bgp.reflector]
    has_reflectors = bool(reflectors) or mine.reflector
    for box in inside if not has_reflectors or mine.reflector else reflectors:
        if drafts[box.name].peers is None or mine.reflector:
            yield PeerDraft(box.name, (), None)
    for link in lab.links_of(name):
        for end in link.ends:
            other = lab.box(end.box).bgp
            if other is not None and other.asn != mine.asn:
                yield PeerDraft(end.box, (), None)


def _can_meet(lab: Lab, left: LabBox, right: LabBox) -> bool:
    """Whether two routers of one AS have an IGP or a wire to find each other by.

    The spines of a data centre share an AS and have neither: no session is meant there.
    """
    both_ospf = left.ospf is not None and right.ospf is not None
    return both_ospf or bool(lab.links_between(left.name, right.name))


def _refuse_bad_peer(lab: Lab, draft: BoxDraft, peer: PeerDraft) -> None:
    names = [box.name for box in lab.boxes]
    if peer.box not in names:
        raise draft.table.error(
            f"box `{draft.box.name}` peers with `{peer.box}`, which does not exist",
            hint=suggestion(peer.box, names, "boxes"),
            at=("bgp", "peers"),
        )
    if peer.box == draft.box.name:
        raise draft.table.error(
            f"box `{peer.box}` peers with itself",
            hint="take it out of `peers`",
            at=("bgp", "peers"),
        )
    if lab.box(peer.box).bgp is None:
        raise draft.table.error(
            f"box `{draft.box.name}` peers with `{peer.box}`, which has no BGP",
            hint=f"write bgp = {{ as = … }} under [box.{peer.box}]",
            at=("bgp", "peers"),
        )


def _sessions(lab: Lab, own: BoxDraft, other: BoxDraft, peer: PeerDraft) -> Iterator[Session]:
    left, right = lab.box(own.box.name), lab.box(peer.box)
    external = left.bgp is not None and right.bgp is not None and left.bgp.asn != right.bgp.asn
    chosen = peer.sources or own.sources or other.sources
    if not chosen:
        both_have = left.source_address() is not None and right.source_address() is not None
        chosen = ("link",) if external or not both_have else ("loopback",)
    explicit = own.peers is not None
    if "loopback" in chosen:
        multihop = peer.multihop or own.multihop or other.multihop or DEFAULT_MULTIHOP
        yield Session(
            SessionEnd(left.name, _loopback(own, left)),
            SessionEnd(right.name, _loopback(other, right)),
            "loopback",
            external,
            multihop=multihop if external else None,
        )
    if "link" in chosen:
        yield from _link_sessions(lab, left, right, external=external)
        if explicit and chosen == ("link",) and not lab.links_between(left.name, right.name):
            raise own.table.error(
                f"box `{left.name}` peers with `{right.name}` on link addresses, but no link "
                "joins them",
                hint='write source = "loopback", or add the link',
                at=("bgp", "peers"),
            )


def _loopback(draft: BoxDraft, box: LabBox) -> IPv4Address:
    address = box.source_address()
    if address is None:
        raise draft.table.error(
            f"box `{box.name}` has a session between loopbacks, but no IPv4 loopback address",
            hint='write loopback = "auto", or source = "link"',
            at=("bgp",),
        )
    return address


def _link_sessions(lab: Lab, left: LabBox, right: LabBox, *, external: bool) -> Iterator[Session]:
    """One session on each link the two share."""
    for link in lab.links_between(left.name, right.name):
        one, two = link.end(left.name), link.end(right.name)
        numbered = not link.unnumbered
        yield Session(
            SessionEnd(left.name, one.address(4) if numbered else None, one.interface),
            SessionEnd(right.name, two.address(4) if numbered else None, two.interface),
            "link",
            external,
            link=link.name,
        )
