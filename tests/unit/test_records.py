"""What the keeper reads back of its own records, and what it refuses to believe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopbox.keeper.records import Records, write_whole


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Empty records below tmp_path."""
    return Records(runtime=tmp_path, state=tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"boot": 1}', '"x"', "\x00", '{"name": "other"}']
)
def test_unreadable_record_is_removed(records: Records, tmp_path: Path, text: str) -> None:
    """Half-written, foreign or mad: it is no box, and does not come up again."""
    (tmp_path / "boxes/shop").write_text(text)

    assert ([], False) == (records.all(), (tmp_path / "boxes/shop").exists())


@pytest.mark.parametrize("address", ["127.0.0.1", "8.8.8.8", "::1", "", 5])
def test_remembered_address_outside_the_pool_is_refused(tmp_path: Path, address: Any) -> None:
    """A door never opens anywhere but in 127.64.0.0/10, whatever the file says."""
    entry = {"shop": {"directory": "/", "address": address}}
    (tmp_path / "names.json").write_text(json.dumps(entry))

    assert Records(runtime=tmp_path, state=tmp_path).address_of("shop") is None


def test_half_written_files_of_a_dead_keeper_are_swept(records: Records, tmp_path: Path) -> None:
    """Temporary files that a killed keeper left are removed with the next look."""
    (tmp_path / "boxes/.shop.123").write_text("{")

    assert ([], []) == (records.all(), list((tmp_path / "boxes").iterdir()))


def test_whole_write_leaves_the_old_on_failure(tmp_path: Path) -> None:
    """What cannot be written leaves what was there, and nothing beside it."""
    target = tmp_path / "names.json"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "\ud800")

    assert [("names.json", "old")] == [(p.name, p.read_text()) for p in tmp_path.iterdir()]
