"""Pictures of labs: golden files, and that every drawing is whole."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from loopbox.lab.draw import CIRCLE_UP_TO, Shown, draw_svg, draw_text, layout
from loopbox.lab.topology import load, parse

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "labs").glob("*.toml"))
RUNNING = Shown(frozenset({"r1-r2"}), {"r1-r2": "Established", "r1-r2 on r1-r2": "Active"})
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
    places = list(layout(lab).values())

    assert len({(round(x), round(y)) for x, y in places}) == count
    assert layout(lab) == layout(lab)
