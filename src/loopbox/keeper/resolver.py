"""The resolver of the boxes: local names answered here, everything else asked of the host's.

Owns: which names never leave the machine and what they mean, the shape of every answer (size,
truncation, no IPv6 addresses where the host has no IPv6), and the memory of which name each
address was given for.
Must never: cache answers (the host's resolver does), choose servers (keeper/upstream.py), judge.

Local names, first row that applies (RFC 6761, 6303, 7686): `localhost` and everything below it
is loopback for A and AAAA and has nothing else; `invalid` and `onion` do not exist; the box's own
names; loopback's reverse zones; the host's hosts file.

Example::

    resolver = Resolver(upstream=Upstream(), has_ipv6=lambda: True)
    response = await resolver.answer(query, group=7, stream=False)
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from dnslib import (  # type: ignore[import-untyped]
    AAAA,
    CLASS,
    EDNS0,
    PTR,
    RCODE,
    RR,
    A,
    DNSError,
    DNSRecord,
)

from loopbox.keeper.upstream import FileView, Upstream, question_end
from loopbox.wire.systemfiles import parse_hosts

Address = IPv4Address | IPv6Address
Names = Mapping[str, Sequence[Address]]
"""Lower-case name, or `*.name` for everything below it, to its addresses."""

LOOPBACK: Final[tuple[Address, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
LOCAL_TTL = 5
"""Seconds. Short: boxes and hosts files change, and asking again costs nothing here."""
SMALLEST_UDP = 512
"""Bytes every client takes over UDP (RFC 1035 section 4.2.1); EDNS raises it."""
_OUR_UDP = 4096

_A, _AAAA, _PTR, _ANY, _OPT = 1, 28, 12, 255, 41
_IN, _ANY_CLASS = 1, 255
_LOOPBACK_PTR = {
    "1.0.0.127.in-addr.arpa",
    "1" + ".0" * 31 + ".ip6.arpa",
}


# --- decisions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What we say of ourselves about a name."""

    exists: bool
    """False: NXDOMAIN. True without data for the type asked: an empty answer (NODATA)."""
    addresses: tuple[Address, ...] = ()
    pointer: str | None = None


def answer_locally(name: str, *, own: Names, hosts: Names) -> LocalAnswer | None:
    """What a lower-case name without final dot means here; None: ask the host's resolver."""
    top = name.rpartition(".")[2]
    if top == "localhost":
        return LocalAnswer(True, LOOPBACK)
    if top in ("invalid", "onion"):
        return LocalAnswer(False)
    found = look_up(name, own)
    if found is not None:
        return LocalAnswer(True, tuple(found))
    if name in _LOOPBACK_PTR:
        return LocalAnswer(True, pointer="localhost")
    if name.endswith(".127.in-addr.arpa"):
        return LocalAnswer(False)
    if name in hosts:
        return LocalAnswer(True, tuple(hosts[name]))
    return None


def look_up(name: str, names: Names) -> Sequence[Address] | None:
    """The exact name, else the closest wildcard above it."""
    if name in names:
        return names[name]
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        if f"*.{rest}" in names:
            return names[f"*.{rest}"]
    return None


def read_hosts(data: bytes) -> dict[str, list[Address]]:
    """A hosts file as names to addresses, in the order of the file."""
    found: dict[str, list[Address]] = {}
    for entry in parse_hosts(data):
        for name in entry.names:
            addresses = found.setdefault(name.lower(), [])
            if entry.address not in addresses:
                addresses.append(entry.address)
    return found


class NameMemory:
    """Which name each address was given for, per box: bounded, and only for a while."""

    LEAST_SECONDS = 60.0
    """Programs use an address for some time after its TTL."""
    MOST_SECONDS = 86400.0

    def __init__(self, *, limit: int = 16384, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._known: OrderedDict[tuple[int, Address], tuple[str, float]] = OrderedDict()

    def learn(self, group: int, name: str, answers: Iterable[tuple[Address, int]]) -> None:
        """Note addresses, each with its TTL in seconds. The oldest make room for the newest."""
        for address, ttl in answers:
            until = self._clock() + min(max(ttl, self.LEAST_SECONDS), self.MOST_SECONDS)
            self._known[group, address] = (name, until)
            self._known.move_to_end((group, address))
        while len(self._known) > self._limit:
            self._known.popitem(last=False)

    def name_of(self, group: int, address: Address) -> str | None:
        """The name this box last asked for when it was given `address`."""
        known = self._known.get((group, address))
        if known is None:
            return None
        if known[1] < self._clock():
            del self._known[group, address]
            return None
        return known[0]

    def addresses_of(self, group: int, name: str) -> list[Address]:
        """The addresses this box was given for `name` and may still use."""
        now = self._clock()
        return [
            address
            for (owner, address), (known, until) in self._known.items()
            if owner == group and known == name and until >= now
        ]

    def forget(self, group: int) -> None:
        """Drop all a box has learnt."""
        for key in [key for key in self._known if key[0] == group]:
            del self._known[key]

    def __len__(self) -> int:
        return len(self._known)


# --- the service ---------------------------------------------------------------------------


class Resolver:
    """Answers the queries of all boxes. Lives on the event loop's thread."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        has_ipv6: Callable[[], bool],
        hosts: Path = Path("/etc/hosts"),
        memory: NameMemory | None = None,
    ) -> None:
        self._upstream = upstream
        self._has_ipv6 = has_ipv6
        self._hosts = FileView(hosts, read_hosts)
        self.memory = NameMemory() if memory is None else memory

    async def answer(
        self, query: bytes, *, group: int, stream: bool, own: Names | None = None
    ) -> bytes | None:
        """The response to one query from a box; None for what deserves none.

        `stream`: asked over TCP, so that any size is welcome. Waits up to
        upstream.TOTAL_SECONDS, and raises nothing for what is wrong with the query.
        """
        if len(query) < 12 or query[2] & 0x80:
            return None
        try:
            record = DNSRecord.parse(query)
            question_end(query)
        except (DNSError, ValueError):
            return _refusal(query, RCODE.FORMERR)
        if record.header.opcode != 0:
            return _refusal(query, RCODE.NOTIMP)
        if record.q.qclass not in (_IN, _ANY_CLASS):
            return _refusal(query, RCODE.REFUSED)
        name = _text_of(record)
        local = answer_locally(name, own=own or {}, hosts=self._hosts.get())
        if local is not None:
            response = _build_local(record, local)
        else:
            response = await self._ask(query, record, name=name, group=group, stream=stream)
        return response if stream else _fitted(response, record)

    async def _ask(
        self, query: bytes, record: DNSRecord, *, name: str, group: int, stream: bool
    ) -> bytes:
        response = await self._upstream.ask(query, stream=stream)
        if response is None:
            return _refusal(query, RCODE.SERVFAIL)
        if record.q.qtype not in (_A, _AAAA, _ANY):
            return response
        try:
            parsed = DNSRecord.parse(response)
        except DNSError:
            return response  # the client may read what dnslib cannot
        if not self._has_ipv6() and any(rr.rtype == _AAAA for rr in parsed.rr):
            parsed.rr = [rr for rr in parsed.rr if rr.rtype != _AAAA]
            response = bytes(parsed.pack())
        given = [
            (ip_address(str(rr.rdata)), int(rr.ttl)) for rr in parsed.rr if rr.rtype in (_A, _AAAA)
        ]
        self.memory.learn(group, name, given)
        return response


def _text_of(record: DNSRecord) -> str:
    """The name asked for, lower-case, without final dot; unlike any local name if it is odd."""
    labels: tuple[bytes, ...] = record.q.qname.label
    if any(b"." in label for label in labels):
        return "\\"
    return b".".join(labels).decode("ascii", "backslashreplace").lower()


def _build_local(query: DNSRecord, local: LocalAnswer) -> bytes:
    reply = query.reply(ra=1, aa=1)
    reply.header.rcode = RCODE.NOERROR if local.exists else RCODE.NXDOMAIN
    kind = query.q.qtype
    for address in local.addresses:
        data, number = (
            (A(str(address)), _A) if address.version == 4 else (AAAA(str(address)), _AAAA)
        )
        if kind in (number, _ANY):
            reply.add_answer(RR(query.q.qname, number, CLASS.IN, LOCAL_TTL, data))
    if local.pointer is not None and kind in (_PTR, _ANY):
        reply.add_answer(RR(query.q.qname, _PTR, CLASS.IN, LOCAL_TTL, PTR(local.pointer)))
    if any(rr.rtype == _OPT for rr in query.ar):
        reply.add_ar(EDNS0(udp_len=_OUR_UDP))  # RFC 6891 section 6.1.1
    return bytes(reply.pack())


def _refusal(query: bytes, code: int) -> bytes:
    """The query's header and, where it is readable, its question, with an error code."""
    try:
        question = query[12 : question_end(query)]
    except ValueError:
        question = b""
    flags = bytes([0x80 | (query[2] & 0x79), 0x80 | code])
    return query[:2] + flags + bytes([0, 1 if question else 0]) + bytes(6) + question


def _fitted(response: bytes, query: DNSRecord) -> bytes:
    """The response, or its head with the truncation bit when it is too long for UDP."""
    limit = SMALLEST_UDP
    for rr in query.ar:
        if rr.rtype == _OPT:
            limit = max(limit, int(rr.rclass))  # the sender's UDP payload size
    if len(response) <= limit:
        return response
    end = question_end(response)
    return response[:2] + bytes([response[2] | 0x02]) + response[3:6] + bytes(6) + response[12:end]
