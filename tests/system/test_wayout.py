"""The way out, with a real kernel: boxes, a host, and a far host with servers.

Every test runs twice: with a keeper that is root, and with a plain user's in a user namespace.
"""

from __future__ import annotations

import errno
import hashlib
import select
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from dnslib import DNSRecord
from wayout_world import DNS4, DOWNLOAD, FAR4, FAR6, HOST4, HOST6, Box, KeeperProcess, World

from harness import until
from loopbox.kernel import nft

pytestmark = [pytest.mark.system, pytest.mark.root]

_PLAIN_UID = 54321
_groups = count(1)
UDP = socket.SOCK_DGRAM


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One small internet for all."""
    # Not below pytest's own directory: that is closed to other users, and this keeper is one.
    with tempfile.TemporaryDirectory() as base, World(Path(base) / "files") as made:
        Path(base).chmod(0o755)
        made.host.sysctl("ipv4/ping_group_range", "0 2147483647")
        yield made


@pytest.fixture(scope="module", params=["as root", "as a plain user"])
def keeper(request: pytest.FixtureRequest, world: World) -> Iterator[KeeperProcess]:
    """A keeper on the host; it ends in order, with status 0."""
    started = KeeperProcess(world, uid=0 if request.param == "as root" else _PLAIN_UID)
    try:
        yield started
    finally:
        assert started.close() == 0


@pytest.fixture
def group() -> int:
    """A number for a box that nobody had before."""
    return next(_groups)


@pytest.fixture
def box(keeper: KeeperProcess, group: int) -> Iterator[Box]:
    """A fresh box."""
    yield keeper.make(group)
    keeper.ask("unmake", group)


def said(box: Box, query: DNSRecord, *, server: str = "198.18.0.53", stream: bool = False):
    """The answer to a DNS query asked in the box."""
    if not stream:
        with box.connect(server, 53, kind=UDP) as asking:
            asking.send(query.pack())
            return DNSRecord.parse(asking.recv(65535))
    with box.connect(server, 53) as asking, asking.makefile("rb") as reading:
        data = query.pack()
        asking.sendall(struct.pack(">H", len(data)) + data)
        (length,) = struct.unpack(">H", reading.read(2))
        return DNSRecord.parse(reading.read(length))


def addresses(answer: DNSRecord) -> list[str]:
    """The data of all answer records."""
    return [str(rr.rdata) for rr in answer.rr]


def resets(box: Box, address: str, port: int) -> bool:
    """Whether a connection ends in a reset, be it that fast that connect already says so."""
    try:
        with box.connect(address, port) as connection:
            connection.recv(1)
    except ConnectionResetError:
        return True
    return False


# --- TCP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_bytes_go_out_and_come_back(box: Box, address: str) -> None:
    """A program in a box talks to a far server over either family."""
    with box.connect(address, 7) as connection:
        connection.sendall(b"hello")

        assert connection.recv(100) == b"hello"


def test_the_far_server_is_named_as_the_box_named_it(box: Box) -> None:
    """The peer's name is the address asked for, not the keeper's."""
    with box.connect(FAR4, 7) as connection:
        assert connection.getpeername() == (FAR4, 7)


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_a_large_download_arrives_whole(box: Box, address: str) -> None:
    """32 MiB come through unchanged, with their end."""
    received = hashlib.sha256()
    with box.connect(address, 80) as connection:
        connection.sendall(b"GET")
        while piece := connection.recv(1 << 20):
            received.update(piece)

    assert hashlib.sha256(DOWNLOAD).hexdigest() == received.hexdigest()


def test_a_closed_port_resets(keeper: KeeperProcess, box: Box, group: int) -> None:
    """A far port where nobody listens is a reset, and the ledger says refused."""
    assert resets(box, FAR4, 9)

    assert [one["outcome"] for one in keeper.ask("connections", group)] == ["refused"]


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (HOST4, "host"),
        (HOST6, "host"),
        ("169.254.169.254", "metadata"),
        ("0.0.0.1", "broadcast"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:cb00:7101::1", "host"),
    ],
)
def test_the_host_itself_is_refused(
    keeper: KeeperProcess, box: Box, group: int, address: str, rule: str
) -> None:
    """The host's own addresses, loopback in disguise and metadata are reset and written down."""
    assert resets(box, address, 22)

    (record,) = keeper.ask("connections", group)
    assert (False, rule, "denied") == (record["allow"], record["rule"], record["outcome"])


def test_an_address_the_host_gets_later_is_refused(
    keeper: KeeperProcess, world: World, box: Box
) -> None:
    """What is the host's own is asked of the kernel at the moment of deciding."""
    world.host.run("ip addr add 192.0.2.77/32 dev lo")
    try:
        assert resets(box, "192.0.2.77", 7)
    finally:
        world.host.run("ip addr del 192.0.2.77/32 dev lo")


def test_the_keepers_own_port_leads_nowhere(box: Box) -> None:
    """Calling the transparent listener itself is reset, not led in a circle."""
    for address in ("127.0.0.1", "::1", "198.18.0.1", FAR4):
        assert resets(box, address, nft.WAY_OUT_PORT)


def test_policy_none_lets_nothing_out(keeper: KeeperProcess, box: Box, group: int) -> None:
    """Under `none` a far server is refused."""
    keeper.ask("policy", group, "none")

    assert resets(box, FAR4, 7)


def test_the_ledger_knows_name_and_bytes(keeper: KeeperProcess, box: Box, group: int) -> None:
    """A finished connection is written down with the name asked for and the bytes carried."""
    said(box, DNSRecord.question("example.test"))
    with box.connect(FAR4, 7) as connection:
        connection.sendall(b"12345")
        connection.recv(100)

    until(lambda: [one["outcome"] for one in keeper.ask("connections", group)] == ["closed"])
    (record,) = keeper.ask("connections", group)
    assert (
        record["to"],
        record["name"],
        record["bytes_out"],
        record["bytes_in"],
        record["rule"],
    ) == ("203.0.113.2:7", "example.test", 5, 5, "open")


# --- what stays inside ---------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.8.7", "::1", "198.18.0.1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, UDP])
def test_traffic_of_the_box_with_itself_is_left_alone(
    keeper: KeeperProcess, box: Box, group: int, address: str, kind: socket.SocketKind
) -> None:
    """Loopback and own addresses reach the box's own server and no ledger."""
    with (
        box.listen(address, 5000, kind=kind) as server,
        box.connect(address, 5000, kind=kind) as client,
    ):
        if kind == UDP:
            client.send(b"x")
            assert server.recv(10) == b"x"
        else:
            accepted, peer = server.accept()
            accepted.close()
            assert client.getsockname()[:2] == peer[:2]

    assert keeper.ask("connections", group) == []


def test_a_closed_port_of_the_box_refuses(box: Box) -> None:
    """Connecting to a port of its own where nobody listens fails as ever."""
    for address in ("127.0.0.1", "::1", "198.18.0.1"):
        with pytest.raises(ConnectionRefusedError):
            box.connect(address, 5001)


@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8:9::9"])
def test_addresses_added_later_are_the_boxs_own(box: Box, address: str) -> None:
    """An address given to lo or to a link needs no change of any rule."""
    prefix, nodad = (128, " nodad") if ":" in address else (32, "")
    assert box.run("ip link add v0 type veth peer name v1").returncode == 0
    assert box.run("ip link set v0 up").returncode == 0
    for device in ("lo", "v0"):
        assert box.run(f"ip addr add {address}/{prefix} dev {device}{nodad}").returncode == 0
        # The kernel enters IPv6 addresses into its table a moment later.
        version = "-6" if prefix == 128 else "-4"
        table = f"ip {version} route show table local"
        until(lambda table=table: f"local {address} " in box.run(table).stdout)
        with pytest.raises(ConnectionRefusedError):
            box.connect(address, 5001)
        assert box.run(f"ip addr del {address}/{prefix} dev {device}").returncode == 0


def test_nft_prints_every_rule(box: Box) -> None:
    """What was sent by hand is what nft reads back, in order, with our comment on the table."""
    listed = box.run("nft list ruleset").stdout
    lines = [line.strip() for line in listed.splitlines()]

    rules = [rule for rule in (*nft.GUARD, *nft.WAY_OUT) if rule.chain == "prerouting"]
    at = lines.index(rules[0].text)
    assert lines[at : at + len(rules)] == [rule.text for rule in rules]
    assert {rule.text for rule in nft.GUARD} <= set(lines)
    assert f'comment "{nft.COMMENT}"' in lines


def test_the_guard_stands(box: Box) -> None:
    """127.99.0.1 does not leave by a link even when routed there; without our table it would."""
    for command in (
        "ip link add v0 type veth peer name v1",
        "ip addr add 192.0.2.1/24 dev v0",
        "ip link set v0 up",
        "ip link set v1 up",
        "sysctl -q net.ipv4.conf.v0.route_localnet=1",
        "ip neigh replace 192.0.2.5 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
        "ip route add 127.99.0.0/16 via 192.0.2.5 dev v0 table 7",
        "ip rule add pref 1 lookup local",
        "ip rule add pref 0 to 127.99.0.0/16 lookup 7",
        "ip rule del pref 0 lookup local",
    ):
        assert box.run(command).returncode == 0, command

    def leaks() -> bool:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
            wire.bind(("v1", 0x0800))
            wire.setblocking(False)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                try:
                    sender.sendto(b"leak", ("127.99.0.1", 9))
                except PermissionError:
                    return False
            return bool(select.select([wire], [], [], 0.2)[0])

    assert box.do(leaks) is False
    assert box.do(nft.remove) is True
    assert box.do(leaks) is True


# --- DNS -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("server", ["198.18.0.53", "8.8.8.8", "2001:4860:4860::8888"])
def test_names_are_answered_whoever_is_asked(box: Box, server: str, stream: bool) -> None:
    """The box's name server and any other answer alike, over UDP and TCP."""
    answer = said(box, DNSRecord.question("example.test"), server=server, stream=stream)

    assert addresses(answer) == ["203.0.113.2"]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("localhost", "A", ["127.0.0.1"]),
        ("shop.localhost", "AAAA", ["::1"]),
        ("printer.lan", "A", ["203.0.113.2"]),
        ("example.test", "AAAA", ["2001:db8:1::2"]),
    ],
)
def test_local_and_far_names(box: Box, name: str, kind: str, expected: list[str]) -> None:
    """Loopback names, the host's hosts file and the host's name server are all heard."""
    assert expected == addresses(said(box, DNSRecord.question(name, kind)))


def test_the_boxs_own_names_win(keeper: KeeperProcess, box: Box, group: int) -> None:
    """A production name given to the box means the box's loopback, the host is not asked."""
    keeper.ask("names", group, {"example.test": ["127.0.0.1"], "*.example.test": ["127.0.0.1"]})

    for name in ("example.test", "a.b.example.test"):
        assert addresses(said(box, DNSRecord.question(name))) == ["127.0.0.1"]


def test_localhost_is_not_asked_of_the_world(world: World, box: Box) -> None:
    """Queries for loopback names never reach the host's name server."""
    world.queries.clear()
    said(box, DNSRecord.question("secret.localhost"))
    said(box, DNSRecord.question("example.test"))

    assert world.queries == ["example.test. A"]


def test_a_long_answer_comes_over_tcp(box: Box) -> None:
    """Over UDP it is marked truncated; over TCP it is fetched whole."""
    query = DNSRecord.question("big.test", "TXT")

    assert (said(box, query).header.tc, said(box, query, stream=True).header.tc) == (1, 0)
    assert len(said(box, query, stream=True).rr) == 40


def test_a_box_may_run_a_dns_server(box: Box) -> None:
    """Port 53 is free in the box, and its own server answers on loopback."""
    with box.listen("0.0.0.0", 53, kind=UDP) as server:
        with box.connect("127.0.0.1", 53, kind=UDP) as client:
            client.send(b"mine")
            assert server.recv(100) == b"mine"
        assert addresses(said(box, DNSRecord.question("example.test"))) == ["203.0.113.2"]


def test_a_dead_name_server_is_servfail_at_once(world: World, box: Box) -> None:
    """When the host's name server is gone the box hears so, before its own patience ends."""
    conf = world.files / "resolv.conf"
    conf.write_text(f"nameserver {FAR4}\n")
    try:
        assert said(box, DNSRecord.question("example.test")).header.rcode == 2
    finally:
        conf.write_text(f"nameserver {DNS4}\n")


# --- datagrams and pings -------------------------------------------------------------------


@pytest.mark.parametrize("address", [FAR4, FAR6])
@pytest.mark.parametrize("size", [0, 5, 1400, 9000, 60000])
def test_datagrams_go_out_and_come_back(box: Box, address: str, size: int) -> None:
    """UDP of any size is relayed both ways, again and again in one flow."""
    with box.connect(address, 7, kind=UDP) as client:
        for number in range(3):
            data = bytes([number]) * size
            client.send(data)
            assert b"echo " + data == client.recv(65535)


def test_a_server_of_the_box_on_the_same_port_is_no_hindrance(box: Box) -> None:
    """A wildcard server on the far port's number does not keep flows from starting or going on."""
    with box.listen("0.0.0.0", 7, kind=UDP), box.connect(FAR4, 7, kind=UDP) as client:
        for _ in range(2):
            client.send(b"x")
            assert client.recv(100) == b"echo x"


@pytest.mark.parametrize(
    ("address", "port"), [(FAR4, 9), (FAR6, 9), (HOST4, 7), (HOST6, 7), ("169.254.169.254", 80)]
)
def test_refused_datagrams_fail_at_once(box: Box, address: str, port: int) -> None:
    """A closed far port and a forbidden address come back as errors, not as silence."""
    with box.connect(address, port, kind=UDP) as client:
        client.send(b"x")
        with pytest.raises(OSError, match=r".") as caught:
            client.recv(100)

    assert caught.value.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES)


@pytest.mark.parametrize(
    ("address", "expected"), [(FAR4, 0), (FAR6, 0), (HOST4, 1), (HOST6, 1), ("127.0.0.1", 0)]
)
def test_ping(box: Box, address: str, expected: int) -> None:
    """The world answers pings where the host may ping; the host itself refuses at once."""
    done = box.run(f"ping -n -c1 -W3 {address}")

    assert (expected, expected) == (done.returncode, done.stdout.count("+1 errors"))


def test_ping_without_leave_fails_at_once(keeper: KeeperProcess, world: World) -> None:
    """Where the host lets this user not ping, a box's ping is refused and not left waiting."""
    world.host.sysctl("ipv4/ping_group_range", "1 0")
    fresh = next(_groups)
    box = keeper.make(fresh)
    try:
        done = box.run(f"ping -n -c1 -W3 {FAR4}")
        answered = "1 received" in done.stdout
        assert answered or "+1 errors" in done.stdout
    finally:
        keeper.ask("unmake", fresh)
        world.host.sysctl("ipv4/ping_group_range", "0 2147483647")


def test_other_protocols_are_refused(box: Box) -> None:
    """What is neither TCP, UDP nor ping comes back as an ICMP error."""

    def send() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 132) as raw:
            raw.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
            raw.settimeout(5)
            raw.connect((FAR4, 0))
            raw.send(b"sctp, or so")
            try:
                raw.recv(100)
            except OSError as error:
                return error.errno or 0
        return 0

    assert box.do(send) == errno.EHOSTUNREACH


# --- forwarded ports -----------------------------------------------------------------------


@pytest.mark.parametrize("served", ["127.0.0.1", "::1"])
def test_a_forwarded_port_leads_to_the_host(
    keeper: KeeperProcess, world: World, box: Box, group: int, served: str
) -> None:
    """Either loopback address of the box leads to the host's server on either of the host's."""
    port = 20000 + group
    world.serve_on_host(served, port)
    assert {str(port): None} == keeper.ask("forwards", group, [port])

    for called in ("127.0.0.1", "::1"):
        with box.connect(called, port) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"


def test_forwards_are_a_desired_state(keeper: KeeperProcess, box: Box, group: int) -> None:
    """Asking again changes nothing, asking for others closes the first, asking for none all."""
    assert keeper.ask("forwards", group, [5432, 6379]) == {"5432": None, "6379": None}
    assert keeper.ask("forwards", group, [5432]) == {"5432": None}
    with pytest.raises(ConnectionRefusedError):
        box.connect("127.0.0.1", 6379)
    assert resets(box, "127.0.0.1", 5432)  # nobody listens on the host
    assert keeper.ask("forwards", group, []) == {}
    with pytest.raises(ConnectionRefusedError):
        box.connect("127.0.0.1", 5432)


def test_a_port_in_use_is_said_so(keeper: KeeperProcess, box: Box, group: int) -> None:
    """A forward that a program of the box stands in the way of names the problem."""
    with box.listen("127.0.0.1", 5432):
        problems = keeper.ask("forwards", group, [5432])

    assert problems == {"5432": "a program in the box already listens on port 5432"}


def test_own_inodes_are_all_the_keepers_sockets(
    keeper: KeeperProcess, box: Box, group: int
) -> None:
    """Every socket in a fresh box is known as the keeper's own, forwards included."""
    keeper.ask("forwards", group, [5432])

    listed = box.run("ss -Hltune").stdout
    seen = {int(word[4:]) for word in listed.split() if word.startswith("ino:")}
    assert seen == set(keeper.ask("inodes", group))


# --- IPv6 of the host, life and death ------------------------------------------------------


def test_a_host_without_ipv6_means_none_in_the_box(
    keeper: KeeperProcess, world: World, box: Box
) -> None:
    """The box's IPv6 world and AAAA answers go and come with the host's default route."""
    query = DNSRecord.question("example.test", "AAAA")

    def fails() -> bool:
        keeper.ask("ipv6")
        try:
            box.connect(FAR6, 7).close()
        except OSError as error:
            return error.errno == errno.ENETUNREACH
        return False

    world.host.run("ip -6 route del default")
    try:
        assert until(fails)
        assert addresses(said(box, query)) == []
    finally:
        world.host.run(f"ip -6 route add default via {FAR6}")
    until(lambda: not fails())
    assert addresses(said(box, query)) == ["2001:db8:1::2"]


def test_nothing_is_left_open(keeper: KeeperProcess, world: World) -> None:
    """A box that was used in every way and unmade leaves no descriptor in the keeper."""

    def use() -> None:
        group = next(_groups)
        box = keeper.make(group)
        keeper.ask("forwards", group, [5432])
        said(box, DNSRecord.question("example.test"))
        for address in (FAR4, FAR6):
            with box.connect(address, 7, kind=UDP) as client:
                client.send(b"x")
                client.recv(10)
        box.run(f"ping -n -c1 -W3 {FAR4}")
        waiting = box.connect(FAR4, 53)
        connection = box.connect(FAR4, 7)
        connection.sendall(b"x")
        connection.recv(1)
        keeper.ask("unmake", group)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        connection.close()
        waiting.close()

    use()
    before = until(lambda: keeper.ask("descriptors"))
    use()
    until(lambda: keeper.ask("descriptors") <= before, what="the descriptors' return")


def test_a_box_is_taken_over(keeper: KeeperProcess, box: Box, group: int) -> None:
    """The way out of a living box is made anew by a keeper that follows, and works again."""
    rules = box.run("nft list ruleset").stdout
    keeper.ask("close", group)
    keeper.ask("equip", group)

    assert rules == box.run("nft list ruleset").stdout
    with box.connect(FAR4, 7) as connection:
        connection.sendall(b"again")
        assert connection.recv(100) == b"again"


def test_real_programs(world: World, box: Box) -> None:
    """curl in a box fetches from the far host by address."""
    done = box.do(
        subprocess.run,
        f"curl --http0.9 -sS -m 10 -o /dev/null -w %{{size_download}} http://{FAR4}/".split(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, str(len(DOWNLOAD))) == (done.returncode, done.stdout)
