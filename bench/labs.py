"""Labs coming up and going down: 10 to 200 plain boxes beside the peers, 3 to 100 routers.

Owns: the sizes, the goals, the words, and the plain boxes; the routers are in labrouters. Must
never: count what a contender does before it is told to begin, leave a lab up.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import labpeers, labrouters
from bench.harness import Goal, Group, Row, say, take_together
from bench.world import Loopbox, World

SIZES = (10, 50, 200)
QUICK_SIZES = (10, 50)
MOST_ROUNDS = {50: 3, 200: 3}
SLOW = {"munet": {10: 2, 50: 1, 200: 1}}
"""Contender to size to the rounds it takes part in: 200 nodes of munet take a minute and a half."""
QUICK_SLOW = {"munet": {10: 1, 50: 0}}
GOALS = (("Mininet", 3), ("munet", 30))
NOTE = "so few boxes take 20 ms; the rest is the interpreter of the command and what it imports."
LARGE = 200
LARGE_BOUND_MS = 1000.0
BATCH_BOUND = 3.0

TEXT = """From the start of a command until the lab is there, and from the wish that it goes until
the command has ended. *loopbox* is `loopbox up FILE` and `loopbox down NAME`: each is an
interpreter that starts, a file that is read, and boxes that are complete (namespaces, settings,
guard, links, addresses of both versions, records that outlive a crash); the keeper runs already,
its files are on a tmpfs. The plain boxes hang on one bridge. *ip -batch* makes the same
namespaces and veth pairs by one batch and puts nothing into them, *ip netns* is a shell script
that calls `ip` for each thing. Mininet (its switch is the kernel's bridge) and munet are driven by
a script of their own Python, whose start counts as ours does. munet needs help to run here: a PID
namespace of its own, since it reads `/proc/1/ns`, and a second try where it asks `pgrep` for a
child that is not there yet; larger sizes of it are measured once, and its way down is not: there it
waits a minute for a process that has long ended. Routers are rings with chords,
OSPF on every link and one internal BGP session from each router to each of two reflectors; up is
when every neighbour is Full and every session Established, as asked of all of them in the same
way. *by hand* is a shell script that makes the same namespaces, links, addresses and settings
with `ip`, and starts the same daemons with the same configuration one after the other; *by hand,
4 at once* starts four routers at a time. Its way down is SIGTERM, waiting, `ip netns del`. Memory
is the proportional set size of a router's daemons."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; `seconds` plays no part."""
    del seconds
    group = Group("labs", "Labs", TEXT)
    with World() as world, loopbox_on_tmpfs(world) as loopbox:
        found, group.absent = labpeers.find_peers(world)
        for size in QUICK_SIZES if rounds == 1 else SIZES:
            _plain(group, world, loopbox, found, size=size, rounds=rounds)
        labrouters.measure(group, world, loopbox, rounds=rounds)
    group.machine = labpeers.versions()
    return group


@contextlib.contextmanager
def loopbox_on_tmpfs(world: World) -> Iterator[Loopbox]:
    """A loopbox whose runtime folder is where an ordinary system has it; the keeper runs."""
    tmpfs = Path("/dev/shm")
    base = tmpfs if tmpfs.is_dir() else world.folder
    folder = Path(tempfile.mkdtemp(prefix="lbb-", dir=base))
    try:
        loopbox = world.loopbox("labs", env={"XDG_RUNTIME_DIR": str(folder)})
        loopbox.call("run", "--name", "busy", "--keep", "--", "true")
        try:
            yield loopbox
        finally:
            loopbox.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain(
    group: Group,
    world: World,
    loopbox: Loopbox,
    found: Mapping[str, labpeers.Peer],
    *,
    size: int,
    rounds: int,
) -> None:
    say(f"  {size} plain boxes")
    file = world.folder / f"plain{size}.toml"
    ends = ", ".join(f'"n{number}"' for number in range(size))
    boxes = "".join(f"[box.n{number}]\n" for number in range(size))
    file.write_text(f"{boxes}[[link]]\nends = [{ends}]\n", encoding="ascii")
    note = NOTE if size == SIZES[0] else ""
    bounds = [Goal("loopbox", peer, round(1 / times, 3), note) for peer, times in GOALS]
    if size == LARGE:
        bounds = [
            *bounds,
            Goal("loopbox", "ip -batch", BATCH_BOUND),
            Goal("loopbox", "", LARGE_BOUND_MS),
        ]
    rows = {
        "up": Row(f"{size} plain boxes: up", "ms", False, "ip -batch", bounds),
        "down": Row(
            f"{size} plain boxes: down",
            "ms",
            False,
            "ip -batch",
            [Goal("loopbox", "", LARGE_BOUND_MS)] if size == LARGE else [],
        ),
    }
    group.rows += rows.values()
    contenders: dict[str, Callable[[], Mapping[str, float]]] = {
        "loopbox": lambda: up_and_down(loopbox, file)
    }
    for name, peer in found.items():
        times = (QUICK_SLOW if rounds == 1 else SLOW).get(name, {}).get(size, rounds)
        if times:
            contenders[name] = _at_most(times, lambda peer=peer: peer(size))  # type: ignore[misc]
    take_together(rows, contenders, rounds=min(rounds, MOST_ROUNDS.get(size, rounds)))


def up_and_down(loopbox: Loopbox, file: Path) -> dict[str, float]:
    """Milliseconds of the two commands."""
    begun = time.perf_counter()
    loopbox.call("-q", "up", str(file))
    up = time.perf_counter()
    loopbox.call("-q", "down", file.stem)
    return {"up": (up - begun) * 1000, "down": (time.perf_counter() - up) * 1000}


def _at_most(
    times: int, contender: Callable[[], Mapping[str, float]]
) -> Callable[[], Mapping[str, float]]:
    """The contender in its first rounds, nothing in later ones."""
    left = [times]

    def run() -> Mapping[str, float]:
        left[0] -= 1
        return contender() if left[0] >= 0 else {}

    return run
