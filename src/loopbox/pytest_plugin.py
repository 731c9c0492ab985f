"""The pytest plugin: a loopback of its own for a test run, each worker, or one test.

Owns: `--loopbox` (the whole run, and each `-n` worker of pytest-xdist, in a box of its own), the
fixtures `loopbox_box` and `loopbox_lab`, and the reason shown where boxes cannot be made.
Must never: import anything of loopbox while unused (every pytest run on the machine loads this).

A run cannot move into a box after threads have started, so with `--loopbox` pytest is started
anew by `loopbox run`, and xdist is told to start its workers so.

Example::

    pytest --loopbox -n 4
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_INSIDE = "LOOPBOX_PYTEST"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--loopbox`."""
    parser.getgroup("loopbox").addoption(
        "--loopbox",
        action="store_true",
        help="run on a loopback interface of its own; each -n worker on another",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Start pytest anew inside a box, once."""
    if not config.getoption("loopbox") or _is_distributed(config):
        return None
    if os.environ.get(_INSIDE) or os.environ.get("PYTEST_XDIST_WORKER"):
        return None
    os.environ[_INSIDE] = "1"
    arguments = list(config.invocation_params.args)
    os.execv(
        sys.executable,
        [*_in_box(f"pytest-{os.getpid()}"), sys.executable, "-m", "pytest", *map(str, arguments)],
    )


def _is_distributed(config: pytest.Config) -> bool:
    return bool(getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None))


def _in_box(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "loopbox", "run", "--name", name, "--"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Let xdist start each worker in a box of its own."""
    if config.getoption("loopbox"):
        for number, spec in enumerate(specs):
            inside = [*_in_box(f"pytest-{os.getpid()}-gw{number}"), sys.executable]
            spec.python = " ".join(inside)


def _why_no_boxes(run: Callable[[], Any]) -> Any:
    from loopbox.errors import HostError, KeeperError  # noqa: PLC0415

    try:
        return run()
    except (HostError, KeeperError) as error:
        hint = f" ({error.hint})" if error.hint else ""
        pytest.skip(f"loopbox: {error.message}{hint}")


@pytest.fixture
def loopbox_lab(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Brings up a lab for this test alone: `lab = loopbox_lab("triangle.toml")`.

    The file is looked for beside the test's, then from where pytest runs.
    """
    from contextlib import ExitStack  # noqa: PLC0415

    from loopbox.lab_library import lab  # noqa: PLC0415

    with ExitStack() as stack:

        def bring_up(file: str) -> Any:
            beside = request.path.parent / file
            number = abs(hash((request.node.nodeid, file))) % 10**8
            name = f"t{number:x}-{os.getpid()}"
            held = lab(beside if beside.exists() else file, name=name)
            return _why_no_boxes(lambda: stack.enter_context(held))

        yield bring_up


@pytest.fixture
def loopbox_box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A box for this test alone; what runs in it ends with the test."""
    from loopbox.library import box  # noqa: PLC0415

    held = box(f"t{abs(hash(request.node.nodeid)):x}-{os.getpid()}", directory=tmp_path)
    made = _why_no_boxes(held.__enter__)
    try:
        yield made
    finally:
        held.__exit__(None, None, None)
