"""Asking name servers directly, and the C library beside them.

Owns: one UDP exchange per server with several questions at once, getaddrinfo(3) under a deadline.

Must never: send to a loopback name server when the loopback does not work (the caller says so),
judge the answers.

Example::

    ask_server("192.168.1.1", ["dns.google"]).answers      # {"dns.google": ("8.8.8.8", ...)}
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Sequence

from loopbox.kernel.probes import family_of, outcome_of, would_leak
from loopbox.rules.doctor.observed import ServerSeen

SERVER_SECONDS = 2.5
_RESEND = 0.8
_CODES = {0: "noerror", 2: "servfail", 3: "nxdomain", 5: "refused-by-policy"}


def ask_server(server: str, names: Sequence[str], *, port: int = 53) -> ServerSeen:
    """Ask one server for the IPv4 addresses of all names; takes at most SERVER_SECONDS."""
    # 30 ms that other commands need not pay.
    from dnslib import DNSRecord  # type: ignore[import-untyped]  # noqa: PLC0415

    start = time.monotonic()
    questions = {random.randrange(1 << 16): name for name in names}
    packets = []
    for number, name in questions.items():
        query = DNSRecord.question(name, "A")
        query.header.id = number
        packets.append(query.pack())
    answers: dict[str, tuple[str, ...]] = {}
    codes: dict[str, str] = {}
    try:
        place = _place(server, port)
        if would_leak(place):
            return ServerSeen(server, "no-address")
        with socket.socket(family_of(server), socket.SOCK_DGRAM) as sock:
            sock.connect(place)
            _converse(sock, packets, questions, answers, codes)
        outcome = _outcome(codes)
    except OSError as error:
        outcome = outcome_of(error)
    return ServerSeen(server, outcome, answers, codes, (time.monotonic() - start) * 1000)


def _converse(
    sock: socket.socket,
    packets: list[bytes],
    questions: dict[int, str],
    answers: dict[str, tuple[str, ...]],
    codes: dict[str, str],
) -> None:
    """Send (twice if need be) and collect until every question is answered or time is up."""
    start, sends = time.monotonic(), 0
    while len(codes) < len(questions):
        spent = time.monotonic() - start
        if spent > SERVER_SECONDS:
            if not codes:
                raise TimeoutError
            return
        if spent >= sends * _RESEND and sends < 2:
            for packet in packets:
                sock.send(packet)
            sends += 1
        sock.settimeout(max(0.01, (_RESEND if sends < 2 else SERVER_SECONDS) - spent))
        try:
            _record(sock.recv(4096), questions, answers, codes)
        except TimeoutError:
            continue


def _record(
    data: bytes,
    questions: dict[int, str],
    answers: dict[str, tuple[str, ...]],
    codes: dict[str, str],
) -> None:
    from dnslib import QTYPE, DNSRecord  # noqa: PLC0415

    try:
        reply = DNSRecord.parse(data)
        name = questions.get(reply.header.id)
        if name is None or not reply.header.qr:
            return
        codes[name] = _CODES.get(reply.header.rcode, f"code {reply.header.rcode}")
        answers[name] = tuple(str(rr.rdata) for rr in reply.rr if QTYPE[rr.rtype] == "A")
    except Exception:  # a malformed reply of any kind is no reply
        return


def _outcome(codes: dict[str, str]) -> str:
    """ok when any question got a real answer, else the first server failure."""
    found = list(codes.values())
    if any(code in ("noerror", "nxdomain") for code in found):
        return "ok"
    return found[0] if found else "timeout"


def _place(server: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What connect(2) takes; a link-local server carries its zone."""
    if "%" not in server:
        return server, port
    address, _, zone = server.partition("%")
    return address, port, 0, socket.if_nametoindex(zone)


def look_up(name: str, *, seconds: float) -> tuple[tuple[str, ...], str | None]:
    """(addresses in the C library's order, error) of getaddrinfo(3), within `seconds`.

    The look-up itself cannot be cancelled: its thread is left behind when time is up.
    """
    found: list[tuple[tuple[str, ...], str | None]] = []

    def ask() -> None:
        try:
            records = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            texts = dict.fromkeys(str(record[4][0]) for record in records)
            found.append((tuple(texts), None))
        except (OSError, UnicodeError) as error:
            found.append(((), str(getattr(error, "strerror", None) or error)))

    thread = threading.Thread(target=ask, name="look-up", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else ((), "timeout")
