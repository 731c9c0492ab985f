"""What a command loads: a lab of ten boxes takes 30 ms to make, and as long to import asyncio."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

UP = (
    "loopbox.cli.app",
    "loopbox.cli.up",
    "loopbox.cli.lab_runner_commands",
    "loopbox.lab.topology",
)


@pytest.mark.parametrize(
    ("loaded", "heavy"),
    [
        (("loopbox.__main__", "loopbox.cli.hot"), {"click", "json", "socket", "typing", "enum"}),
        (UP, {"asyncio", "numpy", "rustworkx", "xml", "loopbox.lab.frr_daemons"}),
    ],
    ids=["run", "up of a lab"],
)
def test_a_command_loads_what_it_needs(loaded: tuple[str, ...], heavy: set[str]) -> None:
    """Nothing of what would take longer than its work."""
    script = (
        f"import sys\nbefore = set(sys.modules)\nimport {', '.join(loaded)}\n"
        "found = sorted(set(sys.modules) - before)\n"
        "import json\nprint(json.dumps(found))"
    )

    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )

    assert heavy & set(json.loads(done.stdout)) == set()
