"""Which box a client at the host's front door means, which port of it, and what to say if none.

Owns: who is let in, the meaning of a `Host` or a server name, the order in which a box's loopback
is dialled, the choice of a box's web port, and a box's URLs. How a refusal is said:
`rules.refusals`.

Must never: guess another box. A stopped box, an unknown name, a bare `localhost` or an address
each get an answer that says so; the traffic of one project never lands in another.

Example::

    route("api.shop.localhost", {"shop": "up"})             # Route(name="shop", refusal=None)
    route("till.localhost", {"shop": "up"}).refusal         # Refusal(status=404, …)

Order of the rules for a name (RFC 6761, 6.3: everything below `.localhost` is this machine):
1. without the ending `.localhost` it names no box;
2. the longest known name that is the rest, or a parent of it, is meant, be it up or stopped: the
   subdomain of a stopped box is not handed to the box one label further up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol

from loopbox.rules.refusals import Refusal

HOP_LIMIT: Final = 20
"""Proxies on the way of one request; more is a loop (a browser's request has none)."""

ENDING: Final = ".localhost"

TARGET_LIMIT: Final = 8
"""Addresses dialled for one door; the relay takes no more."""

WEB_PORTS: Final = (80, 3000, 8000, 8080, 5173, 4200, 5000, 8888, 4321, 3001, 9000)
"""A box's web port is the first of these on which it listens."""

OTHER_PROTOCOLS: Final[Mapping[int, str]] = {
    21: "FTP",
    22: "SSH",
    23: "Telnet",
    25: "SMTP",
    53: "DNS",
    110: "POP3",
    111: "RPC",
    139: "SMB",
    143: "IMAP",
    179: "BGP",
    389: "LDAP",
    445: "SMB",
    465: "SMTP",
    543: "PostgreSQL",
    587: "SMTP",
    636: "LDAP",
    993: "IMAP",
    995: "POP3",
    1025: "SMTP",
    1433: "SQL Server",
    1521: "Oracle",
    1883: "MQTT",
    2049: "NFS",
    2181: "ZooKeeper",
    2525: "SMTP",
    2601: "zebra",
    2604: "ospfd",
    2605: "bgpd",
    3306: "MySQL",
    3389: "RDP",
    4222: "NATS",
    4369: "Erlang",
    5005: "Java debugger",
    5432: "PostgreSQL",
    5433: "PostgreSQL",
    5671: "AMQP",
    5672: "AMQP",
    5900: "VNC",
    6379: "Redis",
    6380: "Redis",
    6432: "PgBouncer",
    7687: "Bolt",
    8883: "MQTT",
    9003: "Xdebug",
    9042: "Cassandra",
    9092: "Kafka",
    9229: "Node inspector",
    11211: "memcached",
    26257: "CockroachDB",
    26379: "Redis",
    27017: "MongoDB",
    33060: "MySQL",
}
"""Ports on which something else than HTTP is spoken nearly everywhere."""

_SCHEMES: Final[Mapping[int, str]] = {
    22: "ssh",
    389: "ldap",
    3306: "mysql",
    4222: "nats",
    5432: "postgresql",
    5433: "postgresql",
    5672: "amqp",
    6379: "redis",
    6380: "redis",
    6432: "postgresql",
    7687: "bolt",
    27017: "mongodb",
}
"""Those of them whose clients take a URL."""

TLS_PORTS: Final = frozenset({443, 8443, 9443})


@dataclass(frozen=True, slots=True)
class Route:
    """The box that is meant, or why there is none."""

    name: str | None
    refusal: Refusal | None = None


class Bind(Protocol):
    """What is asked of a listener: `kernel.sockets.ListeningSocket` is one."""

    @property
    def family(self) -> str: ...
    @property
    def address(self) -> IPv4Address | IPv6Address: ...
    @property
    def interface(self) -> int: ...


def route(
    host: str, directory: Mapping[str, str], *, hops: int = 0, port: int | None = None
) -> Route:
    """The box a host name means. `directory` says `up` or `stopped` of every known name.

    `port` only makes the links of a refusal lead to the same door.
    """
    if hops > HOP_LIMIT:
        return Route(None, _loop(hops))
    name = find_name(host, directory)
    if name is None:
        return Route(None, _unknown(host, directory, port=port))
    if directory[name] != "up":
        return Route(name, _stopped(name))
    return Route(name)


def find_name(host: str, known: Mapping[str, str]) -> str | None:
    """The known name that a host name means: the longest that is it or a parent of it."""
    rest = host.lower().removesuffix(".")
    if not rest.endswith(ENDING):
        return None
    rest = rest.removesuffix(ENDING)
    while rest:
        if rest in known:
            return rest
        rest = rest.partition(".")[2]
    return None


# --- who may come in ----------------------------------------------------------------------------


def is_admitted(uid: int, inode: int, *, owner: int | None) -> bool:
    """Whether a client whose socket belongs to this uid may come in.

    An orphan or time-wait socket reads as uid 0 with inode 0 whoever owned it, so that pair proves
    nothing (research: boxspike.md, section 5).
    """
    return owner is None or (uid == owner and not (uid == 0 and inode == 0))


# --- which port, which address ------------------------------------------------------------------


def dial_targets(port: int, binds: Iterable[Bind]) -> list[tuple[str, int]]:
    """Where to dial in the box for a port, in order; [] when loopback reaches none of the binds.

    As a client in the box would find it at `localhost`: 127.0.0.1, then ::1, whichever a bind
    covers; then other addresses bound; then the family that no bind covers, for a server that is
    just about to bind it too. A bind to another interface than lo (index 1) cannot be reached.
    """
    covered: set[str] = set()
    others: list[str] = []
    for bind in binds:
        if bind.interface not in (0, 1):
            continue
        address = getattr(bind.address, "ipv4_mapped", None) or bind.address
        if not address.is_unspecified:
            text = str(address)
            if text in _CANONICAL:
                covered.add(text)
            elif not address.is_link_local and not address.is_multicast:
                others.append(text)
        else:
            covered.update(_WILDCARD_COVERS.get(bind.family, ()))
    if not covered and not others:
        return []
    order: list[str] = [text for text in _CANONICAL if text in covered]
    order += sorted(others, key=_dial_order)
    order += [text for text in _CANONICAL if text not in covered]
    return [(text, port) for text in dict.fromkeys(order)][:TARGET_LIMIT]


_CANONICAL: Final = ("127.0.0.1", "::1")
_WILDCARD_COVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ipv4": ("127.0.0.1",),
    "ipv6": ("::1",),
    "dual": ("127.0.0.1", "::1"),
}


def _dial_order(text: str) -> tuple[bool, int, int]:
    """Other loopback addresses first, then IPv4, then numerically: the same every time."""
    address = ip_address(text)
    return (not address.is_loopback, address.version, int(address))


def web_port(ports: Iterable[int]) -> int | None:
    """The port of a box that most likely speaks HTTP, None when none does."""
    there = set(ports)
    for port in WEB_PORTS:
        if port in there:
            return port
    rest = sorted(there - OTHER_PROTOCOLS.keys() - TLS_PORTS)
    return rest[0] if rest else None


def tls_port(ports: Iterable[int]) -> int | None:
    """The port of a box that speaks TLS by custom, None when there is none."""
    there = set(ports)
    return next((port for port in sorted(TLS_PORTS) if port in there), None)


def port_behind(door: int, ports: Iterable[int]) -> int | None:
    """Which port of the box answers at this port of the shared door, None when none does.

    The same number when the box listens there; for 80 and 443 else its web and its TLS port.
    """
    there = set(ports)
    if door in there:
        return door
    if door == 80:
        return web_port(there)
    if door == 443:
        return tls_port(there)
    return None


def url_for(name: str, port: int, *, address: IPv4Address | None = None) -> str | None:
    """The box's URL for a port, None where HTTP is not spoken.

    By its name; by its own address when one is given, for a port that is not served by name.
    """
    if port in OTHER_PROTOCOLS:
        return None
    scheme = "https" if port in TLS_PORTS else "http"
    number = "" if (scheme, port) in (("http", 80), ("https", 443)) else f":{port}"
    return f"{scheme}://{address or name + ENDING}{number}"


def place_for(name: str, port: int, *, address: IPv4Address) -> str:
    """What a client of this port is given: a URL, or where none is usual `127.x.y.z:port`.

    What is not HTTP cannot be told apart by name at the shared door: it is given the address.
    """
    if port in _SCHEMES:
        return f"{_SCHEMES[port]}://{address}:{port}"
    return url_for(name, port) or f"{address}:{port}"


# --- refusals -----------------------------------------------------------------------------------


def _loop(hops: int) -> Refusal:
    return Refusal(
        508,
        "this request goes in a circle",
        (
            f"It has passed {hops} proxies already.",
            "A server in a box hands it to the host's front door, which leads back to it.",
        ),
    )


def _unknown(host: str, directory: Mapping[str, str], *, port: int | None) -> Refusal:
    ending = f":{port}" if port is not None and port not in (80, 443) else ""
    scheme = "https" if port in TLS_PORTS else "http"
    up = sorted(name for name, state in directory.items() if state == "up")
    stopped = sorted(name for name, state in directory.items() if state != "up")
    lines = [f"`{host}` names no box."]
    if up:
        lines.append("Boxes that are up: " + ", ".join(up) + ".")
    if stopped:
        lines.append("Boxes that are known and stopped: " + ", ".join(stopped) + ".")
    if not directory:
        lines.append("No box is known. Start one: loopbox run -- CMD")
    links = tuple(f"{scheme}://{name}{ENDING}{ending}" for name in up)
    return Refusal(404, "there is no such box", tuple(lines), links)


def _stopped(name: str) -> Refusal:
    return Refusal(
        503,
        f"box {name} is stopped",
        (
            f"The box `{name}` is known, but not up.",
            "Start it: loopbox run -- CMD in its directory.",
        ),
    )


def nothing_listens(name: str, port: int, *, ports: Iterable[int] = ()) -> Refusal:
    """The box is up, and nothing in it answers at this port of the door."""
    urls = [url for url in (url_for(name, one) for one in sorted(set(ports))) if url is not None]
    found = ", ".join(str(one) for one in sorted(set(ports)))
    what = {80: "for HTTP", 443: "for TLS"}.get(port, f"on port {port}")
    return Refusal(
        503,
        f"nothing listens {what} in box {name}",
        (
            f"The box `{name}` is up, but nothing in it listens {what}.",
            f"It listens on: {found}." if found else "It listens on no port yet.",
        ),
        tuple(urls),
    )
