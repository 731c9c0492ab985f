"""The control protocol's bytes: what is built is read back, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.wire.control import LIMIT, FrameError, build, feed

TEXT = st.text().filter(lambda text: "\0" not in text)
KEYS = st.text(min_size=1).filter(lambda text: not {"\0", "="} & set(text))
FIELDS = st.dictionaries(KEYS, TEXT, min_size=1)


@given(FIELDS, st.binary(max_size=8))
def test_what_is_built_is_read_back(fields: dict[str, str], rest: bytes) -> None:
    """A message comes back as it was, and what follows it is kept."""
    assert (fields, rest) == feed(build(fields) + rest)


@given(FIELDS, st.data())
def test_a_message_cut_anywhere_is_not_there_yet(
    fields: dict[str, str], data: st.DataObject
) -> None:
    """No prefix of a message is taken for one."""
    message = build(fields)
    cut = message[: data.draw(st.integers(0, len(message) - 1))]

    assert (None, cut) == feed(cut)


@given(st.binary(max_size=64))
def test_junk_is_refused_or_waited_for(junk: bytes) -> None:
    """Any bytes give fields, wait for more, or raise FrameError: nothing else."""
    try:
        fields, _rest = feed(junk)
    except FrameError:
        return
    assert fields is None or isinstance(fields, dict)


@pytest.mark.parametrize("fields", [{"a": "x\0y"}, {"a\0": "x"}, {"a=b": "x"}])
def test_what_cannot_be_framed_is_not_built(fields: dict[str, str]) -> None:
    """NUL anywhere and = in a key would change the meaning, so they are refused."""
    with pytest.raises(ValueError, match="cannot be sent"):
        build(fields)


def test_an_announced_flood_is_refused_at_once() -> None:
    """A length beyond the limit is refused before anything is read for it."""
    with pytest.raises(FrameError):
        feed((LIMIT + 1).to_bytes(4, "big"))


def test_file_names_that_are_no_text_survive() -> None:
    """A path with bytes that are no UTF-8 arrives as it was."""
    path = b"/tmp/\xff\xfe".decode("utf-8", "surrogateescape")

    assert ({"cwd": path}, b"") == feed(build({"cwd": path}))
