"""How long until a program runs: `loopbox run -- true` against a bare interpreter and the peers.

Owns: the commands that are compared. A sample is the median of a handful of runs in a row, each
from the fork to the end of the process. Must never: count the keeper's own start.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from bench import peers
from bench.harness import Goal, Group, MeasurementError, Row, say, take_rounds
from bench.world import World

RUNS = 15

TEXT = """From the fork to the end of a process that does nothing, in a place of its own. The keeper
runs already. *python* is the bare interpreter that `loopbox` itself runs on, the floor for a
command written in Python; *existing box* is `loopbox run -- true` in a box that is up, *new box*
makes one each time and leaves it to go. podman runs `/bin/true` of this machine
(`--rootfs /:O`, without a network); portless gets a running proxy and a name each time."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; `seconds` has no meaning here."""
    del seconds
    group = Group("startup", "Starting a program", TEXT)
    row = Row(
        "start to end",
        "ms",
        False,
        "python -c pass",
        [
            Goal("existing box", "python -c pass", 2.0),
            Goal("new box", "python -c pass", 3.0),
            Goal("existing box", "podman", 1.0),
            Goal("existing box", "portless", 1.0),
        ],
    )
    group.rows.append(row)
    with World() as world:
        contenders: dict[str, Callable[[], float]] = {}
        for name, make in _commands(world).items():
            try:
                timer = make()
                timer()
            except (MeasurementError, OSError) as err:
                group.absent[name] = str(err)
                say(f"  without {name}: {err}")
            else:
                contenders[name] = timer
        take_rounds(row, contenders, rounds=rounds)
    return group


def _commands(world: World) -> dict[str, Callable[[], Callable[[], float]]]:
    """Contender to a function that prepares it and returns its timer."""

    def plain(*words: str) -> Callable[[], Callable[[], float]]:
        return lambda: _timer(lambda: words, env=os.environ)

    root = os.getuid() == 0
    return {
        "true": plain("true"),
        "python -c pass": plain(sys.executable, "-c", "pass"),
        "existing box": lambda: _existing_box(world),
        "new box": lambda: _new_box(world),
        "unshare": plain("unshare", "-n" if root else "-Urn", "true"),
        "bubblewrap": plain("bwrap", "--dev-bind", "/", "/", "--unshare-net", "true"),
        "podman": plain(
            *("podman", "run", "--rm", "--network=none", "--rootfs", "/:O", "/bin/true")
        ),
        "portless": lambda: _portless(world),
    }


def _existing_box(world: World) -> Callable[[], float]:
    loopbox = world.loopbox("existing")
    loopbox.call("run", "--name", "existing", "--keep", "--", "true")
    words = (str(loopbox.program), "run", "--name", "existing", "--", "true")
    return _timer(lambda: words, env=loopbox.env)


def _new_box(world: World) -> Callable[[], float]:
    loopbox = world.loopbox("new")
    loopbox.call("run", "--name", "first", "--keep", "--", "true")
    numbers = itertools.count()
    return _timer(
        lambda: (str(loopbox.program), "run", "--name", f"new-{next(numbers)}", "--", "true"),
        env=loopbox.env,
    )


def _portless(world: World) -> Callable[[], float]:
    program, env, _ = peers.start_portless_proxy(world, port=18510)
    return _timer(lambda: (str(program), "run", "--name", "start", "true"), env=env)


def _timer(words: Callable[[], tuple[str, ...]], *, env: Mapping[str, str]) -> Callable[[], float]:
    """A function that runs the command RUNS times and returns the median in milliseconds."""

    def run() -> float:
        taken = []
        for _ in range(RUNS):
            command = words()
            program = shutil.which(command[0])
            if program is None:
                raise MeasurementError(f"{command[0]} is not installed")
            start = time.perf_counter()
            pid = os.posix_spawn(
                program,
                command,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            taken.append((time.perf_counter() - start) * 1000)
            if status != 0:
                raise MeasurementError(_complaint(command, env))
        return statistics.median(taken)

    return run


def _complaint(command: tuple[str, ...], env: Mapping[str, str]) -> str:
    """What a failing command says, for the page."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(env), check=False)
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"ended with status {done.returncode}"
