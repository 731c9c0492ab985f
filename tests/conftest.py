"""What all tests stand on: a host of their own, and the installed command with a home of its own.

As root the whole run moves into a network namespace of its own before anything else, so tests
bind any port without meeting what the machine runs; the run as a plain user is started inside
such a namespace by `system/test_as_plain_user.py`. A plain user who starts the tests by hand
shares the machine's ports.
"""

from __future__ import annotations

import compileall
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Sandbox
from loopbox.kernel.namespaces import raise_lo
from loopbox.kernel.syscalls import CLONE_NEWNET, unshare

_MOVED = "LOOPBOX_TEST_HOST"


def pytest_configure(config: pytest.Config) -> None:
    """Move a run as root into its own network namespace, once."""
    config.addinivalue_line("markers", "root: needs root; the plain user's run leaves it out")
    if os.geteuid() == 0 and not os.environ.get(_MOVED):
        unshare(CLONE_NEWNET)
        raise_lo()
        os.environ[_MOVED] = "1"
    # As pip leaves it for a user: what is timed here is the program, not its compilation.
    compileall.compile_dir(Path(__file__).parents[1] / "src", quiet=2)
    for variable in ("LOOPBOX_NAME", "LOOPBOX_ADDRESS", "LOOPBOX_URL", "LOOPBOX"):
        os.environ.pop(variable, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs root in the plain user's run."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root; runs in the run as root"))


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """The installed command with directories and a keeper of its own, gone afterwards."""
    made = Sandbox(tmp_path)
    try:
        yield made
    finally:
        made.close()
