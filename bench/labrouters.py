"""FRR routers of a lab: by `loopbox up`, and by a script as one would write it.

Owns: the topology, the script, how a router's memory is read. Must never: ask for less of one
contender than of the other (both are waited for by the same code), leave a daemon behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from bench.harness import Goal, Group, MeasurementError, Row, say, take_together
from bench.labpeers import PATIENCE_S, drive, in_own_run
from bench.world import Loopbox, World, memory_kib
from loopbox.errors import LoopboxError
from loopbox.lab.asking import RouterView, wait_converged
from loopbox.lab.frr import render, sysctls
from loopbox.lab.frr_daemons import RouterDaemons, find_folder
from loopbox.lab.runner import standing_sessions
from loopbox.lab.topology import Lab, load

SIZES = (3, 10, 30, 100)
QUICK_SIZES = (3, 10)
MOST_ROUNDS = {10: 3, 30: 3, 100: 2}
LARGE = 100
LARGE_DOWN_MS = 1000.0
HAND, HANDS = "by hand", "by hand, 4 at once"

Contender = Callable[[], Mapping[str, float]]


def measure(group: Group, world: World, loopbox: Loopbox, *, rounds: int) -> None:
    """Add the routers' rows to the group."""
    try:
        find_folder()
    except LoopboxError as err:
        group.absent["routers"] = str(err)
        return
    for size in QUICK_SIZES if rounds == 1 else SIZES:
        say(f"  {size} routers")
        bounds = [Goal("loopbox", other, 1.0) for other in (HAND, HANDS)]
        rows = {
            "up": Row(
                f"{size} routers: converged", "ms", False, HAND, bounds if size == LARGE else []
            ),
            "down": Row(
                f"{size} routers: down",
                "ms",
                False,
                HAND,
                [Goal("loopbox", "", LARGE_DOWN_MS)] if size == LARGE else [],
            ),
            "memory": Row(f"{size} routers: memory of one", "MiB", False, HAND),
        }
        group.rows += rows.values()
        file = world.folder / f"routers{size}.toml"
        file.write_text(ring(size), encoding="ascii")
        contenders: dict[str, Contender] = {"loopbox": partial(_by_loopbox, loopbox, file)}
        if os.getuid() == 0:
            contenders[HAND] = partial(_by_hand, world, file, at_once=1)
            contenders[HANDS] = partial(_by_hand, world, file, at_once=4)
        else:
            group.absent[HAND] = "a script as one would write it asks for root"
        take_together(rows, contenders, rounds=min(rounds, MOST_ROUNDS.get(size, rounds)))


def ring(size: int) -> str:
    """A ring with a chord at every fifth router, OSPF everywhere, two route reflectors."""
    text = "".join(
        f'[box.r{number}]\nloopback = "auto"\nospf = true\n'
        f"bgp = {{ as = 65000, reflector = {str(number < 2).lower()} }}\n"
        for number in range(size)
    )
    pairs = [(number, (number + 1) % size) for number in range(size)]
    if size >= QUICK_SIZES[-1]:
        pairs += [(number, number + size // 2) for number in range(0, size // 2, 5)]
    return text + "".join(f'[[link]]\nends = ["r{near}", "r{far}"]\n' for near, far in pairs)


# -- loopbox ----------------------------------------------------------------------------------


def _by_loopbox(loopbox: Loopbox, file: Path) -> Mapping[str, float]:
    begun = time.perf_counter()
    loopbox.call("-q", "up", str(file), patience=PATIENCE_S)
    up = time.perf_counter()
    try:
        labs = Path(loopbox.env["XDG_RUNTIME_DIR"]) / "loopbox" / "labs"
        record = json.loads((labs / f"{file.stem}.json").read_text(encoding="utf-8"))
        memory = _memory_of_one(Path(record["runs"]), len(load(file).boxes))
    finally:
        told = time.perf_counter()
        loopbox.call("-q", "down", file.stem)
    gone = time.perf_counter()
    return {"up": (up - begun) * 1000, "down": (gone - told) * 1000, "memory": memory}


def _memory_of_one(runs: Path, count: int) -> float:
    """MiB of a router's daemons: those whose command lines name the folder of run directories."""
    mark = f"{runs}/".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes():
                    pids.append(int(entry.name))
    return memory_kib(pids) / 1024 / count


# -- by hand ----------------------------------------------------------------------------------


def _by_hand(world: World, file: Path, *, at_once: int) -> Mapping[str, float]:
    lab = load(file)
    with _run_folder() as runs:
        routers = {
            box.name: RouterDaemons(runs / box.name, files=render(lab, box)) for box in lab.boxes
        }
        for router in routers.values():
            router.write()
        script = runs / "routers.sh"
        script.write_text(_script(lab, runs, routers, at_once=at_once), encoding="ascii")
        views = [RouterView(lab, box, runs / box.name) for box in lab.boxes]
        return drive(
            world,
            in_own_run(str(script), own_pids=True),
            settle=partial(_settle, lab, views),
            look=lambda: {"memory": _memory_of_one(runs, len(lab.boxes))},
        )


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """FRR's user must reach it, paths must be short, and the script's /run is another."""
    folder = Path(tempfile.mkdtemp(prefix="lbh-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(lab: Lab, views: list[RouterView]) -> None:
    try:
        wait_converged(
            views,
            standing=partial(standing_sessions, lab),
            seconds=PATIENCE_S,
            tell=lambda _done, _all: None,
        )
    except LoopboxError as err:
        raise MeasurementError(str(err)) from err


def _script(lab: Lab, runs: Path, routers: Mapping[str, RouterDaemons], *, at_once: int) -> str:
    """A shell script: namespaces, settings, links, addresses, daemons; "up"; and all away."""
    names = " ".join(routers)
    lines = [f"for name in {names}; do ip netns add $name; done"]
    for box in lab.boxes:
        settings = " ".join(f"{key}={value}" for key, value in sysctls(box))
        lines.append(f"ip netns exec {box.name} sysctl -q -w {settings}")
    for link in lab.links:
        near, far = link.ends
        lines.append(
            f"ip link add {near.interface} netns {near.box} type veth "
            f"peer name {far.interface} netns {far.box}"
        )
    for box in lab.boxes:
        inside = ["link set lo up", *(f"address add {item} dev lo" for item in box.loopback)]
        for link in lab.links_of(box.name):
            end = link.end(box.name)
            inside += [f"address add {item} dev {end.interface}" for item in end.addresses]
            inside.append(f"link set {end.interface} up")
        batch = runs / f"{box.name}.batch"
        batch.write_text("\n".join(inside) + "\n", encoding="ascii")
        lines.append(f"ip -n {box.name} -batch {batch}")
    for name, router in routers.items():
        starts = [
            f"ip netns exec {name} {shlex.join(router.command(daemon))} -d"
            for daemon in router.daemons
        ]
        (runs / f"{name}.sh").write_text("\n".join(starts) + "\n", encoding="ascii")
    lines += [
        f"printf '%s\\n' {names} | xargs -P {at_once} -I NAME sh -e {runs}/NAME.sh",
        "echo up; read -r _",
        f"pids=$(cat {runs}/*/*.pid); kill $pids",
        "for pid in $pids; do while kill -0 $pid 2>/dev/null; do sleep 0.02; done; done",
        f"for name in {names}; do ip netns del $name; done",
    ]
    return "\n".join(lines) + "\n"
