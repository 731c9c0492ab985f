"""The resolver: what names mean here, the shape of answers, and the race between servers.

Name servers of the tests are real sockets on 127.0.0.x, one port for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

import pytest
from dnslib import EDNS0, RCODE, RR, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from loopbox.keeper.resolver import LOOPBACK, NameMemory, Resolver, answer_locally, look_up
from loopbox.keeper.resolver import read_hosts as read
from loopbox.keeper.upstream import TOTAL_SECONDS, Upstream, is_answer, question_end

Value = TypeVar("Value")
Answer = Callable[[bytes], list[bytes]]


def query(name: str, kind: str = "A", *, udp_size: int | None = None) -> bytes:
    """One question, with EDNS where a size is given."""
    record = DNSRecord.question(name, kind)
    if udp_size is not None:
        record.add_ar(EDNS0(udp_len=udp_size))
    return bytes(record.pack())


def zone(*lines: str, code: int = 0, truncated: bool = False) -> Answer:
    """A name server that answers everything with these records."""

    def answer(data: bytes) -> list[bytes]:
        reply = DNSRecord.parse(data).reply(ra=1, aa=0)
        for line in lines:
            reply.add_answer(*RR.fromZone(line))
        reply.header.rcode = code
        reply.header.tc = int(truncated)
        return [bytes(reply.pack())]

    return answer


def silent(data: bytes) -> list[bytes]:
    """A name server that never answers."""
    return []


class Servers:
    """Name servers on 127.0.0.2, 127.0.0.3, ... and a resolv.conf that names them."""

    def __init__(self, directory: Path) -> None:
        self.conf = directory / "resolv.conf"
        self.hosts = directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n192.0.2.7 Printer printer.lan\n")
        self.asked: list[tuple[str, bytes]] = []
        self._answers: list[tuple[str, Answer, Answer | None]] = []

    def add(self, answer: Answer, *, stream: Answer | None = None) -> None:
        """One more server; `stream` is what it says over TCP."""
        self._answers.append((f"127.0.0.{len(self._answers) + 2}", answer, stream))

    def run(self, work: Callable[[Upstream], Awaitable[Value]]) -> Value:
        """Serve while `work` runs; without servers, two closed ports are asked."""
        return asyncio.run(self._run(work))

    async def _run(self, work: Callable[[Upstream], Awaitable[Value]]) -> Value:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            port = 0
            for address, answer, stream in self._answers:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda address=address, answer=answer: _Server(self, address, answer),
                    local_addr=(address, port),
                )
                stack.callback(transport.close)
                port = transport.get_extra_info("sockname")[1]
                if stream is not None:
                    server = await asyncio.start_server(
                        lambda reader, writer, stream=stream: _serve(reader, writer, stream),
                        address,
                        port,
                    )
                    await stack.enter_async_context(server)
            if not self._answers:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                    free.bind(("127.0.0.2", 0))
                    port = free.getsockname()[1]
            addresses = [address for address, _, _ in self._answers] or ["127.0.0.2", "127.0.0.3"]
            self.conf.write_text("".join(f"nameserver {one}\n" for one in addresses))
            return await work(Upstream(self.conf, port=port))

    def say(
        self,
        data: bytes,
        *,
        stream: bool = False,
        ipv6: bool = True,
        memory: NameMemory | None = None,
    ) -> DNSRecord | None:
        """The resolver's whole answer to one query."""

        async def work(upstream: Upstream) -> bytes | None:
            resolver = Resolver(
                upstream=upstream, has_ipv6=lambda: ipv6, hosts=self.hosts, memory=memory
            )
            return await resolver.answer(data, group=1, stream=stream)

        response = self.run(work)
        return None if response is None else DNSRecord.parse(response)


class _Server(asyncio.DatagramProtocol):
    def __init__(self, servers: Servers, address: str, answer: Answer) -> None:
        self.servers, self.address, self.answer = servers, address, answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.servers.asked.append((self.address, data))
        for response in self.answer(data):
            self.transport.sendto(response, addr)  # type: ignore[attr-defined]


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
) -> None:
    with contextlib.suppress(EOFError):
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        for response in answer(await reader.readexactly(length)):
            writer.write(struct.pack(">H", len(response)) + response)
    writer.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """No server yet."""
    yield Servers(tmp_path)


def data_of(answer: DNSRecord | None) -> list[str]:
    """The data of all answer records."""
    assert answer is not None
    return [str(rr.rdata) for rr in answer.rr]


# --- what names mean -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "shop.localhost", "a.b.localhost"])
def test_localhost_and_below_is_loopback(name: str) -> None:
    """RFC 6761 section 6.3: always both loopback addresses."""
    answer = answer_locally(name, own={}, hosts={})

    assert answer is not None and answer.addresses == LOOPBACK


@pytest.mark.parametrize("name", ["invalid", "x.invalid", "abc.onion", "2.0.0.127.in-addr.arpa"])
def test_names_that_do_not_exist(name: str) -> None:
    """RFC 6761 section 6.4, RFC 7686, RFC 6303: answered here, in the negative."""
    answer = answer_locally(name, own={}, hosts={})

    assert answer is not None and not answer.exists


@pytest.mark.parametrize("name", ["example.com", "localhost.example.com", "notlocalhost", "test"])
def test_other_names_are_the_hosts_affair(name: str) -> None:
    """Only the last label counts for localhost."""
    assert answer_locally(name, own={}, hosts={}) is None


def test_own_names_win_over_the_hosts_file() -> None:
    """A name given to the box means the box, whatever the host thinks of it."""
    here, there = [ip_address("127.0.0.1")], [ip_address("192.0.2.1")]
    answer = answer_locally(
        "shop.example", own={"shop.example": here}, hosts={"shop.example": there}
    )

    assert answer is not None and answer.addresses == (*here,)


def test_wildcards_mean_everything_below_and_the_closest_wins() -> None:
    """`*.x` matches any depth, not `x` itself; the longer wildcard is preferred."""
    one, two = [ip_address("127.0.0.1")], [ip_address("127.0.0.2")]
    names = {"*.example": one, "*.b.example": two}

    found = [look_up(name, names) for name in ("example", "a.example", "a.b.example", "b.example")]
    assert found == [None, one, two, one]


def test_hosts_files_keep_order_and_lose_case() -> None:
    """Names are compared without case; several lines add up."""
    found = read(b"192.0.2.1 Shop\n2001:db8::1 shop\n192.0.2.1 shop\nnonsense\n")

    assert found == {"shop": [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")]}


# --- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("localhost", "A", ["127.0.0.1"]),
        ("LOCALHOST", "AAAA", ["::1"]),
        ("shop.localhost.", "A", ["127.0.0.1"]),
        ("localhost", "MX", []),
        ("printer", "A", ["192.0.2.7"]),
        ("PRINTER.lan", "A", ["192.0.2.7"]),
        ("printer", "AAAA", []),
        ("1.0.0.127.in-addr.arpa", "PTR", ["localhost."]),
    ],
)
def test_local_answers(servers: Servers, name: str, kind: str, data: list[str]) -> None:
    """Local names are answered without asking anybody; other types have no data, but no error."""
    servers.add(silent)
    answer = servers.say(query(name, kind))

    assert (data_of(answer), answer.header.rcode, servers.asked) == (data, RCODE.NOERROR, [])


def test_localhost_is_both_families_on_a_host_without_ipv6(servers: Servers) -> None:
    """Loopback over IPv6 is there even where the world is not."""
    servers.add(silent)

    assert data_of(servers.say(query("localhost", "AAAA"), ipv6=False)) == ["::1"]


def test_the_question_comes_back_as_it_was_spelt(servers: Servers) -> None:
    """Case is kept on the way out and on the way back, even if the server folds it."""
    answers = zone("example.com 60 IN A 192.0.2.1")
    servers.add(lambda data: [one.replace(b"eXaMpLe", b"example") for one in answers(data)])
    answer = servers.say(query("eXaMpLe.com"))

    assert str(answer.q.qname) == "eXaMpLe.com."
    assert b"eXaMpLe" in servers.asked[0][1]


def test_the_id_is_drawn_anew(servers: Servers) -> None:
    """The server sees another id than the client used; the client gets its own back."""
    servers.add(zone("example.com 60 IN A 192.0.2.1"))
    asked = [query("example.com") for _ in range(3)]
    answers = [servers.say(data) for data in asked]

    assert [answer.pack()[:2] for answer in answers if answer] == [data[:2] for data in asked]
    assert [data[:2] for _, data in servers.asked] != [data[:2] for data in asked]


def test_ipv6_addresses_are_left_out_without_ipv6(servers: Servers) -> None:
    """An AAAA question of a host without IPv6 has an empty answer, an A question its own."""
    servers.add(zone("example.com 60 IN AAAA 2001:db8::1", "example.com 60 IN A 192.0.2.1"))

    assert data_of(servers.say(query("example.com", "AAAA"), ipv6=False)) == ["192.0.2.1"]
    assert data_of(servers.say(query("example.com", "AAAA"), ipv6=True)) == [
        "2001:db8::1",
        "192.0.2.1",
    ]


@pytest.mark.parametrize(("size", "fits"), [(None, False), (512, False), (4096, True)])
def test_long_answers_over_udp(servers: Servers, size: int | None, fits: bool) -> None:
    """What exceeds the client's size is cut down to the question and marked truncated."""
    servers.add(zone(*(f"example.com 60 IN A 192.0.2.{number}" for number in range(60))))
    answer = servers.say(query("example.com", udp_size=size))

    assert (answer.header.tc, len(answer.rr)) == ((0, 60) if fits else (1, 0))
    assert str(answer.q.qname) == "example.com."


def test_a_truncated_answer_is_fetched_whole_for_a_stream(servers: Servers) -> None:
    """Over TCP the client gets what the server says over TCP."""
    whole = zone(*(f"example.com 60 IN A 192.0.2.{number}" for number in range(60)))
    servers.add(zone(truncated=True), stream=whole)
    answer = servers.say(query("example.com"), stream=True)

    assert (answer.header.tc, len(answer.rr)) == (0, 60)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:2] + b"\x10" + data[3:], RCODE.NOTIMP),
        (lambda data: data[:4] + b"\0\2" + data[6:], RCODE.FORMERR),
        (lambda data: data[:-1], RCODE.FORMERR),
        (lambda data: data[:-1] + b"\3", RCODE.REFUSED),
    ],
)
def test_odd_queries_are_refused(
    servers: Servers, change: Callable[[bytes], bytes], code: int
) -> None:
    """Other opcodes, two questions, cut questions, other classes: an error code, never silence."""
    servers.add(silent)
    data = change(query("example.com"))

    async def work(upstream: Upstream) -> bytes | None:
        resolver = Resolver(upstream=upstream, has_ipv6=lambda: True, hosts=servers.hosts)
        return await resolver.answer(data, group=1, stream=False)

    response = servers.run(work)
    assert response is not None
    assert (response[:2], response[2] & 0x80, response[3] & 0xF) == (data[:2], 0x80, code)


@given(st.binary(max_size=80))
def test_no_bytes_break_the_resolver(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Garbage gives an error code or nothing; responses are never answered."""
    servers = Servers(tmp_path_factory.getbasetemp())

    async def work(upstream: Upstream) -> bytes | None:
        resolver = Resolver(upstream=upstream, has_ipv6=lambda: True, hosts=servers.hosts)
        return await resolver.answer(data, group=1, stream=False)

    response = servers.run(work)
    assert response is None or response[:2] == data[:2]
    if len(data) < 12 or data[2] & 0x80:
        assert response is None


# --- the race ------------------------------------------------------------------------------


def test_closed_ports_are_servfail_at_once(servers: Servers) -> None:
    """Nobody listens: the error comes long before any patience ends."""

    async def work(upstream: Upstream) -> tuple[bytes | None, float]:
        loop = asyncio.get_running_loop()
        since = loop.time()
        response = await upstream.ask(query("example.com"))
        return response, loop.time() - since

    response, seconds = servers.run(work)
    assert response is None
    assert seconds < TOTAL_SECONDS / 4


def test_a_silent_server_costs_little(servers: Servers) -> None:
    """The second server is asked while the first still has time, and its answer counts."""
    servers.add(silent)
    servers.add(zone("example.com 60 IN A 192.0.2.1"))

    async def work(upstream: Upstream) -> tuple[bytes | None, float]:
        loop = asyncio.get_running_loop()
        since = loop.time()
        return await upstream.ask(query("example.com")), loop.time() - since

    response, seconds = servers.run(work)
    assert response is not None
    assert seconds < TOTAL_SECONDS / 2
    assert [address for address, _ in servers.asked] == ["127.0.0.2", "127.0.0.3"]


@pytest.mark.parametrize("code", [RCODE.SERVFAIL, RCODE.REFUSED])
def test_a_failing_server_gives_way(servers: Servers, code: int) -> None:
    """SERVFAIL and REFUSED are not the last word while another server may know better."""
    servers.add(zone(code=code))
    servers.add(zone("example.com 60 IN A 192.0.2.1"))

    assert data_of(servers.say(query("example.com"))) == ["192.0.2.1"]


def test_when_all_fail_their_own_word_is_passed_on(servers: Servers) -> None:
    """REFUSED by every server is REFUSED for the client."""
    servers.add(zone(code=RCODE.REFUSED))

    assert servers.say(query("example.com")).header.rcode == RCODE.REFUSED


def test_nxdomain_ends_the_race(servers: Servers) -> None:
    """That a name does not exist is an answer."""
    servers.add(zone(code=RCODE.NXDOMAIN))
    servers.add(zone("example.com 60 IN A 192.0.2.1"))

    assert servers.say(query("example.com")).header.rcode == RCODE.NXDOMAIN


def test_forged_answers_are_passed_over(servers: Servers) -> None:
    """Another id, another question, a query sent back: none of them is the answer."""
    real = zone("example.com 60 IN A 192.0.2.1")

    def forging(data: bytes) -> list[bytes]:
        (good,) = real(data)
        other = bytes([data[0] ^ 1]) + good[1:]
        asked_else = good.replace(b"example", b"exbmple")
        return [other, asked_else, data, b"", good[:5], good]

    servers.add(forging)

    assert data_of(servers.say(query("example.com"))) == ["192.0.2.1"]


def test_the_list_of_servers_follows_the_file(tmp_path: Path) -> None:
    """resolv.conf is read again when it was replaced or written; without one, the local server."""
    conf = tmp_path / "resolv.conf"
    upstream = Upstream(conf)
    seen = [upstream.servers()]
    conf.write_text("nameserver 192.0.2.1\n")
    seen.append(upstream.servers())
    fresh = tmp_path / "fresh"
    fresh.write_text("nameserver 192.0.2.2\nnameserver fe80::1%eth0\n")
    fresh.rename(conf)
    seen.append(upstream.servers())
    conf.unlink()
    seen.append(upstream.servers())

    expected = [("127.0.0.1",), ("192.0.2.1",), ("192.0.2.2", "fe80::1%eth0"), ("127.0.0.1",)]
    assert seen == expected


@given(st.binary(max_size=60))
def test_questions_are_found_or_refused(data: bytes) -> None:
    """Any bytes have one question within them, or ValueError."""
    try:
        end = question_end(data)
    except ValueError:
        return
    assert 17 <= end <= len(data)


@given(st.binary(max_size=60))
def test_no_bytes_pass_for_an_answer(data: bytes) -> None:
    """Random bytes do not answer a question."""
    assert not is_answer(data, query("example.com"))


# --- the memory ----------------------------------------------------------------------------


class Clock:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


ONE, TWO = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def test_answers_are_remembered_per_box(servers: Servers) -> None:
    """Every address of an answer is known by the name asked for, through aliases, and only here."""
    memory = NameMemory()
    servers.add(
        zone(
            "shop.example 60 IN CNAME cdn.example",
            "cdn.example 60 IN A 192.0.2.1",
            "cdn.example 60 IN A 192.0.2.2",
        )
    )
    servers.say(query("Shop.Example"), memory=memory)

    assert memory.name_of(1, ONE) == "shop.example"
    assert len(memory.addresses_of(1, "shop.example")) == 2
    assert memory.name_of(2, ONE) is None


def test_the_memory_fades() -> None:
    """After its TTL, but not before a minute, an address loses its name."""
    clock = Clock()
    memory = NameMemory(clock=clock)
    memory.learn(1, "short", [(ONE, 5)])
    memory.learn(1, "long", [(TWO, 600)])
    clock.now += NameMemory.LEAST_SECONDS + 1

    assert (memory.name_of(1, ONE), memory.name_of(1, TWO)) == (None, "long")
    clock.now += 600
    assert memory.addresses_of(1, "long") == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=60))
def test_the_memory_is_bounded(steps: list[tuple[int, int]]) -> None:
    """However much is learnt, the limit holds, and the newest is there."""
    memory = NameMemory(limit=8)
    for group, number in steps:
        memory.learn(group, f"n{number}", [(IPv4Address(number), 60)])
        assert memory.name_of(group, IPv4Address(number)) == f"n{number}"
        assert len(memory) <= 8


def test_a_box_that_goes_is_forgotten() -> None:
    """Nothing of it stays, everything of the others does."""
    memory = NameMemory()
    memory.learn(1, "a", [(ONE, 60)])
    memory.learn(2, "b", [(ONE, 60)])
    memory.forget(1)

    assert (memory.name_of(1, ONE), memory.name_of(2, ONE)) == (None, "b")
