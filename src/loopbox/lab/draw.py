"""A lab as a picture: SVG for pages, text for terminals.

Owns: layout (a circle for small labs, springs for larger ones, always the same for the same lab),
and what a picture shows: boxes with loopbacks and router IDs, links with addresses, cut links,
sessions with their states. Nothing is told by colour alone.

Must never: ask a running lab; the caller passes what it knows as `Shown`.

Example::

    Path("triangle.svg").write_text(draw_svg(lab, shown=Shown(cut=frozenset({"r1-r2"}))))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from loopbox.lab.records import End, Lab, LabBox, Link, Session

Point = tuple[float, float]
CIRCLE_UP_TO = 12
"""More boxes than this and a circle is harder to read than springs."""
BOX_WIDTH, LINE_HEIGHT = 150, 16

_STYLE = """
text{font:12px ui-monospace,SFMono-Regular,Menlo,monospace;fill:#222}
.name{font-weight:bold;font-size:14px}.small{font-size:10px;fill:#555}
.box{fill:#fff;stroke:#555;stroke-width:1.2}.router{fill:#eef4fb;stroke:#2a5d9c}
.link{stroke:#555;stroke-width:2;fill:none}.cut{stroke:#b00020;stroke-dasharray:6 5}
.hub{fill:#eee;stroke:#555}.label{paint-order:stroke;stroke:#fff;stroke-width:4px}
.session{fill:none;stroke:#2e7d32;stroke-width:1.2;stroke-dasharray:1 3;stroke-linecap:round}
.down{stroke:#b00020;stroke-dasharray:6 3}
@media (prefers-color-scheme:dark){svg{background:#16181c}text{fill:#e6e6e6}.small{fill:#aaa}
.box{fill:#22262c;stroke:#999}.router{fill:#1d2b3d;stroke:#7fb0ea}.link{stroke:#aaa}
.label{stroke:#16181c}.hub{fill:#333}}
""".strip()


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known of the running lab; empty for a drawing of the plan."""

    cut: frozenset[str] = frozenset()
    """Names of links that are cut."""
    sessions: Mapping[str, str] = field(default_factory=dict)
    """Name of a session to its state, as FRR calls it."""


def draw_text(lab: Lab, *, shown: Shown | None = None) -> str:
    """The lab as a tree of lines, boxes in the file's order; ends with a newline."""
    shown = shown or Shown()
    size = f"{_count(len(lab.boxes), 'box', 'boxes')}, {_count(len(lab.links), 'link', 'links')}"
    lines = [f"{lab.name}: {size}, timers {lab.timers.name}"]
    for box in lab.boxes:
        lines += ["", "  ".join([box.name, *_facts(box)])]
        links = lab.links_of(box.name)
        for link in links:
            branch = "└─" if link is links[-1] else "├─"
            lines.append(f"  {branch} {_link_line(link, box, shown)}")
    if lab.sessions:
        lines += ["", "sessions"]
        width = max(len(session.name) for session in lab.sessions)
        lines += [
            f"  {session.name.ljust(width)}  {_session_line(session, shown)}"
            for session in lab.sessions
        ]
    return "\n".join(lines) + "\n"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _facts(box: LabBox) -> list[str]:
    """Addresses on lo, router ID and AS of a box, each a few words."""
    facts = [str(item.ip) for item in box.loopback]
    facts += [f"{item.address.ip} (anycast)" for item in box.anycast]
    facts += [f"{item.ip} (virtual)" for item in box.virtual]
    if box.router_id is not None:
        facts.append(f"router ID {box.router_id.value} ({box.router_id.reason})")
    if box.bgp is not None:
        facts.append(f"AS {box.bgp.asn}" + (" reflector" if box.bgp.reflector else ""))
    return facts


def _link_line(link: Link, box: LabBox, shown: Shown) -> str:
    own = link.end(box.name)
    others = [end for end in link.ends if end is not own]
    addresses = f"{_address(own)} to {', '.join(_address(end) for end in others)}"
    words = [", ".join(end.box for end in others), f"[{link.name}]", addresses]
    if box.ospf is not None and link.ospf:
        words.append(f"cost {own.cost}")
    if link.name in shown.cut:
        words.append("CUT")
    return "  ".join(words)


def _address(end: End) -> str:
    return str(end.addresses[0].ip) if end.addresses else "unnumbered"


def _session_line(session: Session, shown: Shown) -> str:
    kind = "eBGP" if session.external else "iBGP"
    state = shown.sessions.get(session.name)
    return f"{kind}  {session.source}" + ("" if state is None else f"  {state}")


# --- SVG -----------------------------------------------------------------------------------


def draw_svg(lab: Lab, *, shown: Shown | None = None) -> str:
    """The lab as one SVG document, readable on light and dark pages."""
    shown = shown or Shown()
    places = layout(lab)
    width = max(x for x, _ in places.values()) + BOX_WIDTH if places else BOX_WIDTH
    height = max(y for _, y in places.values()) + 90 if places else 90
    body = [
        *(_svg_link(link, places, shown) for link in lab.links),
        *(_svg_session(session, places, shown) for session in lab.sessions),
        *(_svg_label(link, places, shown) for link in lab.links),
        *(_svg_box(box, places[box.name]) for box in lab.boxes),
    ]
    title = escape(f"{lab.name}: {len(lab.boxes)} boxes, {len(lab.links)} links")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def layout(lab: Lab) -> dict[str, Point]:
    """Where each box stands: its centre, in pixels from the top left."""
    names = [box.name for box in lab.boxes]
    if len(names) <= CIRCLE_UP_TO:
        radius = 0.0 if len(names) == 1 else max(150.0, 38.0 * len(names))
        turns = [2 * math.pi * index / len(names) - math.pi / 2 for index in range(len(names))]
        points = [(radius * 1.3 * math.cos(turn), radius * math.sin(turn)) for turn in turns]
    else:
        points = _springs(lab, names)
    left = min((x for x, _ in points), default=0) - BOX_WIDTH
    top = min((y for _, y in points), default=0) - 70
    return {name: (x - left, y - top) for name, (x, y) in zip(names, points, strict=True)}


def _springs(lab: Lab, names: list[str]) -> list[Point]:
    """A force-directed layout; rustworkx, seeded, so that it is the same every time."""
    import rustworkx as rx  # noqa: PLC0415  only large labs pay for it

    graph: rx.PyGraph[str, None] = rx.PyGraph()
    graph.add_nodes_from(names)
    number = {name: index for index, name in enumerate(names)}
    for link in lab.links:
        hub = number[link.ends[0].box]
        for end in link.ends[1:]:
            graph.add_edge(hub, number[end.box], None)
    found = rx.spring_layout(graph, seed=7, num_iter=120)
    scale = 130 * math.sqrt(len(names))
    return [(found[index][0] * scale * 1.4, found[index][1] * scale) for index in range(len(names))]


def _svg_box(box: LabBox, place: Point) -> str:
    lines = [f'<tspan class="name">{escape(box.name)}</tspan>']
    lines += [escape(str(item)) for item in (*box.loopback, *box.virtual)]
    lines += [escape(f"{item.address} anycast") for item in box.anycast]
    if box.router_id is not None:
        lines.append(escape(f"ID {box.router_id.value}"))
    if box.bgp is not None:
        lines.append(escape(f"AS {box.bgp.asn}" + (" reflector" if box.bgp.reflector else "")))
    height = LINE_HEIGHT * len(lines) + 10
    x, y = place[0] - BOX_WIDTH / 2, place[1] - height / 2
    spans = "".join(
        f'<text x="{place[0]:.0f}" y="{y + 16 + LINE_HEIGHT * index:.0f}" '
        f'text-anchor="middle">{line}</text>'
        for index, line in enumerate(lines)
    )
    kind = "box router" if box.is_router else "box"
    hover = escape("  ".join([box.name, *_facts(box)]))
    return (
        f'<g><title>{hover}</title><rect class="{kind}" x="{x:.0f}" y="{y:.0f}" rx="6" '
        f'width="{BOX_WIDTH}" height="{height}"/>{spans}</g>'
    )


def _svg_link(link: Link, places: Mapping[str, Point], shown: Shown) -> str:
    is_cut = link.name in shown.cut
    style = "link cut" if is_cut else "link"
    ends, hub = [places[end.box] for end in link.ends], _middle(link, places)
    if link.is_bridge:
        lines = [_line(style, hub, end) for end in ends]
        return "".join(lines) + f'<circle class="hub" cx="{hub[0]:.0f}" cy="{hub[1]:.0f}" r="7"/>'
    (x1, y1), (x2, y2) = ends
    # The curve passes through the middle, which parallel links do not share.
    bend = 2 * hub[0] - (x1 + x2) / 2, 2 * hub[1] - (y1 + y2) / 2
    path = f"M{x1:.0f} {y1:.0f}Q{bend[0]:.0f} {bend[1]:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="{style}" d="{path}"/>'


def _middle(link: Link, places: Mapping[str, Point]) -> Point:
    """Where the name of a link stands; parallel links lie side by side."""
    ends = [places[end.box] for end in link.ends]
    x, y = (sum(x for x, _ in ends) / len(ends), sum(y for _, y in ends) / len(ends))
    return x, y - 34 * _rank(link)


def _svg_label(link: Link, places: Mapping[str, Point], shown: Shown) -> str:
    """Name and subnet of a link, above everything but boxes."""
    hub, is_cut = _middle(link, places), link.name in shown.cut
    words = link.name + (" (cut)" if is_cut else "")
    networks = sorted({str(item.network) for end in link.ends for item in end.addresses[:1]})
    detail = "unnumbered" if link.unnumbered or not networks else networks[0]
    return (
        f"<g><title>{escape(f'{words} {detail}')}</title>"
        f'<text class="label" x="{hub[0]:.0f}" y="{hub[1] - 4:.0f}" '
        f'text-anchor="middle">{escape(words)}</text>'
        f'<text class="label small" x="{hub[0]:.0f}" y="{hub[1] + 8:.0f}" '
        f'text-anchor="middle">{escape(detail)}</text></g>'
    )


def _rank(link: Link) -> int:
    """0 for the first link of two boxes, 1 for the second: devices end in `-2` from there on."""
    tail = link.ends[0].interface.rpartition("-")[2]
    return int(tail) - 1 if not link.is_bridge and tail.isdecimal() and len(tail) < 3 else 0


def _line(style: str, start: Point, end: Point) -> str:
    return (
        f"<line class={quoteattr(style)} x1='{start[0]:.0f}' y1='{start[1]:.0f}' "
        f"x2='{end[0]:.0f}' y2='{end[1]:.0f}'/>"
    )


def _svg_session(session: Session, places: Mapping[str, Point], shown: Shown) -> str:
    """A bow beside the straight line between two boxes."""
    (x1, y1), (x2, y2) = places[session.left.box], places[session.right.box]
    state = shown.sessions.get(session.name)
    bow = 0.12 if session.link is None else 0.06
    mid = ((x1 + x2) / 2 + (y2 - y1) * bow * 2, (y1 + y2) / 2 - (x2 - x1) * bow * 2)
    is_down = state is not None and state != "Established"
    style = "session down" if is_down else "session"
    hover = escape(f"session {session.name}  {_session_line(session, shown)}")
    label = (
        f'<text class="label small" x="{(mid[0] + (x1 + x2) / 2) / 2:.0f}" '
        f'y="{(mid[1] + (y1 + y2) / 2) / 2:.0f}" text-anchor="middle">{escape(state or "")}</text>'
        if is_down
        else ""
    )
    return (
        f'<g><title>{hover}</title><path class="{style}" '
        f'd="M{x1:.0f} {y1:.0f}Q{mid[0]:.0f} {mid[1]:.0f} {x2:.0f} {y2:.0f}"/>{label}</g>'
    )
