"""Predictions held against real routers: every single failure of every kind of lab.

Owns: the table; the labs, the failures and the comparison are those of the test suite, which tries
a sample of them at each run. Must never: judge.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import Goal, Group, MeasurementError, Row, say
from bench.world import World

TESTS = Path(__file__).resolve().parents[1] / "tests"
LABTRUTH = TESTS / "system" / "labtruth.py"
IN_OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
QUICK_LABS = ("chain", "triangle")
PATIENCE_S = 1800.0
TRIED, WRONG = "failures tried", "predicted wrongly"

TEXT = """Labs of every kind (rings, trees, buses, route reflectors, several ASes, unnumbered and
parallel links, an anycast address …) with real FRR. Each link and each box of each lab fails once.
A failure counts as predicted wrongly when any BGP session is not held, lost or flapping as was
said, any loopback is reached or missed from any box against what was said, or a session does not
return after mending. One that disagrees is tried once more: a busy machine starves timers."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; `seconds` plays no part."""
    del seconds
    if os.getuid() != 0:
        raise MeasurementError(
            "it makes network namespaces and starts routers in them: run as root"
        )
    group = Group("truth", "Predictions against real routers", TEXT)
    documents = _compare(QUICK_LABS if rounds == 1 else ())
    for document in documents:
        row = Row(document["lab"], "failures", False, "", [Goal(WRONG, "", 0.0)])
        row.samples = {TRIED: [document["failures"]], WRONG: [len(document["wrong"])]}
        group.rows.append(row)
        group.notes += [
            f"{document['lab']}, {cut} failed: {'; '.join(words)}"
            for cut, words in document["wrong"].items()
        ]
        say(f"  {row.title}: {row.median(TRIED):g} failures, {row.median(WRONG):g} wrong")
    total = sum(document["failures"] for document in documents)
    group.notes.append(f"{len(documents)} labs, {total} failures.")
    return group


def _compare(names: Sequence[str]) -> list[dict[str, Any]]:
    """What was found of each lab. In a PID namespace: however it ends, its routers end with it."""
    with World() as world:
        world.folder.chmod(0o711)  # FRR's daemons give root up and still must reach their own
        try:
            done = subprocess.run(
                [*IN_OWN_PIDS, sys.executable, str(LABTRUTH), "--json", *names],
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_S,
                env={**os.environ, "TMPDIR": str(world.folder), "PYTHONPATH": str(TESTS)},
            )
        except subprocess.TimeoutExpired as err:
            raise MeasurementError(f"not done after {PATIENCE_S:g} s") from err
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    if not documents:
        raise MeasurementError(done.stderr.strip().rpartition("\n")[2] or "nothing was compared")
    return documents
