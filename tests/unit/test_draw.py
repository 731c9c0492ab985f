"""Pictures of labs: golden files, and that every drawing is whole."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.lab.draw import BOX_WIDTH, Shown, draw_svg, draw_text
from loopbox.lab.layout import CIRCLE_UP_TO, layout
from loopbox.lab.topology import load, parse

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "labs").glob("*.toml"))
RUNNING = Shown(
    frozenset({"r1-r2"}), {"r1-r2": "Established", "r1-r2 on r1-r2": "Active"}, is_live=True
)
SVG = "{http://www.w3.org/2000/svg}"


def golden(name: str, text: str) -> str:
    """The golden text `name`; written first when LOOPBOX_UPDATE_GOLDEN is set."""
    path = ROOT / "tests" / "golden" / name
    if os.environ.get("LOOPBOX_UPDATE_GOLDEN"):
        path.write_text(text)
    return path.read_text()


@pytest.mark.parametrize("suffix", ["txt", "svg"])
def test_the_running_triangle_is_drawn_as_reviewed(suffix: str) -> None:
    """A cut link and session states are in the picture, in words as well as in colour."""
    lab = load(ROOT / "examples" / "labs" / "triangle.toml")
    text = (draw_text if suffix == "txt" else draw_svg)(lab, shown=RUNNING)

    assert golden(f"draw-triangle.{suffix}", text) == text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_gives_well_formed_svg_with_every_name(path: Path) -> None:
    """Each box and each link stands in the picture, and XML readers accept it."""
    lab = load(path)
    root = ET.fromstring(draw_svg(lab))
    words = {element.text for element in root.iter() if element.text}

    assert root.tag == f"{SVG}svg"
    names = {box.name for box in lab.boxes} | {link.name for link in lab.links}
    assert names <= words


def test_hostile_text_cannot_leave_its_place() -> None:
    """Angle brackets from a lab file stay text."""
    text = '[box.a]\nanycast = [{ address = "10.0.0.1/32", check = "<script>" }]\n'
    drawing = draw_svg(parse(text, path=Path("x.toml")))

    assert "<script" not in drawing


def test_large_labs_are_laid_out_without_boxes_on_top_of_each_other() -> None:
    """Springs keep every pair of boxes apart, and the same lab looks the same twice."""
    count = CIRCLE_UP_TO + 8
    text = "".join(f"[box.b{n}]\n" for n in range(count))
    text += "".join(
        f'[[link]]\nends = ["b{n}", "b{n // 3}"]\n' for n in range(1, count) if n // 3 != n
    )
    lab = parse(text, path=Path("tree.toml"))
    places = list(layout(lab, width=BOX_WIDTH).values())

    assert all(
        abs(x - u) >= BOX_WIDTH or abs(y - v) >= 100
        for i, (x, y) in enumerate(places)
        for u, v in places[:i]
    )
    assert layout(lab, width=BOX_WIDTH) == layout(lab, width=BOX_WIDTH)


def test_spines_stand_above_leaves_and_a_chain_in_a_line() -> None:
    """What a person would draw in rows or in a line is drawn so."""
    fabric = layout(load(ROOT / "examples" / "labs" / "leaf-spine.toml"), width=BOX_WIDTH)
    chain = layout(load(ROOT / "examples" / "labs" / "two-as.toml"), width=BOX_WIDTH)

    assert len({fabric["spine1"][1], fabric["spine2"][1]}) == 1
    assert {fabric[leaf][1] - fabric["spine1"][1] for leaf in ("leaf1", "leaf2", "leaf3")} == {270}
    assert sorted(chain, key=lambda name: chain[name]) == ["a1", "a2", "b2", "b1"]
    assert len({y for _x, y in chain.values()}) == 1


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=24),
)
def test_boxes_of_any_small_lab_do_not_overlap(count: int, pairs: list[tuple[int, int]]) -> None:
    """Whatever the links are, two boxes are apart by a box's width or height, on the canvas."""
    text = "".join(f"[box.b{n}]\n" for n in range(count))
    text += "".join(
        f'[[link]]\nends = ["b{a}", "b{b}"]\n' for a, b in pairs if a != b and max(a, b) < count
    )
    lab = parse(text, path=Path("any.toml"))
    places = list(layout(lab, width=BOX_WIDTH).values())

    assert all(x >= BOX_WIDTH / 2 and y >= 45 for x, y in places)
    assert all(
        abs(x - u) >= BOX_WIDTH or abs(y - v) >= 36
        for i, (x, y) in enumerate(places)
        for u, v in places[:i]
    )
