"""Fifty boxes under load whose keeper is killed, and what many boxes cost."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import Sandbox, descriptors_of, until
from loopbox.wire.control import PROTOCOL, build, feed

pytestmark = pytest.mark.system

_BOXES = 50
_BACK = 1.0
"""Seconds within which all names are back, counted from the next command."""
_TURNS = 4
_SPIN = 0.1
"""Seconds of work to find out how much of a processor there is."""

# An echo server, and a client of it inside the same box that never stops talking to it. Either
# writes a word to the file if its connection ever breaks.
_ECHO = """
import _socket, os, sys, time
def connection(kind, address):
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    getattr(sock, kind)(address)
    return sock
server = connection('bind', ('127.0.0.1', 7000))
server.listen(64)
if not os.fork():
    try:
        client = connection('connect', ('127.0.0.1', 7000))
        turn = 0
        while True:
            client.sendall(b'%08d' % turn)
            got = b''
            while len(got) < 8:
                part = client.recv(8 - len(got))
                if not part: raise OSError('closed')
                got += part
            turn += 1
            os.pwrite(counter := os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b'%08d' % turn, 0)
            os.close(counter)
            time.sleep(0.05)
    except BaseException as error:
        open(sys.argv[1] + '.broken', 'w').write(repr(error))
        os._exit(1)
while True:
    fd, _address = server._accept()
    if not os.fork():
        sock = _socket.socket(fileno=fd)
        while data := sock.recv(65536):
            sock.sendall(data)
        os._exit(0)
    os.close(fd)
"""


def _echo_by_name(name: str) -> bool:
    """Whether the box of that name answers at the shared door."""
    request = f"GET / HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", 7000), 5) as client:
            client.sendall(request)
            got = b""
            while len(got) < len(request) and (part := client.recv(65536)):
                got += part
    except OSError:
        return False
    return got == request


def _count(path: Path) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text) if text else 0


def _share() -> float:
    """Which part of a processor this machine gives a program now, from what it gives this one."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < _SPIN:
        pass
    return _SPIN / (time.monotonic() - began)


def _kill_and_come_back(sandbox: Sandbox, names: list[str], load: Sequence[socket.socket]) -> float:
    """Seconds from the first command after the keeper's death until every name answers.

    Seconds of a processor of its own: where others run beside it, the part it was given counts.
    """
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    for connection in load:
        connection.close()
    until(lambda: not Path(f"/proc/{keeper}/ns/net").exists(), what="the keeper's death")
    shares = [_share()]
    began = time.monotonic()
    sandbox.ok("ls")
    back = [_echo_by_name(name) for name in names]
    seconds = time.monotonic() - began
    shares.append(_share())
    assert [True] * len(names) == back
    return seconds * min(1.0, sum(shares) / 2)


def test_killed_keeper_with_fifty_boxes_under_load(sandbox: Sandbox) -> None:
    """Programs and their own connections never notice; names are back with the next command."""
    words = (sys.executable, "-I", "-S", "-c", _ECHO)
    programs = [
        sandbox.start("run", "--name", f"b{n}", "--", *words, str(sandbox.root / f"count{n}"))
        for n in range(_BOXES)
    ]
    names = [f"b{n}" for n in range(_BOXES)]
    until(lambda: all(map(_echo_by_name, names)), deadline=60, what="50 boxes serving")
    load = [socket.create_connection(("127.0.0.1", 7000), 5) for _ in range(_BOXES)]
    for name, connection in zip(names, load, strict=True):
        head = f"GET / HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n".encode()
        connection.sendall(head + b"x" * 200_000)
    before = sandbox.json("ls")["boxes"]
    counts = [_count(sandbox.root / f"count{n}") for n in range(_BOXES)]

    # Whoever else uses the machine can make one turn slow, and never one fast.
    seconds = [_kill_and_come_back(sandbox, names, load)]
    while min(seconds) >= _BACK and len(seconds) < _TURNS:
        seconds.append(_kill_and_come_back(sandbox, names, []))
    print(f"seconds until all names were back: {seconds}")

    assert min(seconds) < _BACK
    assert [None] * _BOXES == [program.poll() for program in programs]
    until(
        lambda: all(_count(sandbox.root / f"count{n}") > counts[n] + 3 for n in range(_BOXES)),
        what="every program's own connection going on",
    )
    assert [] == list(sandbox.root.glob("*.broken"))
    after = sandbox.json("ls")["boxes"]
    for box in (*before, *after):
        box["processes"] = [p for p in box["processes"] if "time.sleep" not in p["command"]]
    assert [(b["name"], b["address"], b["created"]) for b in before] == [
        (b["name"], b["address"], b["created"]) for b in after
    ]


def _ask(sandbox: Sandbox, **fields: str) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(str(sandbox.runtime / "loopbox/keeper.sock"))
        client.sendall(build({"protocol": PROTOCOL, "version": "0.1.0", **fields}))
        data = b""
        while True:
            reply, data = feed(data)
            if reply is not None:
                return reply
            more = client.recv(1 << 20)
            assert more
            data += more


def _resident(pid: int) -> int:
    """Resident memory in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_many_boxes_cost_little_and_leave_nothing(sandbox: Sandbox) -> None:
    """200 boxes: under 8 KiB of the keeper's memory and 8 descriptors each, all given back."""
    sandbox.ok("run", "--", "true")
    until(lambda: sandbox.box_names() == [])
    keeper = sandbox.keeper_pid()
    assert keeper is not None
    warm = ",".join(f"w{n}" for n in range(20))
    _ask(sandbox, verb="make", names=warm)
    _ask(sandbox, verb="down", all="1")
    descriptors, memory = descriptors_of(keeper), _resident(keeper)
    made = _ask(sandbox, verb="make", names=",".join(f"m{n}" for n in range(200)))
    # Now, not after `ls`: its document of 200 boxes is no box's.
    grown = _resident(keeper) - memory

    assert 200 == len(json.loads(made["json"])["made"])
    assert len({box["address"] for box in sandbox.json("ls")["boxes"]}) == 200
    assert grown / 200 < 8
    assert (descriptors_of(keeper) - descriptors) / 200 <= 8
    _ask(sandbox, verb="down", all="1")
    until(lambda: descriptors_of(keeper) <= descriptors, what="the descriptors being given back")
    assert [] == list((sandbox.runtime / "loopbox/boxes").iterdir())
