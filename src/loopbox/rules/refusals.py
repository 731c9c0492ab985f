"""How a client at the front door is told that it is not let through, and why a door is shut.

Owns: the `Refusal`, its form in HTTP (plain text, a page for browsers) and in TLS (an alert), and
the words for a port of the host that cannot be opened.

Must never: decide whether to refuse (`rules.doors` does), quote what a peer sent unescaped.

Example::

    render(bad_head(400, "the request names no host"), accept="text/html")   # b"HTTP/1.1 400 …"
"""

from __future__ import annotations

import errno
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client is not let through, in HTTP's terms."""

    status: int
    title: str
    lines: tuple[str, ...] = ()
    """One sentence each."""
    links: tuple[str, ...] = ()
    """URLs that would lead somewhere."""


def no_answer(name: str, port: int) -> Refusal:
    """The listener was there a moment ago and does not take the connection."""
    return Refusal(
        503,
        f"box {name} does not answer on port {port}",
        (f"The server on port {port} of the box `{name}` refused the connection.",),
    )


def bad_head(status: int, reason: str) -> Refusal:
    """The bytes are no request that can be led to a box by name."""
    return Refusal(
        status,
        reason,
        (
            "This door serves HTTP and TLS by name: http://NAME.localhost.",
            "For any other protocol use the box's own address: loopbox address NAME",
        ),
    )


def http2_preface() -> Refusal:
    """HTTP/2 without TLS hides the host name in compressed frames."""
    return Refusal(
        400,
        "HTTP/2 without TLS cannot be routed by name",
        ("Use the box's own address (loopbox address NAME), HTTP/1.1, or TLS.",),
    )


def head_timeout(seconds: float) -> Refusal:
    """The client has not said in time for whom it is."""
    return Refusal(408, f"the request's head was not complete after {seconds:g} s")


_REASONS: Final[Mapping[int, str]] = {
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
    508: "Loop Detected",
}


def render(refusal: Refusal, *, accept: str = "", method: str = "GET") -> bytes:
    """The HTTP response: plain text, a small page for browsers, without body for HEAD.

    Whatever a peer has sent and is quoted here is escaped for the place it stands in.
    """
    if "text/html" in accept.lower():
        kind, body = "text/html", _render_page(refusal)
    else:
        kind, body = "text/plain", _render_text(refusal)
    content = body.encode("utf-8", "replace")
    head = [
        f"HTTP/1.1 {refusal.status} {_REASONS.get(refusal.status, 'Error')}",
        f"Content-Type: {kind}; charset=utf-8",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'",
        "Connection: close",
    ]
    if refusal.status == 503:
        head.append("Retry-After: 1")
    text = "\r\n".join(head).encode("ascii") + b"\r\n\r\n"
    return text if method == "HEAD" else text + content


def _render_text(refusal: Refusal) -> str:
    lines = [f"loopbox: {_on_one_line(refusal.title)}"]
    lines += [_on_one_line(line) for line in refusal.lines]
    lines += [f"  {_on_one_line(link)}" for link in refusal.links]
    return "\n".join(lines) + "\n"


def _render_page(refusal: Refusal) -> str:
    title = html.escape(_on_one_line(refusal.title))
    parts = [f"<p>{html.escape(_on_one_line(line))}</p>" for line in refusal.lines]
    if refusal.links:
        links = [html.escape(_on_one_line(link)) for link in refusal.links]
        items = "".join(f'<li><a href="{link}">{link}</a></li>' for link in links)
        parts.append(f"<ul>{items}</ul>")
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        f"<title>{title}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;"
        "padding:0 1em}</style>\n"
        f"<h1>{title}</h1>\n" + "\n".join(parts) + f"\n<p>loopbox, {refusal.status}</p></html>\n"
    )


def _on_one_line(text: str) -> str:
    """The text cut, with control characters escaped: it may be shown in a terminal."""
    cut = text if len(text) <= 4000 else text[:3997] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


TLS_UNRECOGNIZED_NAME: Final = b"\x15\x03\x03\x00\x02\x02\x70"
"""Fatal alert 112 (RFC 6066, 3): no box has this name."""

TLS_INTERNAL_ERROR: Final = b"\x15\x03\x03\x00\x02\x02\x50"
"""Fatal alert 80 (RFC 8446, 6.2): the name is known, its box does not answer."""

TLS_DECODE_ERROR: Final = b"\x15\x03\x03\x00\x02\x02\x32"
"""Fatal alert 50: the ClientHello is malformed."""


def render_tls(refusal: Refusal) -> bytes:
    """The TLS alert that says the refusal."""
    return _ALERTS.get(refusal.status, TLS_INTERNAL_ERROR)


_ALERTS: Final[Mapping[int, bytes]] = {
    404: TLS_UNRECOGNIZED_NAME,
    400: TLS_DECODE_ERROR,
    431: TLS_DECODE_ERROR,
}


# --- ports that cannot be opened ----------------------------------------------------------------


class Holder(Protocol):
    """What is told of a listener that is in the way."""

    @property
    def address(self) -> IPv4Address | IPv6Address: ...
    @property
    def port(self) -> int: ...
    @property
    def uid(self) -> int: ...


def bind_problem(error: OSError, *, at: str, port: int, holders: Sequence[Holder] = ()) -> str:
    """Why the host side of a port could not be opened, and what helps; one line.

    `holders` are the host's listeners on that port, asked for only when the port is in use.
    """
    place = f"[{at}]:{port}" if ":" in at else f"{at}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = next(iter(holders), None)
        if holder is None:
            return f"{place} is in use on the host"
        address = f"[{holder.address}]" if holder.address.version == 6 else str(holder.address)
        return (
            f"{place} is in use on the host: a program of user {holder.uid} listens on "
            f"{address}:{holder.port}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        start = min(80, port)
        return (
            f"{place} may not be opened by this user; allow it once with "
            f"`sudo sysctl net.ipv4.ip_unprivileged_port_start={start}`"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{place} cannot be opened: too many open files; raise `ulimit -n`"
    return f"{place} cannot be opened: {error.strerror or error}"
