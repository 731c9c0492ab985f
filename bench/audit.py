"""`audit` of a host with 500 listeners and 100 boxes against `ss -lntup` in each namespace.

Owns: the situation (bare namespaces with a guard, two listeners in each, 500 on the host), and the
time of `doctor` on a healthy machine. It is made by a process of its own, whose network and mounts
go with it. Needs root.

Must never: leave a namespace or a socket behind, compare runs of different moments: the two sides
are measured in turns.

Example::

    sudo python -m bench.audit --runs 5
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from dnslib import QTYPE, RCODE, RR, A, DNSRecord  # type: ignore[import-untyped]

from bench.harness import Goal, Group, MeasurementError, Row, say, wait_for_quiet
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
DOCTOR_MS = 1000.0

TEXT = f"""A host with {LISTENERS} listeners and {BOXES} boxes with {BOX_LISTENERS} each. *loopbox*
is all of `loopbox audit --all` but the interpreter's start: every listener with its process, its
reach as the firewall has it, and the verdict. *ss* is `ss -lntup` on the host and, by `nsenter`, in
each box: the list alone. The doctor climbs its whole ladder in a network in which all is well, its
start included."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; `seconds` plays no part."""
    del seconds
    if os.getuid() != 0:
        raise MeasurementError("it makes network namespaces: run as root")
    group = Group("audit", "Looking at everything", TEXT)
    audit = Row("audit of all", "ms", False, "ss", [Goal("loopbox", "ss", 1.0)])
    doctor = Row("doctor, healthy machine", "ms", False, "", [Goal("loopbox", "", DOCTOR_MS)])
    group.rows += [audit, doctor]
    audit.disturbed = doctor.disturbed = int(not wait_for_quiet())
    command = [sys.executable, "-m", "bench.audit", "--runs", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementError(done.stderr.strip().rpartition("\n")[2])
    found = json.loads(done.stdout)
    for row, contender, key in (
        (audit, "loopbox", "audit_s"),
        (audit, "ss", "ss_s"),
        (doctor, "loopbox", "doctor_s"),
    ):
        row.samples[contender] = [taken * 1000 for taken in found[key]]
    group.notes.append(
        f"{found['listeners']} listeners were judged; the doctor says: {found['doctor_says']}."
    )
    say(f"  audit {audit.ratio('loopbox'):.2f} of ss, doctor {doctor.median('loopbox'):.0f} ms")
    return group


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
    """The process in its own network: measure in turns and print one JSON document."""
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
    doctor = [sys.executable, "-m", "loopbox", "doctor"]
    check = subprocess.run(doctor, check=False, capture_output=True, text=True)
    doctors = [
        timed(lambda: subprocess.run(doctor, check=False, stdout=subprocess.DEVNULL))
        for _ in range(options.runs)
    ]
    document = {
        "listeners": count,
        "doctor_says": check.stdout.splitlines()[-1],
        "audit_s": audits,
        "ss_s": sses,
        "doctor_s": doctors,
    }
    print(json.dumps(document))
    for sock in sockets:
        sock.close()
    for descriptor in (*descriptors, world):
        os.close(descriptor)


if __name__ == "__main__":
    main()
