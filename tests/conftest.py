"""What all tests stand on: a host of their own, and the installed command with a home of its own.

As root the whole run moves into a network namespace of its own before anything else, so tests
bind any port without meeting what the machine runs; the run as a plain user is started inside
such a namespace by `system/test_as_plain_user.py`. A plain user who starts the tests by hand
shares the machine's ports.
"""

from __future__ import annotations

import compileall
import os
import signal
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
    # Each worker of pytest-xdist moves once more: their ports do not meet either.
    is_moved = os.environ.get(_MOVED) and not os.environ.get("PYTEST_XDIST_WORKER")
    if os.geteuid() == 0 and not is_moved:
        unshare(CLONE_NEWNET)
        raise_lo()
        os.environ[_MOVED] = "1"
    # As pip leaves it for a user: what is timed here is the program, not its compilation.
    compileall.compile_dir(Path(__file__).parents[1] / "src", quiet=2)
    # What a script's background or nohup ignores would be ignored by every program a test starts.
    for number, how in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, how)
    for variable in ("LOOPBOX_NAME", "LOOPBOX_ADDRESS", "LOOPBOX_URL", "LOOPBOX"):
        os.environ.pop(variable, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs root in the plain user's run; wait for that run last."""
    items.sort(key=_is_plain_run)
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root; runs in the run as root"))


def _is_plain_run(item: pytest.Item) -> bool:
    return item.name == "test_rootless_part_as_a_plain_user"


def pytest_collection_finish(session: pytest.Session) -> None:
    """The plain user's run begins at once, where it is wanted, and goes on beside this one."""
    if os.geteuid() != 0 or session.config.option.collectonly:
        return
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return  # whichever worker comes to it runs it
    for item in filter(_is_plain_run, session.items):
        session.config.plain_run = item.module.begin()  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """It ends with this one, however this one ends."""
    run = getattr(config, "plain_run", None)
    if run is not None:
        run.end()


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """The installed command with directories and a keeper of its own, gone afterwards."""
    made = Sandbox(tmp_path)
    try:
        yield made
    finally:
        made.close()
