"""`audit` of a host with 500 listeners and 100 boxes against `ss -lntup` in each namespace.

Owns: the situation (bare namespaces with a guard, two listeners in each, 500 on the host), and the
time of `doctor` on a healthy machine. Everything stays in namespaces made here. Needs root.

Must never: leave a namespace or a socket behind, compare runs of different moments: the two sides
are measured in turns, and medians are shown.

Example::

    sudo python -m bench.bench_audit --runs 5
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from dnslib import QTYPE, RCODE, RR, A, DNSRecord  # type: ignore[import-untyped]

from loopbox.cli.audit_commands import findings_of
from loopbox.kernel import nft
from loopbox.kernel.namespaces import raise_lo
from loopbox.kernel.survey import Survey, survey
from loopbox.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    mount,
    setns,
    unshare,
)
from loopbox.rules.doctor.naming import KNOWN
from loopbox.rules.doctor.targets import TARGETS

LISTENERS, BOXES, BOX_LISTENERS = 500, 100, 2


def in_thread(function: Callable[[], object]) -> None:
    """Run `function` in a thread of its own, whose namespace may change."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def make_box(descriptors: list[int], sockets: list[socket.socket]) -> None:
    """A namespace as a box has it: lo up, guard, listeners."""

    def inside() -> None:
        unshare(CLONE_NEWNET)
        raise_lo()
        nft.install(with_way_out=False)
        descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        sockets.extend(socket.create_server(("0.0.0.0", 8000 + n)) for n in range(BOX_LISTENERS))

    in_thread(inside)


def make_world() -> int:
    """A healthy network for the doctor: a gateway that is also every host beyond it, and DNS.

    Gives the descriptor that keeps it alive. The resolver of this process (only) is pointed at it.
    """
    made: list[int] = []

    def far_side() -> None:
        unshare(CLONE_NEWNET)
        raise_lo()
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    in_thread(far_side)
    world = made[0]
    run_all(
        f"ip link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{world}",
        "ip addr add 192.168.7.1/24 dev eth0",
        "ip link set eth0 up",
    )

    def serve() -> None:
        setns(world, CLONE_NEWNET)
        run_all(
            "ip addr add 192.168.7.2/24 dev eth0",
            "ip link set eth0 up",
            *(f"ip addr add {address}/32 dev lo" for address, _port in TARGETS),
        )
        server = socket.create_server(("0.0.0.0", 443), backlog=100)
        names = socket.socket(type=socket.SOCK_DGRAM)
        names.bind(("192.168.7.2", 53))
        ready.set()
        with server:
            answer_names(names)

    ready = threading.Event()
    threading.Thread(target=serve, daemon=True).start()
    ready.wait(10)
    run_all("ip route add default via 192.168.7.2")
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write("nameserver 192.168.7.2\n")
    mount(file.name, "/etc/resolv.conf", None, MS_BIND, None)
    os.unlink(file.name)
    return world


def run_all(*commands: str) -> None:
    """Run each command; a failure ends the measurement."""
    for command in commands:
        subprocess.run(command.split(), check=True)


def answer_names(sock: socket.socket) -> None:
    """Tell the truth about the names the doctor knows, for ever."""
    with sock:
        while True:
            data, peer = sock.recvfrom(4096)
            query = DNSRecord.parse(data)
            reply = query.reply()
            known = KNOWN.get(str(query.q.qname).rstrip("."))
            if known is None:
                reply.header.rcode = RCODE.NXDOMAIN
            elif query.q.qtype == QTYPE.A:
                for address in known:
                    reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=1))
            sock.sendto(reply.pack(), peer)


def audit_all(descriptors: list[int]) -> int:
    """What `loopbox audit` does: look everywhere, judge everything. Gives the count."""
    places: dict[str, Survey] = {"host": survey()}

    def visit() -> None:
        for number, descriptor in enumerate(descriptors):
            setns(descriptor, CLONE_NEWNET)
            places[f"box{number}"] = survey(is_box=True)

    in_thread(visit)
    return len(findings_of(places))


def ss_all(descriptors: list[int]) -> None:
    """`ss -lntup` on the host and in each box."""
    command = ["ss", "-H", "-lntup"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for descriptor in descriptors:
        subprocess.run(
            ["nsenter", f"--net=/proc/self/fd/{descriptor}", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor],
        )


def timed(work: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--boxes", type=int, default=BOXES)
    parser.add_argument("--listeners", type=int, default=LISTENERS)
    options = parser.parse_args()
    unshare(CLONE_NEWNET)
    raise_lo()
    world = make_world()
    descriptors: list[int] = []
    sockets = [
        socket.create_server(("127.0.0.1" if n % 2 else "0.0.0.0", 10000 + n))
        for n in range(options.listeners)
    ]
    for _ in range(options.boxes):
        make_box(descriptors, sockets)
    count = audit_all(descriptors)
    audits, sses = [], []
    for _ in range(options.runs):
        audits.append(timed(lambda: audit_all(descriptors)))
        sses.append(timed(lambda: ss_all(descriptors)))
    check = subprocess.run(
        [sys.executable, "-m", "loopbox", "doctor"], check=False, capture_output=True, text=True
    )
    doctor = [
        timed(
            lambda: subprocess.run(
                [sys.executable, "-m", "loopbox", "doctor", "--json"],
                check=False,
                stdout=subprocess.DEVNULL,
            )
        )
        for _ in range(options.runs)
    ]
    audit_s, ss_s = statistics.median(audits), statistics.median(sses)
    print(
        json.dumps(
            {
                "listeners": count,
                "boxes": options.boxes,
                "audit_s": round(audit_s, 3),
                "ss_s": round(ss_s, 3),
                "audit_over_ss": round(audit_s / ss_s, 2),
                "doctor_says": check.stdout.splitlines()[-1],
                "doctor_s": round(statistics.median(doctor), 3),
            },
            indent=2,
        )
    )
    for sock in sockets:
        sock.close()
    for descriptor in (*descriptors, world):
        os.close(descriptor)


if __name__ == "__main__":
    main()
