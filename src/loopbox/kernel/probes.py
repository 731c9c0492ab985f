"""Single tries of the doctor: does this address, gateway, host answer, and how does it fail?

Owns: sockets with deadlines, and errno to outcome word. Everything aimed at the loopback is bound
to the loopback device (SO_BINDTODEVICE, unprivileged since Linux 5.7): a broken loopback must not
make us send 127/8 or ::1 onto a wire.

Must never: judge, retry, or take longer than told.

Example::

    try_tcp("127.0.0.1", device="lo").outcome      # "ok"
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from loopbox.kernel.facts import read_network
from loopbox.rules.addressing import is_loopback
from loopbox.rules.doctor.observed import Attempt, GatewaySeen
from loopbox.rules.network import Address

LOCAL_SECONDS = 1.5
"""A loopback that takes longer than this does not answer."""
_GATEWAY_SECONDS = 1.2
_STALE_SECONDS = 9.0
"""The kernel doubts a stale neighbour for 5 s and then asks it three times, a second apart."""
_DISCARD = 9
_OUTCOMES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EAGAIN: "timeout",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "no-host",
    errno.EHOSTDOWN: "no-host",
    errno.EPERM: "filtered",
    errno.EACCES: "prohibited",
    errno.EINVAL: "invalid",
    errno.EADDRNOTAVAIL: "no-address",
    errno.EAFNOSUPPORT: "no-address",
}
_UNDERWAY = {0, errno.EINPROGRESS} | ({errno.EWOULDBLOCK} if sys.platform == "win32" else set())
"""What connect(2) says when it was not refused at once; Winsock has its own word."""
_ECHO = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0), 6: (socket.AF_INET6, 58, 128, 129)}
"""IP version to (family, protocol, echo request type, echo reply type)."""


def outcome_of(error: OSError) -> str:
    """The word for a failed system call."""
    if isinstance(error, TimeoutError):
        return "timeout"
    number = error.errno or 0
    return _OUTCOMES.get(number, errno.errorcode.get(number, "error").lower())


def timed(attempt: Callable[[], None]) -> Attempt:
    """Run one try; how it ended and how long it took."""
    start = time.perf_counter()
    try:
        attempt()
        outcome = "ok"
    except OSError as error:
        outcome = outcome_of(error)
    return Attempt(outcome, (time.perf_counter() - start) * 1000)


def family_of(address: str) -> socket.AddressFamily:
    """The socket family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def would_leak(place: tuple[str, int] | tuple[str, int, int, int]) -> bool:
    """Whether the kernel would send to `place` from a loopback address, over a wire.

    Without an address of its own on the way out, Linux takes ::1 or 127.0.0.1 as source. Asked by
    connecting a datagram socket, which sends nothing.
    """
    if is_loopback(ip_address(place[0].partition("%")[0])):
        return False
    try:
        with socket.socket(family_of(place[0]), socket.SOCK_DGRAM) as sock:
            sock.connect(place)
            return is_loopback(ip_address(sock.getsockname()[0].partition("%")[0]))
    except OSError:
        return False  # no route at all: the real attempt will say so, and send nothing


def _local_socket(address: str, kind: socket.SocketKind, device: str | None) -> socket.socket:
    """A socket that can only send through `device`, if one is named."""
    sock = socket.socket(family_of(address), kind)
    try:
        sock.settimeout(LOCAL_SECONDS)
        if device is not None:
            name = device.encode() + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
    except BaseException:
        sock.close()
        raise
    return sock


def try_tcp(address: str, *, device: str | None) -> Attempt:
    """A TCP connection to `address` of this device, and one byte.

    `device` is the loopback, for its own addresses. For others it is None: the kernel files IPv6's
    local routes under the interface that bears the address, so a socket bound to lo finds none.
    """

    def attempt() -> None:
        stream = socket.SOCK_STREAM
        with (
            _local_socket(address, stream, device) as server,
            _local_socket(address, stream, device) as client,
        ):
            server.bind((address, 0))
            server.listen(1)
            client.connect((address, server.getsockname()[1]))
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"x")
                accepted.settimeout(LOCAL_SECONDS)
                accepted.recv(1)

    return timed(attempt)


def try_udp(address: str, *, device: str | None) -> Attempt:
    """A datagram to `address` of this device over the loopback `device` (None: not Linux)."""

    def attempt() -> None:
        datagram = socket.SOCK_DGRAM
        with (
            _local_socket(address, datagram, device) as server,
            _local_socket(address, datagram, device) as client,
        ):
            server.bind((address, 0))
            client.sendto(b"x", server.getsockname())
            server.recv(1)

    return timed(attempt)


def try_ping(address: str, *, device: str) -> Attempt:
    """An ICMP echo over the loopback `device`; `not-permitted` when this user may not ping."""
    version = 6 if ":" in address else 4
    family, protocol, request, reply = _ECHO[version]
    token = os.urandom(16)
    body = struct.pack("!BBHHH", request, 0, 0, 0, 1) + token
    start = time.perf_counter()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            with socket.socket(family, kind, protocol) as sock:
                device_name = device.encode() + b"\0"
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device_name)
                packet = body if version == 6 else _with_checksum(body)
                sock.sendto(packet, (address, 0))
                _await_reply(sock, token, reply, is_raw4=kind == socket.SOCK_RAW and version == 4)
                return Attempt("ok", (time.perf_counter() - start) * 1000)
        except PermissionError:
            continue
        except OSError as error:
            return Attempt(outcome_of(error), (time.perf_counter() - start) * 1000)
    return Attempt("not-permitted")


def _await_reply(sock: socket.socket, token: bytes, reply: int, *, is_raw4: bool) -> None:
    """Wait for our own echo reply among whatever else arrives."""
    deadline = time.monotonic() + LOCAL_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        data = sock.recv(2048)
        if is_raw4:
            data = data[(data[0] & 15) * 4 :]
        if data[:1] == bytes([reply]) and token in data:
            return
    raise TimeoutError


def _with_checksum(packet: bytes) -> bytes:
    """An ICMP message with its checksum (RFC 792); the kernel does it for ping sockets and IPv6."""
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]


def try_gateway(
    address: Address, *, index: int, device: str, settled: threading.Event
) -> GatewaySeen:
    """Make the kernel look for the gateway, and read what it found.

    One datagram to the discard port; a refusal is an answer, and so is a neighbour entry that
    becomes reachable. A stale entry is waited upon until the kernel has made up its mind, unless
    `settled` says that a host beyond the gateway has answered.
    """
    start = time.monotonic()
    state, attempt = "none", Attempt("timeout")
    target = (
        (str(address), _DISCARD, 0, index) if address.version == 6 else (str(address), _DISCARD)
    )
    with socket.socket(family_of(str(address)), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            if would_leak(target):
                return GatewaySeen(address, device, "none", Attempt("no-address"))
            sock.connect(target)
            sock.send(b"loopbox doctor")
        except OSError as error:
            attempt = Attempt(outcome_of(error))
        pause = threading.Event()
        while True:
            attempt = _refused(sock) or attempt
            state = _neighbour_state(address, index)
            spent = time.monotonic() - start
            if attempt.outcome == "refused" or state in (
                "reachable",
                "permanent",
                "noarp",
                "failed",
            ):
                break
            undecided = state in ("stale", "delay", "probe", "incomplete")
            if spent > (_STALE_SECONDS if undecided else _GATEWAY_SECONDS):
                break
            if settled.is_set() and spent > _GATEWAY_SECONDS / 4:
                break
            pause.wait(0.02)
    return GatewaySeen(address, device, state, attempt)


def _refused(sock: socket.socket) -> Attempt | None:
    try:
        sock.recv(1)
    except ConnectionRefusedError:
        return Attempt("refused")
    except OSError:
        return None
    return Attempt("ok")


def _neighbour_state(address: Address, index: int) -> str:
    for entry in read_network().neighbours:
        if entry.address == address and entry.index == index:
            return entry.state
    return "none"


def try_remote(
    targets: Sequence[tuple[str, int]], *, seconds: float, ask: bytes | None = None
) -> list[Attempt]:
    """TCP connections to all targets at once; the first that works ends the wait for the others.

    With `ask` a connection counts only when that request brought an answer: where a relay accepts
    in the target's stead, connecting alone proves nothing.
    """
    start = time.monotonic()
    attempts = [Attempt("timeout", seconds * 1000) for _ in targets]
    with selectors.DefaultSelector() as waiting:
        sockets: list[socket.socket] = []
        try:
            for number, (host, port) in enumerate(targets):
                if would_leak((host, port)):
                    attempts[number] = Attempt("no-address")
                    continue
                sock = socket.socket(family_of(host), socket.SOCK_STREAM)
                sockets.append(sock)
                sock.setblocking(False)
                error = sock.connect_ex((host, port))
                if error in _UNDERWAY:
                    waiting.register(sock, selectors.EVENT_WRITE, number)
                else:
                    attempts[number] = Attempt(outcome_of(OSError(error, "")))
            while waiting.get_map() and (left := start + seconds - time.monotonic()) > 0:
                for key, _events in waiting.select(left):
                    outcome = _progress(key, waiting, ask)
                    if outcome is not None:
                        spent = (time.monotonic() - start) * 1000
                        attempts[key.data] = Attempt(outcome, spent)
                if any(attempt.is_ok for attempt in attempts):
                    break
        finally:
            for sock in sockets:
                sock.close()
    return attempts


def _progress(
    key: selectors.SelectorKey, waiting: selectors.BaseSelector, ask: bytes | None
) -> str | None:
    """One socket is ready: its outcome, or None when there is more to wait for."""
    sock = key.fileobj
    assert isinstance(sock, socket.socket)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        waiting.unregister(sock)
        return outcome_of(OSError(error, ""))
    if ask is None:
        waiting.unregister(sock)
        return "ok"
    if key.events == selectors.EVENT_WRITE:
        try:
            sock.send(ask)
        except OSError as problem:
            waiting.unregister(sock)
            return outcome_of(problem)
        waiting.modify(sock, selectors.EVENT_READ, key.data)
        return None
    waiting.unregister(sock)
    try:
        return "ok" if sock.recv(1) else "reset"
    except OSError as problem:
        return outcome_of(problem)
