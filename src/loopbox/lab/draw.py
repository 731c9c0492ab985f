"""A lab as a picture: SVG for pages, text for terminals.

Owns: what a picture shows: boxes with loopbacks and router IDs, links with addresses, cut links,
sessions with their states, and the key to all that. Nothing is told by colour alone. Where boxes
stand is `layout`'s.

Must never: ask a running lab; the caller passes what it knows as `Shown`.

Example::

    Path("triangle.svg").write_text(draw_svg(lab, shown=Shown(cut=frozenset({"r1-r2"}))))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from loopbox.lab.layout import Point, layout
from loopbox.lab.records import End, Lab, LabBox, Link, Session

BOX_WIDTH, LINE_HEIGHT = 150, 16
_STEEP = 240
"""Pixels between the rows of `layout`, less a little."""

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
    is_live: bool = False
    """Whether this is a lab that is up."""


def draw_text(lab: Lab, *, shown: Shown | None = None) -> str:
    """The lab as a tree of lines, boxes in the file's order; ends with a newline."""
    shown = shown or Shown()
    lines = [f"{lab.name}: {_summary(lab, shown)}"]
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


def _summary(lab: Lab, shown: Shown) -> str:
    """How large it is, and how it is now or how it is meant to be."""
    words = [_count(len(lab.boxes), "box", "boxes"), _count(len(lab.links), "link", "links")]
    if not shown.is_live:
        return ", ".join([*words, f"timers {lab.timers.name}"])
    words.append(f"{len(shown.cut)} cut")
    if shown.sessions:
        held = sum(state == "Established" for state in shown.sessions.values())
        words.append(f"{held} of {len(shown.sessions)} sessions Established")
    return ", ".join(words)


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
    places = layout(lab, width=BOX_WIDTH)
    width = max([x + BOX_WIDTH for x, _ in places.values()], default=BOX_WIDTH)
    width = max(width, _KEY_WIDTH)
    height = max([y for _, y in places.values()], default=0) + 110
    body = [
        *(_svg_link(link, places, shown) for link in lab.links),
        *(_svg_session(session, places, shown) for session in lab.sessions),
        *(_svg_label(link, places, shown) for link in lab.links),
        *(_svg_box(box, places[box.name]) for box in lab.boxes),
        *_svg_key(lab, shown, height),
    ]
    title = escape(f"{lab.name}: {_summary(lab, shown)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


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
    """Where the curve of a link passes; parallel links lie side by side."""
    ends = [places[end.box] for end in link.ends]
    x, y = (sum(x for x, _ in ends) / len(ends), sum(y for _, y in ends) / len(ends))
    return x, y - 34 * _rank(link)


def _label_place(link: Link, places: Mapping[str, Point]) -> Point:
    """Where its name stands: in the middle, or on a steep line nearer to the lower end.

    Between two rows the middles of many links fall together.
    """
    x, y = _middle(link, places)
    if link.is_bridge:
        return x, y
    (x1, y1), (x2, y2) = sorted((places[end.box] for end in link.ends), key=lambda at: at[1])
    if y2 - y1 < _STEEP:
        return x, y
    return x + (x2 - x1) * 0.18, y + (y2 - y1) * 0.18


def _svg_label(link: Link, places: Mapping[str, Point], shown: Shown) -> str:
    """Name and subnet of a link, above everything but boxes."""
    hub, is_cut = _label_place(link, places), link.name in shown.cut
    words = link.name + (" (cut)" if is_cut else "")
    networks = sorted({str(item.network) for end in link.ends for item in end.addresses[:1]})
    detail = "unnumbered" if link.unnumbered or not networks else networks[0]
    costs = "" if not link.ospf else "  cost " + "/".join(
        dict.fromkeys(str(end.cost) for end in link.ends)
    )  # fmt: skip
    ends = ", ".join(f"{end.box} {_address(end)}" for end in link.ends)
    return (
        f"<g><title>{escape(f'{words}  {ends}{costs}')}</title>"
        f'<text class="label" x="{hub[0]:.0f}" y="{hub[1] - 4:.0f}" '
        f'text-anchor="middle">{escape(words)}</text>'
        f'<text class="label small" x="{hub[0]:.0f}" y="{hub[1] + 8:.0f}" '
        f'text-anchor="middle">{escape(detail)}</text></g>'
    )


def _rank(link: Link) -> int:
    """0 for the first link of two boxes, 1 for the second: devices end in `-2` from there on."""
    tail = link.ends[0].interface.rpartition("-")[2]
    return int(tail) - 1 if not link.is_bridge and tail.isdecimal() and len(tail) < 3 else 0


_KEY_WIDTH = 470.0


def _svg_key(lab: Lab, shown: Shown, height: float) -> list[str]:
    """The lab's name and state above, and below what the lines mean."""
    y = height - 14
    items = [("link", "link"), ("link cut", "cut link")]
    if lab.sessions:
        items += [("session", "BGP session"), ("session down", "session that is down")]
    summary = f'<tspan dx="10">{escape(_summary(lab, shown))}</tspan>'
    name = f'<tspan class="name">{escape(lab.name)}</tspan>'
    parts = [f'<text x="16" y="24">{name}{summary}</text>']
    x = 16.0
    for style, words in items if shown.is_live else items[::2]:
        parts.append(
            f'<path class="{style}" d="M{x:.0f} {y - 4:.0f}h24"/>'
            f'<text class="small" x="{x + 30:.0f}" y="{y:.0f}">{words}</text>'
        )
        x += 48 + 6.4 * len(words)
    return parts


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
    # A third of the way along the bow: in the middle stands the link's name.
    at = [
        one * 0.45 + bend * 0.44 + two * 0.11
        for one, bend, two in ((x1, mid[0], x2), (y1, mid[1], y2))
    ]
    label = (
        f'<text class="label small" x="{at[0]:.0f}" y="{at[1]:.0f}">{escape(state or "")}</text>'
        if is_down
        else ""
    )
    return (
        f'<g><title>{hover}</title><path class="{style}" '
        f'd="M{x1:.0f} {y1:.0f}Q{mid[0]:.0f} {mid[1]:.0f} {x2:.0f} {y2:.0f}"/>{label}</g>'
    )
