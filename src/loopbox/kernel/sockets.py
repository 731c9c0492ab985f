"""Which sockets wait for peers, and whose a peer is: the kernel's own answer, by sock_diag(7).

Owns: NETLINK_SOCK_DIAG requests and their replies: the dump of listening sockets and the exact
look-up of one socket's owner. A diag socket answers for the network namespace in which it was
*created*, for ever and from any thread or namespace, so it can be kept instead of setns(2).

Must never: read /proc/net/tcp (its text cannot tell dual-stack from V6ONLY, and a read of it walks
the whole established hash: 1.5 ms), judge who may reach a socket (rules/audit does), dump to find
one socket.

Example::

    with open_diag() as diag:
        for socket in listening(diag):
            print(socket.protocol, socket.address, socket.port)

Formats: linux/inet_diag.h, linux/sock_diag.h. Not thread-safe: one caller at a time per socket.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from loopbox.errors import HostError
from loopbox.rules.network import ListeningSocket
from loopbox.wire.netlink import build_message, parse_messages

__all__ = ["ListeningSocket", "PeerOwner", "listening", "listening_raw", "open_diag", "owner_of"]

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 0x001
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR = 2
NLMSG_DONE = 3
INET_DIAG_SKV6ONLY = 11
INET_DIAG_NOCOOKIE = b"\xff" * 8
IPPROTO_RAW = 255
_LOOPBACK_INDEX = struct.pack("=I", 1)
"""LOOPBACK_IFINDEX of include/net/net_namespace.h: packets to ourselves come in by lo."""

TCP_LISTEN = 10
TCP_CLOSE = 7
"""The state in which the kernel keeps an unconnected datagram or raw socket."""

_WAITING = {
    "tcp": (socket.IPPROTO_TCP, 1 << TCP_LISTEN),
    "udp": (socket.IPPROTO_UDP, 1 << TCP_CLOSE),
    "raw": (IPPROTO_RAW, 1 << TCP_CLOSE),
}
"""Protocol word to (IPPROTO number, mask of the states that mean "waits for peers")."""

_REQUEST_HEAD = struct.Struct("=BBBBI")
_MESSAGE = struct.Struct("=BBBB 2s2s16s16sI8s IIIII")
"""struct inet_diag_msg: family, state, timer, retrans; id; expires, rqueue, wqueue, uid, inode."""
_ATTRIBUTE = struct.Struct("=HH")
_MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
_BUFFER = 1 << 17
_SMALL_BUFFER = 4096
"""For one message: recv(2) costs what its buffer does."""
_HEADER_SIZE = 16
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class PeerOwner:
    """Who holds the other end of a connection."""

    uid: int
    inode: int
    """0 once the program has closed it (then some kernels say uid 0 whoever owned it)."""
    state: int
    """TCP state number of include/net/tcp_states.h (1 ESTABLISHED, 4 FIN_WAIT1 ...)."""


def open_diag() -> socket.socket:
    """A diag socket for the calling thread's network namespace; the caller closes it."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )


def listening(
    diag: socket.socket, *, protocols: Sequence[str] = ("tcp", "udp")
) -> list[ListeningSocket]:
    """Every socket that waits for peers in the diag socket's namespace, in kernel order.

    Raises HostError where the kernel lacks the diag module of a protocol.
    """
    found: list[ListeningSocket] = []
    for protocol in protocols:
        number, states = _WAITING[protocol]
        for family in (socket.AF_INET, socket.AF_INET6):
            found += _dump(diag, build_dump(family, number, states), protocol)
    return found


def listening_here() -> list[ListeningSocket]:
    """What waits for peers in the calling thread's network namespace now."""
    with open_diag() as diag:
        return listening(diag)


def listening_raw() -> list[ListeningSocket]:
    """Raw sockets of the calling thread's namespace, where the kernel has no raw_diag."""
    found: list[ListeningSocket] = []
    for name in ("raw", "raw6"):
        try:
            with open(f"/proc/thread-self/net/{name}") as file:
                found += parse_proc_raw(file.read())
        except OSError:
            continue  # IPv6 may be left out of the kernel
    return found


def owner_of(
    diag: socket.socket, *, protocol: str, local: tuple[str, int], remote: tuple[str, int]
) -> PeerOwner | None:
    """Who owns the socket whose own end is `local` and whose other end is `remote`.

    For a client we accepted, `local` is its peer name as we see it. One exact look-up, about 5 µs
    however many connections are open. None when the socket is gone: a listener that happens to sit
    on the same address is not an answer.
    """
    diag.send(build_lookup(protocol, local, remote))
    # Not by wire.netlink: this is done for every connection, and one message needs no loop.
    reply = diag.recv(_SMALL_BUFFER)
    kind = int.from_bytes(reply[4:6], sys.byteorder)
    if kind == SOCK_DIAG_BY_FAMILY:
        return parse_owner(reply[_HEADER_SIZE:], local_port=local[1])
    if kind == NLMSG_ERROR:
        number = -int.from_bytes(reply[16:20], sys.byteorder, signed=True)
        if number not in (errno.ENOENT, errno.ESTALE):
            raise _refusal(number, protocol)
    return None


# -- codec: bytes to values and back, no socket touched ------------------------------------------


def build_dump(family: int, protocol: int, states: int) -> bytes:
    """The request for every socket of `family` and IP `protocol` in one of `states` (a mask)."""
    return _request(NLM_F_REQUEST | NLM_F_DUMP, family, protocol, states, bytes(48))


def build_lookup(protocol: str, local: tuple[str, int], remote: tuple[str, int]) -> bytes:
    """The request for the one socket between `local` (its own end) and `remote`, both local."""
    own, other = _packed(local[0]), _packed(remote[0])
    if len(own) != len(other):
        raise ValueError(f"addresses of two families: {local[0]!r} and {remote[0]!r}")
    family = socket.AF_INET if len(own) == 4 else socket.AF_INET6
    ends = [(own, local[1]), (other, remote[1])]
    if protocol == "udp":
        ends.reverse()  # udp_dump_one: "src and dst are swapped for historical reasons"
    (source, source_port), (target, target_port) = ends
    # A socket bound to a device is found only by that device's number; one bound to none, by any.
    identity = (
        struct.pack("!HH", source_port, target_port)
        + source.ljust(16, b"\0")
        + target.ljust(16, b"\0")
        + _LOOPBACK_INDEX
        + INET_DIAG_NOCOOKIE
    )
    return _request(NLM_F_REQUEST, family, _WAITING[protocol][0], 0xFFFFFFFF, identity)


def parse_listening(body: bytes, protocol: str) -> ListeningSocket | None:
    """One inet_diag_msg as a value; None when it is cut short or of an unknown family."""
    if len(body) < _MESSAGE.size:
        return None
    fields = _MESSAGE.unpack_from(body)
    family, sport, source, interface = fields[0], fields[4], fields[6], fields[8]
    address: IPv4Address | IPv6Address
    if family == socket.AF_INET:
        address, served = IPv4Address(source[:4]), "ipv4"
    elif family == socket.AF_INET6:
        address = IPv6Address(source)
        served = _served(source, v6only=protocol == "raw" or _is_v6only(body))
    else:
        return None
    return ListeningSocket(
        protocol=protocol,
        family=served,
        address=address,
        port=int.from_bytes(sport, "big"),
        interface=interface,
        inode=fields[14],
        uid=fields[13],
    )


def parse_owner(body: bytes, *, local_port: int) -> PeerOwner | None:
    """One inet_diag_msg as an owner; None for a listener, another port, or a cut message."""
    if len(body) < _MESSAGE.size:
        return None
    fields = _MESSAGE.unpack_from(body)
    if fields[1] == TCP_LISTEN or int.from_bytes(fields[4], "big") != local_port:
        return None
    return PeerOwner(uid=fields[13], inode=fields[14], state=fields[1])


def _served(source: bytes, *, v6only: bool) -> str:
    if source[:12] == _MAPPED_PREFIX:
        return "ipv4"
    return "dual" if source == bytes(16) and not v6only else "ipv6"


def _is_v6only(body: bytes) -> bool:
    """Whether the attribute says V6ONLY; True when it is absent, so that nothing is invented."""
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        if kind == INET_DIAG_SKV6ONLY and length > _ATTRIBUTE.size and offset + 4 < len(body):
            return body[offset + 4] != 0
        offset += (length + 3) & ~3
    return True


def _packed(address: str) -> bytes:
    """Network bytes of an address as a socket name gives it (a zone is cut off)."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return socket.inet_pton(socket.AF_INET, address)


def _request(flags: int, family: int, protocol: int, states: int, identity: bytes) -> bytes:
    body = _REQUEST_HEAD.pack(family, protocol, 0, 0, states) + identity
    return build_message(SOCK_DIAG_BY_FAMILY, flags, 1, body)


def parse_proc_raw(text: str) -> list[ListeningSocket]:
    """Raw sockets from /proc/net/raw or raw6, for kernels without raw_diag. Odd lines are skipped.

    Raw IPv6 sockets serve IPv6 only, so what that text leaves out (V6ONLY) does not matter here.
    """
    found: list[ListeningSocket] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            host, _, port = words[1].partition(":")
            packed = b"".join(
                int(host[at : at + 8], 16).to_bytes(4, sys.byteorder)
                for at in range(0, len(host), 8)
            )
            if int(words[3], 16) != TCP_CLOSE:
                continue
            found.append(
                ListeningSocket(
                    protocol="raw",
                    family="ipv4" if len(packed) == 4 else "ipv6",
                    address=ip_address(packed),
                    port=int(port, 16),
                    interface=0,
                    inode=int(words[9]),
                    uid=int(words[7]),
                )
            )
        except (ValueError, IndexError, OverflowError):
            continue
    return found


# -- hands ----------------------------------------------------------------------------------------


def _dump(diag: socket.socket, request: bytes, protocol: str) -> list[ListeningSocket]:
    """One dump, asked again (a few times) when the kernel says it was interrupted."""
    found: list[ListeningSocket] = []
    for _ in range(_ATTEMPTS):
        diag.send(request)
        found, complete = _collect(diag, protocol)
        if complete:
            break
    return found


def _collect(diag: socket.socket, protocol: str) -> tuple[list[ListeningSocket], bool]:
    """Replies up to NLMSG_DONE, and whether the kernel calls the dump consistent."""
    found: list[ListeningSocket] = []
    complete = True
    while True:
        for message in parse_messages(diag.recv(_BUFFER)):
            body = message.payload
            complete = complete and not message.flags & NLM_F_DUMP_INTR
            if message.kind == NLMSG_DONE:
                # A kernel without this protocol's diag module says so here, and lists nothing.
                number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                if number > 0:
                    raise _refusal(number, protocol)
                return found, complete
            if message.error is not None:
                raise _refusal(message.error[0], protocol)
            entry = parse_listening(body, protocol)
            if entry is not None:
                found.append(entry)


def _refusal(number: int, protocol: str) -> HostError:
    return HostError(
        f"cannot list {protocol} sockets: {os.strerror(number)}",
        hint=f"the kernel needs the sock_diag modules: modprobe -a inet_diag {protocol}_diag",
        code="no-sock-diag",
    )
