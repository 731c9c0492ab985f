"""1 to 5,000 boxes: making, unmaking, memory, and what the keeper does when all is quiet.

Owns: the counts and the goals. Boxes are asked for in one request to the keeper, as a lab's are, so
that no interpreter's start is counted. Must never: leave a box behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Goal, Group, MeasurementError, Row, say, wait_for_quiet
from bench.world import Loopbox, World, cpu_seconds, memory_kib
from loopbox.client import Keeper, connect
from loopbox.errors import LoopboxError

COUNTS = (1, 100, 1000, 5000)
QUICK_COUNTS = (1, 100)
MOST_ROUNDS = {1000: 3, 5000: 1}
"""Boxes to rounds: the large ones take long and vary little."""
GOAL_COUNT = 1000
GOALS = {
    "made": [Goal("loopbox", "bare", 1.3)],
    "keeper": [Goal("loopbox", "", 8.0)],
    "cpu": [Goal("loopbox", "", 2.0)],
    "listener": [Goal("loopbox", "", 250.0)],
}
BARE_BOXES = Path(__file__).with_name("bareboxes.py")

TEXT = """Boxes are complete: namespaces, loopback, private files, the guard, the way out, names and
the keeper's own sockets in them, asked for in one request. *bare* is one process that only calls
`unshare` for a network namespace and raises its loopback, as often. What only a program needs
(ports below 1024, ping, an own `/sys/class/net`) is set when the first one enters; *to enter first*
is that, asked for over one connection, while all the boxes are there. The keeper's runtime folder
is on a memory file system, as `/run/user` is. Memory of the kernel is what `Slab` and `Percpu` of
`/proc/meminfo` grew by."""
ENTERED = 20
"""Boxes that are entered, of those that were made."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group."""
    group = Group("scale", "Many boxes", TEXT)
    counts = QUICK_COUNTS if rounds == 1 else COUNTS
    for count in counts:
        say(f"  {count} boxes")
        _measure_count(
            group, count, rounds=min(rounds, MOST_ROUNDS.get(count, rounds)), seconds=seconds
        )
    return group


def _measure_count(group: Group, count: int, *, rounds: int, seconds: float) -> None:
    boxes = f"{count:,} box{'es'[: 2 * (count > 1)]}"
    bounds = GOALS if count == GOAL_COUNT else {}
    made = Row(f"{boxes}: to make all", "ms", False, "bare", bounds.get("made", []))
    entered = Row(f"{boxes}: to enter first, each", "ms", False, "bare")
    gone = Row(f"{boxes}: to unmake all", "ms", False, "bare")
    kernel = Row(f"{boxes}: kernel memory a box", "KiB", False, "bare")
    keeper = Row(f"{boxes}: keeper memory a box", "KiB", False, "bare", bounds.get("keeper", []))
    cpu = Row(
        f"{boxes}, all quiet: keeper CPU", "% of a core", False, "bare", bounds.get("cpu", [])
    )
    listener = Row(
        f"{boxes}: a new listener is reached after",
        "ms",
        False,
        "bare",
        bounds.get("listener", []),
    )
    rows = (made, entered, gone, kernel, keeper, cpu, listener)
    group.rows += rows
    for _ in range(rounds):
        made.disturbed += not wait_for_quiet()
        _sample(made, "bare", _bare(count))
        with World(memory=True) as world:
            try:
                _one_round(world, count, rows=rows, seconds=seconds)
            except (MeasurementError, LoopboxError, OSError) as err:
                for row in rows:
                    row.failures["loopbox"] = str(err)
                group.notes.append(f"{boxes}: {err}")
                say(f"  failed: {err}")
    for row in rows:
        say(f"  {row.title} [{row.unit}]: {row.median('loopbox')} (bare {row.median('bare')})")


def _one_round(world: World, count: int, *, rows: tuple[Row, ...], seconds: float) -> None:
    made, entered, gone, kernel, keeper_memory, cpu, listener = rows
    boxes = [f"box-{number}" for number in range(count)]
    loopbox = world.loopbox("scale")
    loopbox.call("run", "--name", "busy", "--keep", "--", "true")
    pid = loopbox.keeper_pid()
    with _connected(loopbox) as keeper:
        memory, slab = memory_kib([pid]), _kernel_kib()
        start = time.perf_counter()
        keeper.request({"verb": "make", "names": ",".join(boxes), "cwd": str(world.folder)})
        _sample(made, "loopbox", (time.perf_counter() - start) * 1000)
        _sample(kernel, "loopbox", (_kernel_kib() - slab) / count)
        _sample(keeper_memory, "loopbox", (memory_kib([pid]) - memory) / count)
        used = cpu_seconds([pid])
        time.sleep(max(seconds, 2.0) * 2)
        _sample(cpu, "loopbox", (cpu_seconds([pid]) - used) / (max(seconds, 2.0) * 2) * 100)
        _sample(listener, "loopbox", _listener_delay_ms(world, loopbox))
        start = time.perf_counter()
        for name in boxes[:ENTERED]:
            _enter(keeper, name)
        _sample(entered, "loopbox", (time.perf_counter() - start) * 1000 / len(boxes[:ENTERED]))
        start = time.perf_counter()
        keeper.request({"verb": "down", "names": ",".join(boxes), "grace": "1"})
        _sample(gone, "loopbox", (time.perf_counter() - start) * 1000)


def _enter(keeper: Keeper, name: str) -> None:
    _, descriptors = keeper.request({"verb": "enter", "name": name})
    for descriptor in descriptors:
        os.close(descriptor)


@contextlib.contextmanager
def _connected(loopbox: Loopbox) -> Iterator[Keeper]:
    """A connection to that loopbox's keeper: the client finds it by the environment."""
    names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: loopbox.env[name] for name in names})
    try:
        with connect(start=False) as keeper:
            yield keeper
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _listener_delay_ms(world: World, loopbox: Loopbox) -> float:
    """From the moment something listens in the busy box until the host reaches it."""
    address = loopbox.address("busy")
    marker = world.folder / "listening"
    marker.unlink(missing_ok=True)
    script = (
        "import socket, sys, time, pathlib; s = socket.create_server(('127.0.0.1', 18700));"
        "pathlib.Path(sys.argv[1]).write_text(str(time.monotonic())); time.sleep(30)"
    )
    loopbox.run("busy", [sys.executable, "-I", "-S", "-c", script, marker])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, 18700), timeout=1):
            return (time.monotonic() - float(marker.read_text(encoding="ascii"))) * 1000
        time.sleep(0.002)
    raise MeasurementError("the new listener did not appear within 20 s")


def _bare(count: int) -> float:
    """Milliseconds for as many bare namespaces."""
    command: list[str | Path] = [sys.executable, "-I", "-S", BARE_BOXES, str(count)]
    if os.getuid() != 0:
        command = ["unshare", "-Ur", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasurementError(f"bare namespaces: {done.stderr.strip()[-200:]}")
    return float(done.stdout) * 1000


def _kernel_kib() -> int:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    table = dict(line.split(":") for line in text.splitlines())
    return sum(int(table[name].split()[0]) for name in ("Slab", "Percpu"))


def _sample(row: Row, contender: str, value: float) -> None:
    row.samples.setdefault(contender, []).append(value)
