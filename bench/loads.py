"""The clients: what is asked of each contender, and the number that comes out.

Owns: the command lines of wrk, iperf3 and redis-benchmark, how their output is read, and the
few clients of our own. Must never: know who is measured. Each raises MeasurementError.

Example::

    wrk(Target("127.0.0.1", 8000), connections=32, seconds=2).requests_per_second
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness import MeasurementError

BUFFER = 256 * 1024
UPLOAD_BYTES = 1 << 30
"""Bytes of one upload, sent again and again until the time is over."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a contender is reached."""

    address: str
    port: int
    host: str = "localhost"
    """What goes into the `Host` header."""
    through: tuple[str, ...] = ()
    """Words in front of the client's command line, to run it somewhere else."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk saw."""

    requests_per_second: float
    p50_us: float
    p99_us: float


def wrk(target: Target, *, connections: int, seconds: float, close: bool = False) -> Requests:
    """Requests over kept connections, or over a new connection each with `close`."""
    headers = ["-H", f"Host: {target.host}"] + (["-H", "Connection: close"] if close else [])
    threads = "1" if connections < 64 else "2"
    url = f"http://{target.address}:{target.port}/"
    text = _output(
        [
            *(
                *target.through,
                "wrk",
                "--latency",
                "-t",
                threads,
                "-c",
                str(connections),
                "-d",
                f"{seconds:.0f}s",
            ),
            *(*headers, url),
        ],
        seconds=seconds,
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if bad:
        raise MeasurementError(f"{bad[1]} answers were errors")
    # Reads fail by the dozen when wrk itself ends `Connection: close` requests; they are its own.
    if errors and (int(errors[1]) or int(errors[4])):
        raise MeasurementError(errors[0])
    if rate is None or float(rate[1]) == 0:
        raise MeasurementError("no request was answered")
    return Requests(float(rate[1]), _latency_us(text, 50), _latency_us(text, 99))


def iperf3(target: Target, *, streams: int, seconds: float) -> float:
    """Megabytes a second from client to server."""
    command = [
        *(*target.through, "iperf3", "-J", "-c", target.address, "-p", str(target.port)),
        *("-P", str(streams)),
    ]
    report = json.loads(_output([*command, "-t", f"{seconds:.0f}"], seconds=seconds))
    if "error" in report:
        raise MeasurementError(report["error"])
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8e6


def redis_benchmark(target: Target, *, test: str, requests: int, pipeline: int = 1) -> float:
    """Operations a second of one redis-benchmark test, 50 clients."""
    command = [
        *(*target.through, "redis-benchmark", "-h", target.address, "-p", str(target.port)),
        *("-t", test),
    ]
    text = _output([*command, "-n", str(requests), "-P", str(pipeline), "--csv"], seconds=30)
    match = re.search(r'^"[^"]+","([\d.]+)"', text, re.MULTILINE)
    if match is None:
        raise MeasurementError("redis-benchmark said nothing")
    return float(match[1])


def download(target: Target, *, seconds: float) -> float:
    """Megabytes a second read from a bulk server."""
    with _connected(target) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode())
        buffer = bytearray(BUFFER)
        taken = 0
        start = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            count = connection.recv_into(buffer)
            if not count:
                raise MeasurementError("the download ended early")
            taken += count
        if taken < BUFFER:
            raise MeasurementError("next to nothing arrived")
        return taken / (now - start) / 1e6


def upload(target: Target, *, seconds: float) -> float:
    """Megabytes a second written to a bulk server, the last byte acknowledged."""
    block = bytes(BUFFER)
    sent = 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        with _connected(target) as connection:
            head = (
                f"POST / HTTP/1.1\r\nHost: {target.host}\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
            )
            connection.sendall(head.encode())
            for _ in range(UPLOAD_BYTES // BUFFER):
                connection.sendall(block)
            if b" 200 " not in connection.recv(4096):
                raise MeasurementError("the upload was not acknowledged")
            sent += UPLOAD_BYTES
    return sent / (time.monotonic() - start) / 1e6


def open_idle(target: Target, count: int) -> list[socket.socket]:
    """Open connections that each did one request and then keep still; the caller closes them."""
    opened: list[socket.socket] = []
    request = f"GET / HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode()
    try:
        for _ in range(count):
            connection = _connected(target)
            opened.append(connection)
            connection.sendall(request)
            if not connection.recv(4096):
                raise MeasurementError(f"connection {len(opened)} was closed")
    except (OSError, MeasurementError) as err:
        close_all(opened)
        raise MeasurementError(f"after {len(opened)} idle connections: {err}") from err
    return opened


def wait(seconds: float) -> None:
    """Let the measured thing be idle for a while."""
    time.sleep(seconds)


def close_all(connections: Sequence[socket.socket]) -> None:
    """Close them."""
    for connection in connections:
        connection.close()


def _connected(target: Target) -> socket.socket:
    try:
        connection = socket.create_connection((target.address, target.port), timeout=20)
    except OSError as err:
        raise MeasurementError(f"cannot connect: {err}") from err
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _latency_us(text: str, percentile: int) -> float:
    match = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s)\s*$", text, re.MULTILINE)
    if match is None:
        raise MeasurementError("wrk gave no latency")
    return float(match[1]) * {"us": 1.0, "ms": 1e3, "s": 1e6}[match[2]]


def _output(command: Sequence[str], *, seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 30, check=False
        )
    except FileNotFoundError as err:
        raise MeasurementError(f"{command[0]} is not installed") from err
    except subprocess.TimeoutExpired as err:
        raise MeasurementError(f"{command[0]} did not end") from err
    if done.returncode != 0:
        raise MeasurementError((done.stderr or done.stdout).strip()[-200:])
    return done.stdout
