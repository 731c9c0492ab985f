"""The small text files by which a system says who is who: hosts, resolv.conf, nsswitch.conf.

Owns: their dialects as glibc reads them (what it ignores is ignored here too), the files that a
box gets, the edit of our own block in the host's hosts file, and the socket counters of
`/proc/net/sockstat`.

Must never: open a file. Edits take and give bytes, because everything that is not ours keeps
every byte: line ends, encodings, trailing blanks, a missing last newline.

Example::

    data = edit_block(data, lines=["127.106.206.39 shop.localhost"])    # lines=[]: remove it
    parse_hosts(data)            # [HostsEntry(address=IPv4Address("127.0.0.1"), names=(…)), …]

Facts behind it (glibc 2.36): a hosts line may begin with blanks and end in a comment; a line
with a BOM, an IPv4 shorthand, a zone, a prefix or no name is ignored; a name on several lines
has several addresses; resolv.conf's keywords count only at the beginning of a line, three name
servers are used, the last `search` or `domain` wins (resolv.conf(5), hosts(5), nsswitch.conf(5)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

BLOCK_BEGIN: Final = b"# loopbox begin (made by loopbox, edits are lost)"
BLOCK_END: Final = b"# loopbox end"

_LOCALHOST_LINES: Final = (
    b"127.0.0.1 localhost",
    b"::1 localhost ip6-localhost ip6-loopback",
)
_LOCALHOST_NAMES: Final = frozenset({b"localhost", b"ip6-localhost", b"ip6-loopback"})
_SERVER_LIMIT: Final = 3
"""MAXNS of glibc's resolv.h."""


# --- hosts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostsEntry:
    """One line of a hosts file: an address and its names, the canonical one first."""

    address: Address
    names: tuple[str, ...]
    """As written: DNS compares them without case, musl with it."""


def parse_hosts(data: bytes) -> list[HostsEntry]:
    """The entries in the order of the file; lines that glibc ignores are left out."""
    entries = []
    for line in data.split(b"\n"):
        entry = _parse_hosts_line(line)
        if entry is not None:
            entries.append(entry)
    return entries


def _parse_hosts_line(line: bytes) -> HostsEntry | None:
    words = line.partition(b"#")[0].split()
    if len(words) < 2:
        return None
    address = _parse_address(words[0])
    if address is None:
        return None
    return HostsEntry(address, tuple(word.decode("utf-8", "surrogateescape") for word in words[1:]))


def _parse_address(word: bytes) -> Address | None:
    """The address as inet_pton(3) takes it: no zone, no shorthand, no leading zeros."""
    if b"%" in word:
        return None
    try:
        return ip_address(word.decode("ascii"))
    except ValueError:
        return None


def build_hosts(host_hosts: bytes, *, mappings: Iterable[tuple[str, Address]] = ()) -> bytes:
    """A box's hosts file: localhost on both families, the mappings, then the host's own names.

    A mapped name and localhost are taken out of the host's lines, since a name on two lines has
    both addresses. Our own block is left out: the addresses in it lead to boxes on the host, and
    to the box itself in here. Lines that need no change keep every byte but a missing last
    newline.
    """
    pairs = list(mappings)
    ours = {name.lower().encode("utf-8", "surrogateescape") for name, _ in pairs}
    lines = list(_LOCALHOST_LINES)
    lines += [f"{address} {name}".encode("utf-8", "surrogateescape") for name, address in pairs]
    for line in edit_block(host_hosts, lines=[]).split(b"\n"):
        kept = _without_names(line, ours | _LOCALHOST_NAMES)
        if kept is not None:
            lines.append(kept)
    while lines and not lines[-1]:
        lines.pop()
    return b"\n".join(lines) + b"\n"


def _without_names(line: bytes, names: frozenset[bytes] | set[bytes]) -> bytes | None:
    """The line without these names, the same bytes when it has none, None when none is left."""
    content, sharp, comment = line.partition(b"#")
    words = content.split()
    kept = [word for word in words[1:] if word.lower() not in names]
    if len(kept) == len(words[1:]):
        return line
    if not kept:
        return None
    return b" ".join([words[0], *kept]) + (b" " + sharp + comment if sharp else b"")


def edit_block(data: bytes, *, lines: Sequence[str]) -> bytes:
    """The file with our block holding these lines; without the block when there are none.

    The block stays where it is, or comes at the end. Every byte outside it is kept; one newline
    is added before a new block when the last line has none, and taken away again with it. Line
    ends are those of the file's first line. A block that lacks its end is ours up to the first
    line that we would not write.
    """
    newline = b"\r\n" if data.partition(b"\n")[0].endswith(b"\r") else b"\n"
    start, end, joined = _find_block(data)
    block = b""
    if lines:
        texts = [line.encode("utf-8", "surrogateescape") for line in lines]
        block = newline.join([BLOCK_BEGIN, *texts, BLOCK_END]) + newline
    if start is None:
        if not block:
            return data
        if data and not data.endswith(b"\n"):
            # Remembered in the block's first line, so that removal gives the same bytes back.
            return data + newline + block.replace(BLOCK_BEGIN, BLOCK_BEGIN + _JOINED, 1)
        return data + block
    before, after = data[:start], data[end:]
    if joined and not after:
        if not block:
            return before.removesuffix(newline)
        block = block.replace(BLOCK_BEGIN, BLOCK_BEGIN + _JOINED, 1)
    return before + block + after


_JOINED: Final = b" +"
"""After BLOCK_BEGIN: the line break before the block is ours too."""


def read_block(data: bytes) -> list[str]:
    """The lines in our block, [] when there is none."""
    start, end, _ = _find_block(data)
    if start is None:
        return []
    lines = [line.rstrip(b"\r") for line in data[start:end].split(b"\n")]
    return [
        line.decode("utf-8", "surrogateescape")
        for line in lines[1:]
        if line and not line.startswith(BLOCK_END)
    ]


def _find_block(data: bytes) -> tuple[int | None, int, bool]:
    """Begin and end of our block with its last line break, and whether it is a joined one."""
    position = 0
    start: int | None = None
    joined = False
    while position < len(data):
        newline = data.find(b"\n", position)
        after = len(data) if newline < 0 else newline + 1
        line = data[position:after].rstrip(b"\r\n")
        if start is None:
            if line in (BLOCK_BEGIN, BLOCK_BEGIN + _JOINED):
                start, joined = position, line.endswith(_JOINED)
        elif line == BLOCK_END:
            return start, after, joined
        elif not _is_block_line(line):
            return start, position, joined
        position = after
    return start, len(data), joined


def _is_block_line(line: bytes) -> bool:
    """Whether we could have written the line into the block: names of boxes and nothing else."""
    entry = _parse_hosts_line(line)
    return (
        b"#" not in line
        and entry is not None
        and entry.address.is_loopback
        and all(name.endswith(".localhost") for name in entry.names)
    )


# --- resolv.conf --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """Which name servers are asked, and how."""

    nameservers: tuple[str, ...] = ()
    """Addresses in order, a link-local one with its zone (`fe80::1%eth0`); at most three count."""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """As written: `ndots:2`, `rotate`, …"""


def parse_resolv_conf(data: bytes) -> ResolvConf:
    """The file as glibc reads it (resolv.conf(5)); never fails."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in data.decode("utf-8", "replace").split("\n"):
        if not line or line[0] in "#;" or line[0].isspace():
            continue
        keyword, *words = line.split()
        if keyword == "nameserver" and words:
            address, percent, zone = words[0].partition("%")
            if _parse_address(address.encode("utf-8", "replace")) is not None:
                servers.append(address + percent + zone)
        elif keyword == "domain" and words:
            search = (words[0],)
        elif keyword == "search":
            search = tuple(words)
        elif keyword == "options":
            options += words
    return ResolvConf(tuple(servers[:_SERVER_LIMIT]), search, tuple(options))


def write_resolv_conf(conf: ResolvConf) -> bytes:
    """The file that says this; `parse_resolv_conf` gives it back."""
    lines = [f"nameserver {server}" for server in conf.nameservers]
    if conf.search:
        lines.append("search " + " ".join(conf.search))
    if conf.options:
        lines.append("options " + " ".join(conf.options))
    return "".join(line + "\n" for line in lines).encode()


def build_resolv_conf(host_resolv_conf: bytes, nameserver: str) -> bytes:
    """A box's resolv.conf: this name server alone, the host's search list and options.

    Left out are the options that speak of the way to the host's own servers: `use-vc`,
    `trust-ad`, `edns0` and the like change nothing for ours, and `rotate` has nothing to rotate.
    """
    host = parse_resolv_conf(host_resolv_conf)
    options = tuple(word for word in host.options if word.partition(":")[0] in _KEPT_OPTIONS)
    return write_resolv_conf(ResolvConf((nameserver,), host.search, options))


_KEPT_OPTIONS: Final = frozenset({"ndots", "timeout", "attempts", "no-aaaa", "single-request"})


# --- nsswitch.conf ------------------------------------------------------------------------------

_BOX_HOSTS_SERVICES: Final = b"files dns"
"""No `resolve`, `myhostname`, `mdns`: they ask the host's daemons over path sockets, so the
answers would be the host's and not the box's."""


def build_nsswitch(host_nsswitch: bytes) -> bytes:
    """The host's nsswitch.conf with `files dns` for hosts; every other byte is kept."""
    found = False
    pieces: list[bytes] = []
    for line in host_nsswitch.splitlines(keepends=True):
        keyword, colon, rest = line.partition(b":")
        if keyword.strip() != b"hosts" or not colon:
            pieces.append(line)
            continue
        found = True
        gap = rest[: len(rest) - len(rest.lstrip(b" \t"))] or b" "
        ending = line[len(line.rstrip(b"\r\n")) :]
        pieces.append(keyword + colon + gap + _BOX_HOSTS_SERVICES + ending)
    if not found:
        if pieces and not pieces[-1].endswith(b"\n"):
            pieces.append(b"\n")
        pieces.append(b"hosts: " + _BOX_HOSTS_SERVICES + b"\n")
    return b"".join(pieces)


# --- /proc/net/sockstat -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SocketCounts:
    """How many sockets a network namespace has in use, listening or connected."""

    tcp: int = 0
    udp: int = 0
    raw: int = 0


def parse_sockstat(data: bytes) -> SocketCounts:
    """The `inuse` counters of /proc/net/sockstat or sockstat6; absent ones are 0."""
    found: dict[bytes, int] = {}
    for line in data.split(b"\n"):
        name, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) >= 2 and words[0] == b"inuse" and words[1].isdigit():
            found[name.removesuffix(b"6")] = int(words[1])
    return _counts(found)


def _counts(found: Mapping[bytes, int]) -> SocketCounts:
    return SocketCounts(found.get(b"TCP", 0), found.get(b"UDP", 0), found.get(b"RAW", 0))
