"""Which box `loopbox curl WORDS` means: never another one than the person wrote."""

from __future__ import annotations

import pytest

from loopbox.cli.inside import split_box

UP = ("shop", "fix-ui.shop")


@pytest.mark.parametrize(
    ("words", "box", "curls"),
    [
        ("localhost:3000", None, "localhost:3000"),
        ("-sS localhost:3000", None, "-sS localhost:3000"),
        ("localhost -sS", None, "localhost -sS"),
        ("localhost 127.0.0.1", None, "localhost 127.0.0.1"),
        ("127.0.0.1 -sS", None, "127.0.0.1 -sS"),
        ("http://intranet/ -sS", None, "http://intranet/ -sS"),
        ("example.com -H x:y", None, "example.com -H x:y"),
        ("shop", "shop", ""),
        ("shop localhost", "shop", "localhost"),
        ("shop.localhost -sS localhost", "shop.localhost", "-sS localhost"),
        ("fix-ui.shop -sS localhost", "fix-ui.shop", "-sS localhost"),
        ("--box shop -sS localhost", "shop", "-sS localhost"),
        ("--box=gone shop", "gone", "shop"),
        # Misspelt: named all the same, so that the answer is an error.
        ("shp -sS localhost", "shp", "-sS localhost"),
        ("fix_ui localhost", "fix_ui", "localhost"),
        ("fix-ui.shp localhost:3000", "fix-ui.shp", "localhost:3000"),
    ],
)
def test_first_word(words: str, box: str | None, curls: str) -> None:
    """A box that is up by its name; what looks like one is meant as one; the rest is curl's."""
    assert (box, tuple(curls.split())) == split_box(tuple(words.split()), up=UP)
