"""Locks that are waited for, and the box a process stands in by its records."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopbox.errors import KeeperError
from loopbox.starting import box_around, only_one


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a runtime directory."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_lock_held_for_long_is_told(directory: int, tmp_path: Path) -> None:
    """Whoever holds it for longer than the patience is named by a command, and not waited for."""
    with open(tmp_path / "start.lock", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(KeeperError) as caught, only_one(directory, "start.lock", patience=0.02):
            pass

    assert "another process holds it" in caught.value.message
    assert caught.value.hint is not None and caught.value.hint.startswith("see which: fuser -v ")


def test_lock_is_free_again_after_a_failure(directory: int) -> None:
    """What fails under the lock lets go of it."""
    for _turn in range(2):
        with pytest.raises(ZeroDivisionError), only_one(directory, "l", patience=0):
            raise ZeroDivisionError


def test_box_around_goes_by_the_namespace(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record with this namespace's cookie counts; LOOPBOX_NAME, junk and strangers do not."""
    with socket.socket() as probe:
        own = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, 71, 8), sys.byteorder)
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / "junk").write_text("{")
    (boxes / "list").write_text("[1]")
    os.mkfifo(boxes / "pipe")
    (boxes / "other").write_text(json.dumps({"cookie": own + 1}))
    monkeypatch.setenv("LOOPBOX_NAME", "by-hand")
    outside = box_around(directory)
    (boxes / "shop").write_text(json.dumps({"cookie": own}))

    assert (None, "shop") == (outside, box_around(directory))
