"""Inside a box against the host's own loopback: the same programs, the same ports.

Owns: which programs and the goal of 0.97. Must never: relay anything; client and server are both
in the box, or both outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from bench import loads, peers
from bench.harness import Goal, Group, Row, take_rounds
from bench.loads import Target
from bench.world import World, family, pinned

GOAL = Goal(
    "box",
    "host",
    0.97,
    note="each packet of the box passes two netfilter hooks (guard and way out), 3 to 4 % of the "
    "smallest requests on one core. Tried: without the guard's outgoing half 0.976, a table for "
    "each address family 0.98; the guard stays whole, in one table.",
)
BOX = "bench"
WEB, IPERF, REDIS = 18600, 18601, 18602
REDIS_REQUESTS = 100_000

TEXT = """Client and server on the host's own loopback (*host*), and the same client and server,
started by `loopbox run`, on the loopback of a box (*box*). Nothing is relayed: this is the kernel's
`lo` in both cases, so what is measured is whether the box puts anything in the way. Client and
server are held on one core: otherwise what is measured is where the scheduler puts them, which
differs by a fifth from run to run."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; raises MeasurementError where there is no box."""
    group = Group("inside", "Inside a box", TEXT)
    with World() as world:
        loopbox = world.loopbox("inside")
        servers = (
            peers.web_command(world, WEB),
            ["iperf3", "-s", "-p", str(IPERF)],
            ["redis-server", "--port", str(REDIS), "--save", "", "--bind", "127.0.0.1"],
        )
        started = []
        for command in servers:
            started += [world.start(command).pid, loopbox.run(BOX, command).pid]
        address = loopbox.address(BOX)
        for port in (WEB, IPERF, REDIS):
            world.wait_for("127.0.0.1", port)
            world.wait_for(address, port)
        through = {"host": (), "box": loopbox.through("exec", BOX, "--")}

        def add(title: str, unit: str, load: Callable[[Target], float], *, port: int) -> None:
            row = Row(title, unit, True, "host", [GOAL])
            group.rows.append(row)

            def run(words: tuple[str, ...]) -> float:
                with pinned([os.getpid(), *family(started)], {min(os.sched_getaffinity(0))}):
                    return load(Target("127.0.0.1", port, through=words))

            def job(words: tuple[str, ...]) -> Callable[[], float]:
                return lambda: run(words)

            jobs = {name: job(words) for name, words in through.items()}
            take_rounds(row, jobs, rounds=rounds)

        for streams in (1, 4):
            title = f"iperf3, {streams} stream{'s'[: streams > 1]}"
            add(title, "MB/s", partial(loads.iperf3, streams=streams, seconds=seconds), port=IPERF)
        for test, pipeline in (("set", 1), ("get", 1), ("get", 16)):
            title = f"redis-benchmark {test.upper()}" + f", pipeline {pipeline}" * (pipeline > 1)
            load = partial(
                loads.redis_benchmark,
                test=test,
                requests=REDIS_REQUESTS * pipeline,
                pipeline=pipeline,
            )
            add(title, "1/s", load, port=REDIS)
        for connections in (1, 32, 256):
            title = f"wrk on nginx, {connections} connection{'s'[: connections > 1]}"
            rate = partial(_request_rate, connections=connections, seconds=seconds)
            add(title, "1/s", rate, port=WEB)
    return group


def _request_rate(target: Target, *, connections: int, seconds: float) -> float:
    return loads.wrk(target, connections=connections, seconds=seconds).requests_per_second
