"""The front door against a direct connection, HAProxy, socat, pasta and portless.

Owns: which rows there are and their goals. Must never: start a process itself (`peers` does).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from bench import loads, peers
from bench.harness import Goal, Group, MeasurementError, Row, say, take_rounds, take_together
from bench.loads import Target
from bench.peers import Contender
from bench.world import World, cpu_seconds, memory_kib, pinned

RIVALS = ("HAProxy", "socat", "pasta", "portless")
IDLE_CONNECTIONS = 1000

SHARED = """Three processes share two cores where the direct way has two: what the relay uses comes
out of the client's and the server's share. Tried: copies only, splice only, two blocking threads a
connection: all slower or dearer."""
CHECKED = """Each connection is asked whose it is (sock_diag, 5 % of the relay's time), is dialled
in another network namespace past its guard, and all pass one thread, where HAProxy has one a core.
What helped: the last bytes and the FIN in one segment."""
WHOLE = """The process is the whole keeper: a Python interpreter with asyncio, DNS and the front
door of every box. Tried: leaving the TLS and hashing libraries out (saves 1.5 MiB). The row below
is what connections add."""
TEXT = """The client is on the host's loopback, the server behind a relay: the front door of a box,
HAProxy (TCP mode, `splice-auto`) and socat in front of the same server on one loopback, pasta in
front of a namespace of its own, portless (HTTP only) by `Host`. *Direct* is no relay at all.
Client, relay and server share the cores of this machine. Bulk goes through one connection;
requests are answered by nginx with 19 bytes and measured by wrk. The rows with one connection are
taken with client, relay and server on one core: otherwise they measure how fast cores wake up."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group."""
    group = Group("frontdoor", "Front door", TEXT)
    with World() as world:
        contenders = _start(world, group)
        fresh = {name: memory_kib(each.relay_pids()) for name, each in contenders.items()}
        _bulk(group, contenders, rounds=rounds, seconds=seconds)
        _requests(group, contenders, rounds=rounds, seconds=seconds)
        _idle(group, contenders, fresh, rounds=min(rounds, 3), seconds=seconds)
    return group


def _start(world: World, group: Group) -> dict[str, Contender]:
    direct = peers.start_direct(world)
    found = {direct.name: direct}
    starters: dict[str, Callable[[], tuple[Contender, ...]]] = {
        "loopbox": lambda: peers.start_loopbox(world),
        "loopbox, pure Python": lambda: peers.start_loopbox(world, pure=True)[:1],
        "HAProxy": lambda: (peers.start_haproxy(world, direct),),
        "socat": lambda: (peers.start_socat(world, direct),),
        "pasta": lambda: (peers.start_pasta(world),),
        "portless": lambda: (peers.start_portless(world, direct),),
    }
    for name, start in starters.items():
        try:
            found |= {contender.name: contender for contender in start()}
        except (MeasurementError, OSError) as err:
            group.absent[name] = str(err)
            say(f"  without {name}: {err}")
    return found


def _ahead(bound_of_direct: float | None = None, *, note: str = "") -> list[Goal]:
    goals = (
        [] if bound_of_direct is None else [Goal("loopbox", "direct", bound_of_direct, note=SHARED)]
    )
    return goals + [Goal("loopbox", rival, 1.0, note=note) for rival in RIVALS]


def _bulk(group: Group, contenders: dict[str, Contender], *, rounds: int, seconds: float) -> None:
    def job(load: Callable[..., float], target: Target) -> Callable[[], float]:
        return lambda: load(target, seconds=seconds)

    for title, load in (
        ("bulk, to the client", loads.download),
        ("bulk, to the server", loads.upload),
    ):
        row = Row(title, "MB/s", True, "direct", _ahead(0.9))
        group.rows.append(row)
        jobs = {name: job(load, each.bulk) for name, each in contenders.items()}
        take_rounds(row, jobs, rounds=rounds)


def _requests(
    group: Group, contenders: dict[str, Contender], *, rounds: int, seconds: float
) -> None:
    latency = {
        "rate": Row("requests, 1 connection", "1/s", True, "direct", _ahead()),
        "p50": Row("latency p50, 1 connection", "us", False, "direct", _ahead()),
        "p99": Row("latency p99, 1 connection", "us", False, "direct", _ahead()),
    }
    group.rows += latency.values()

    def one(contender: Contender) -> dict[str, float]:
        pids = [os.getpid(), *contender.relay_pids(), *contender.server_pids()]
        with pinned(pids, {min(os.sched_getaffinity(0))}):
            got = loads.wrk(contender.web, connections=1, seconds=seconds)
        return {"rate": got.requests_per_second, "p50": got.p50_us, "p99": got.p99_us}

    def one_of(contender: Contender) -> Callable[[], dict[str, float]]:
        return lambda: one(contender)

    take_together(latency, {name: one_of(each) for name, each in contenders.items()}, rounds=rounds)
    group.notes += _added_latency(latency["p50"])

    def many_of(contender: Contender, connections: int, *, close: bool) -> Callable[[], float]:
        return lambda: (
            loads.wrk(
                contender.web, connections=connections, seconds=seconds, close=close
            ).requests_per_second
        )

    for title, connections, close, note in (
        ("requests, 32 connections", 32, False, ""),
        ("requests, 256 connections", 256, False, ""),
        ("new connections, 32 at once", 32, True, CHECKED),
    ):
        row = Row(title, "1/s", True, "direct", _ahead(note=note))
        group.rows.append(row)
        jobs = {name: many_of(each, connections, close=close) for name, each in contenders.items()}
        take_rounds(row, jobs, rounds=rounds)


def _added_latency(row: Row) -> list[str]:
    """What the relays add to the direct way, in words."""
    direct = row.median("direct")
    added = {
        name: median - direct
        for name in row.samples
        if name != "direct" and direct is not None and (median := row.median(name)) is not None
    }
    if not added:
        return []
    words = ", ".join(f"{name} {value:.0f}" for name, value in added.items())
    words = (
        f"Added to the direct latency at p50, in us (the aim for loopbox is 12): {words}. Each way "
        "through user space is two more sends, two more receives and two more changes of process: "
        "94 % of the relay's time is the kernel's, 68 % in send(2) alone (perf record, 6.18)."
    )
    return [words]


def _idle(
    group: Group,
    contenders: dict[str, Contender],
    fresh: dict[str, float],
    *,
    rounds: int,
    seconds: float,
) -> None:
    """`fresh` is each relay's memory in KiB before any work."""
    rows = {
        "memory": Row(
            "relay memory, 1,000 idle connections", "KiB", False, "HAProxy", _ahead(note=WHOLE)
        ),
        "each": Row(
            "relay memory, grown since the start, a connection", "KiB", False, "HAProxy", _ahead()
        ),
        "cpu": Row("relay CPU with 1,000 idle connections", "ms/s", False, "HAProxy"),
        "rate": Row("requests beside 1,000 idle, 32 connections", "1/s", True, "direct", _ahead()),
    }
    group.rows += rows.values()

    def measured(contender: Contender) -> dict[str, float]:
        opened = loads.open_idle(contender.web, IDLE_CONNECTIONS)
        try:
            pids = contender.relay_pids()
            numbers: dict[str, float] = {}
            if pids:
                numbers["memory"] = memory_kib(pids)
                numbers["each"] = (numbers["memory"] - fresh[contender.name]) / IDLE_CONNECTIONS
            used = cpu_seconds(pids)
            loads.wait(seconds)
            if pids:
                numbers["cpu"] = (cpu_seconds(pids) - used) / seconds * 1000
            got = loads.wrk(contender.web, connections=32, seconds=seconds)
            return numbers | {"rate": got.requests_per_second}
        finally:
            loads.close_all(opened)

    def of(contender: Contender) -> Callable[[], dict[str, float]]:
        return lambda: measured(contender)

    take_together(rows, {name: of(each) for name, each in contenders.items()}, rounds=rounds)
