"""Where the boxes of a drawn lab stand.

Owns: the choice of a shape by what a person would draw (a line, rows of spines and leaves, a
circle, springs for large labs), always the same for the same lab.

Must never: know how anything is drawn.

Example::

    layout(lab, width=150)["r1"]      # (319.0, 70.0): its centre, in pixels from the top left
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from loopbox.lab.records import Lab

Point = tuple[float, float]
CIRCLE_UP_TO = 12
"""More boxes than this and a circle is harder to read than springs."""
_ROW_UP_TO = 8
_LINE_UP_TO = 5
_HIGH = 140.0
"""Pixels from box to box where one stands above the other."""
_LARGEST = 4.0
"""Times that springs are stretched at most: a few boxes may touch in a crowd of hundreds."""
_SPREAD_UP_TO = 400
"""Every pair is looked at; and nobody reads more."""


def layout(lab: Lab, *, width: int) -> dict[str, Point]:
    """Where each box stands: its centre, in pixels from the top left; boxes are `width` wide."""
    names = [box.name for box in lab.boxes]
    near = _neighbours(lab)
    points = (
        _line(names, near, width)
        or _rows(names, near, width)
        or (_circle(names) if len(names) <= CIRCLE_UP_TO else _spread(_springs(lab, names), width))
    )
    left = min((x for x, _ in points.values()), default=0) - width
    top = min((y for _, y in points.values()), default=0) - 90
    return {name: (points[name][0] - left, points[name][1] - top) for name in names}


def _neighbours(lab: Lab) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {box.name: set() for box in lab.boxes}
    for link in lab.links:
        for end in link.ends:
            near[end.box] |= {other.box for other in link.ends if other is not end}
    return near


def _line(names: list[str], near: Mapping[str, set[str]], width: int) -> dict[str, Point] | None:
    """A chain from left to right, if the lab is one."""
    ends = [name for name in names if len(near[name]) == 1]
    is_chain = len(ends) == 2 and all(len(others) <= 2 for others in near.values())
    if not is_chain or len(names) > _LINE_UP_TO:
        return None
    order, seen = [ends[0]], {ends[0]}
    while left := near[order[-1]] - seen:
        order.append(left.pop())
        seen.add(order[-1])
    if len(order) < len(names):
        return None
    return {name: (index * (width + 150.0), 0.0) for index, name in enumerate(order)}


def _rows(names: list[str], near: Mapping[str, set[str]], width: int) -> dict[str, Point] | None:
    """Two rows, if links lead from one to the other only: spines above leaves, a hub above all."""
    if not names or all(len(others) == 2 for others in near.values()):
        return None  # a ring is a circle
    side = {names[0]: 0}
    waiting = [names[0]]
    for name in waiting:
        for other in sorted(near[name]):
            if other not in side:
                side[other] = 1 - side[name]
                waiting.append(other)
            elif side[other] == side[name]:
                return None
    if len(side) < len(names):
        return None
    rows = [[name for name in names if side[name] == which] for which in (0, 1)]
    above, below = sorted(rows, key=len)
    if not above or len(below) > _ROW_UP_TO:
        return None
    step = width + 160.0
    return {
        name: ((index - (len(row) - 1) / 2) * step, depth * 270.0)
        for depth, row in enumerate((above, below))
        for index, name in enumerate(row)
    }


def _circle(names: list[str]) -> dict[str, Point]:
    radius = 0.0 if len(names) == 1 else max(150.0, 38.0 * len(names))
    turns = [2 * math.pi * index / len(names) - math.pi / 2 for index in range(len(names))]
    return {
        name: (radius * 1.3 * math.cos(turn), radius * math.sin(turn))
        for name, turn in zip(names, turns, strict=True)
    }


def _spread(points: dict[str, Point], width: int) -> dict[str, Point]:
    """The same picture, so much larger that no two boxes touch and the link's name has room."""
    if len(points) > _SPREAD_UP_TO:
        return points
    at = list(points.values())
    factor = max(
        min((width + 60) / max(abs(x - u), 1), _HIGH / max(abs(y - v), 1))
        for index, (x, y) in enumerate(at)
        for u, v in at[:index]
    )
    factor = min(max(factor, 1.0), _LARGEST)
    return {name: (x * factor, y * factor) for name, (x, y) in points.items()}


def _springs(lab: Lab, names: list[str]) -> dict[str, Point]:
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
    return {name: (found[i][0] * scale * 1.4, found[i][1] * scale) for name, i in number.items()}
