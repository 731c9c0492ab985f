"""One suite for both cores of the relay: real sockets, real network namespaces.

Needs the right to make network namespaces: root, or a user namespace (the last test starts the
suite again in one, as a plain user, when it runs as root). Each box is a fresh namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from harness import in_thread
from loopbox.keeper import relay_python
from loopbox.keeper.relay import (
    EndedConnection,
    Relay,
    RelayStatistics,
    compiled_core,
    make_relay,
    pack_targets,
)

T = TypeVar("T")
NEWNET = 0x40000000
DEADLINE_S = 20.0
QUIET_MS = 300
RESET = struct.pack("ii", 1, 0)
LIBC = ctypes.CDLL(None, use_errno=True)
REFUSAL = b"HTTP/1.1 502 Bad Gateway\r\n\r\nnobody listens\n"


# ---- a small world ---------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool]) -> bool:
    """Poll a condition until it holds or the deadline passes; returns whether it holds."""
    until = time.monotonic() + DEADLINE_S
    pause = select.poll()
    while not condition():
        if time.monotonic() > until:
            return False
        pause.poll(2)
    return True


def lo_up() -> None:
    """Bring up lo in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


class Box:
    """A network namespace with lo up, held by a descriptor."""

    def __init__(self) -> None:
        self.netns_fd = in_thread(self._make)

    @staticmethod
    def _make() -> int:
        if LIBC.unshare(NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        lo_up()
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def listen(self, address: str = "127.0.0.1", port: int = 0) -> socket.socket:
        """A listening socket that lives in the box."""

        def make() -> socket.socket:
            if LIBC.setns(self.netns_fd, NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
            return listen(address, port)

        return in_thread(make)

    def close(self) -> None:
        """Let go of the namespace."""
        if self.netns_fd >= 0:
            os.close(self.netns_fd)
        self.netns_fd = -1


def listen(address: str = "127.0.0.1", port: int = 0, backlog: int = 1024) -> socket.socket:
    """A listening socket in the calling thread's namespace."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    sock.settimeout(DEADLINE_S)
    return sock


class World:
    """A relay, a box with a server, and a door on the host that leads to it."""

    def __init__(self, relay: Relay, box: Box, closing: contextlib.ExitStack) -> None:
        self.relay = relay
        self.box = box
        self.closing = closing
        self.server = self.keep(box.listen())
        self.port: int = self.server.getsockname()[1]
        self.targets = [("127.0.0.1", self.port), ("::1", self.port)]
        self.address: tuple[str, int] = ("", 0)

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close the socket when the test is over."""
        return self.closing.enter_context(sock)

    def open_door(self, door: int = 1, *, owner: int | None = None, group: int = 7) -> None:
        """Listen on the host and hand that to the relay."""
        listener = listen()
        self.address = listener.getsockname()
        self.relay.add_door(
            door,
            listener.detach(),
            group=group,
            netns_fd=self.box.netns_fd,
            targets=self.targets,
            owner=owner,
        )

    def client(self) -> socket.socket:
        """A client connected to the door."""
        return self.keep(socket.create_connection(self.address, DEADLINE_S))

    def accept(self) -> socket.socket:
        """The server's end of the next connection."""
        sock, _ = self.server.accept()
        sock.settimeout(DEADLINE_S)
        return self.keep(sock)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and the server's end of its connection, through the door."""
        if not self.address[1]:
            self.open_door()
        return self.client(), self.accept()

    def adopt(self, *, head: bytes = b"", refusal: bytes = b"") -> socket.socket:
        """A client whose accepted end is handed to `dial`; returns the client."""
        client, accepted = tcp_pair()
        self.relay.dial(
            accepted.detach(),
            group=7,
            netns_fd=self.box.netns_fd,
            targets=self.targets,
            head=head,
            refusal=refusal,
        )
        return self.keep(client)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on the host."""
    with listen() as listener:
        one = socket.create_connection(listener.getsockname(), DEADLINE_S)
        other, _ = listener.accept()
    other.settimeout(DEADLINE_S)
    return one, other


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    parts = []
    while size and (part := sock.recv(min(size, 1 << 18))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def outcome(sock: socket.socket) -> str:
    """How the stream ends: "end" or "reset"; bytes before that are read."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return "reset"
    return "end"


def knock(address: tuple[str, int]) -> str:
    """How a connection ends whose client says nothing; a reset may come before connect returns."""
    try:
        with socket.create_connection(address, DEADLINE_S) as sock:
            return outcome(sock)
    except ConnectionResetError:
        return "reset"


def socket_buffers() -> int:
    """The most bytes that the kernel keeps for one direction of one TCP connection."""
    limits = [
        Path("/proc/sys/net/ipv4", name).read_text("ascii") for name in ("tcp_rmem", "tcp_wmem")
    ]
    return sum(int(limit.split()[2]) for limit in limits)


def is_closed(address: tuple[str, int]) -> bool:
    """Does nobody listen there?"""
    with socket.socket() as sock:
        return sock.connect_ex(address) == errno.ECONNREFUSED


def is_orphaned(door_port: int) -> bool:
    """Does a client's socket towards this port read as uid 0 without an inode, whoever had it?"""
    rows = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [row.split() for row in rows]
    return any(
        int(row[2].partition(":")[2], 16) == door_port and row[7] == "0" and row[9] == "0"
        for row in fields
    )


def abort(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def send_in_chunks(sock: socket.socket, data: bytes, seed: int) -> None:
    """Send in random sizes from one byte to 200 KB, then end the stream."""
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size = dice.choice([1, 7, 100, 1460, 4096, 65535, 65536, 65537, 200_000])
        sock.sendall(data[at : at + size])
        at += size
    sock.shutdown(socket.SHUT_WR)


def swap(left: socket.socket, right: socket.socket, size: int, seed: int) -> bool:
    """Send different random bytes both ways at once; tells whether both arrived unchanged."""
    to_right, to_left = random.Random(seed).randbytes(size), random.Random(-seed).randbytes(size)
    with ThreadPoolExecutor(3) as pool:
        sends = [
            pool.submit(send_in_chunks, left, to_right, seed),
            pool.submit(send_in_chunks, right, to_left, seed + 1),
        ]
        at_right = pool.submit(read_all, right)
        at_left = read_all(left)
        for send in sends:
            send.result(DEADLINE_S)
        return (at_left, at_right.result(DEADLINE_S)) == (to_left, to_right)


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def add_veth(name: str, peer_netns_fd: int) -> None:
    """Make a veth pair from here into a namespace: our end vanishes when that namespace does."""
    peer = bytes(16) + attribute(28, struct.pack("=i", peer_netns_fd))  # IFLA_NET_NS_FD
    data = attribute(1, b"veth") + attribute(2, attribute(1, peer))  # VETH_INFO_PEER
    body = bytes(16) + attribute(3, name.encode() + b"\0") + attribute(18, data)  # IFLA_LINKINFO
    create_exclusive_ack = 0x605
    head = struct.pack("=IHHII", 16 + len(body), 16, create_exclusive_ack, 1, 0)  # RTM_NEWLINK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        route.bind((0, 0))
        route.send(head + body)
        assert struct.unpack_from("=i", route.recv(4096), 16)[0] == 0


def descriptors() -> set[str]:
    """The descriptors of this process that are open now."""
    return {name for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd", name).exists()}


def count_descriptors() -> int:
    """How many descriptors are open now, the one of this very look included."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """How many threads this process has now, the interpreter's and others."""
    return len(os.listdir("/proc/self/task"))


def run_as(uid: int, action: Callable[[], None]) -> None:
    """Do something in a child with another uid and wait for it; it must not fail."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setresuid(uid, uid, uid)
            action()
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture(params=["compiled", "python"])
def pure(request: pytest.FixtureRequest) -> bool:
    """Which of the two cores."""
    if request.param == "compiled" and compiled_core() is None:
        pytest.skip("the compiled core is not built")
    return bool(request.param == "python")


@pytest.fixture
def parked(pure: bool) -> Iterator[tuple[Relay, contextlib.ExitStack]]:
    """A relay that has not started yet, its home namespace and its sock_diag socket."""
    with contextlib.ExitStack() as closing:
        home = Box()
        closing.callback(home.close)
        diag = closing.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4))
        relay = make_relay(home_netns_fd=home.netns_fd, diag_fd=diag.fileno(), pure=pure)
        closing.callback(relay.stop)
        yield relay, closing


@pytest.fixture
def asleep(parked: tuple[Relay, contextlib.ExitStack]) -> World:
    """A world whose relay has not started yet."""
    relay, closing = parked
    box = Box()
    closing.callback(box.close)
    return World(relay, box, closing)


@pytest.fixture
def world(asleep: World) -> World:
    """A world whose relay runs."""
    asleep.relay.start()
    return asleep


INSIDE = "LOOPBOX_TEST_RELAY_INSIDE"


@pytest.fixture(autouse=True)
def _right_to_make_boxes(request: pytest.FixtureRequest) -> None:
    """A plain user has it in a user namespace only: the last test runs all the others there."""
    if os.geteuid() == 0 or INSIDE in os.environ:
        return
    if request.node.get_closest_marker("anywhere") is None:
        pytest.skip("runs in a user namespace, by the last test of this file")


needs_other_uids = pytest.mark.skipif(os.geteuid() != 0, reason="cannot become another user")


# ---- bytes -----------------------------------------------------------------------------------


def test_carries_what_the_server_says_first(world: World) -> None:
    """A protocol in which the server speaks first (SMTP, MySQL) works."""
    client, server = world.pair()

    server.sendall(b"220 ready\r\n")
    greeting = client.recv(100)
    client.sendall(b"QUIT\r\n")

    assert (b"220 ready\r\n", b"QUIT\r\n") == (greeting, server.recv(100))


@pytest.mark.parametrize("size", [0, 1, 65_536, 262_144, 3_000_001, 12_000_000])
def test_bytes_arrive_as_sent_both_ways_at_once(world: World, size: int) -> None:
    """Random bytes in random chunks arrive unchanged, from single bytes to spliced bulk."""
    client, server = world.pair()

    assert swap(client, server, size, seed=size + 1)


def test_sixty_connections_at_once_keep_their_bytes_apart(world: World) -> None:
    """More bulk flows than there are pipes carry different bytes at the same time."""
    world.open_door()
    pairs = [world.pair() for _ in range(60)]

    with ThreadPoolExecutor(60) as pool:
        results = list(pool.map(lambda i: swap(*pairs[i], 300_000, seed=i + 1), range(60)))

    assert [True] * 60 == results


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 262_144, 300_000])
def test_data_and_end_that_came_before_the_accept_arrive(asleep: World, size: int) -> None:
    """Early data and its FIN reach an edge-triggered loop as one event: neither is lost."""
    asleep.open_door()
    data = random.Random(size).randbytes(size)
    client = asleep.client()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_in_chunks, client, data, size)
        wait_until(lambda: sending.done() or size > 200_000)
        asleep.relay.start()
        server = asleep.accept()
        arrived = read_all(server)
        sending.result(DEADLINE_S)
    server.sendall(b"thanks")
    server.close()

    assert (data, b"thanks") == (arrived, read_all(client))


def test_an_urgent_byte_stays_in_the_stream(world: World) -> None:
    """Urgent data loses its urgency, not its place; that a read stops before it stalls nothing."""
    client, server = world.pair()

    client.send(b"before!", socket.MSG_OOB)
    arrived = read_exactly(server, 7)
    client.sendall(b"after")

    assert (b"before!", b"after") == (arrived, read_exactly(server, 5))


# ---- ends ------------------------------------------------------------------------------------


def test_a_client_that_has_said_all_still_hears(world: World) -> None:
    """Half-close from client to server: the answer comes after the end of the request."""
    client, server = world.pair()

    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    request = read_all(server)
    server.sendall(b"answer")
    server.close()

    assert (b"request", b"answer") == (request, read_all(client))


def test_a_server_that_has_said_all_still_hears(world: World) -> None:
    """Half-close from server to client: the client goes on sending after the server's end."""
    client, server = world.pair()

    server.sendall(b"bye")
    server.shutdown(socket.SHUT_WR)
    farewell = read_all(client)
    client.sendall(b"more" * 50_000)
    client.close()

    assert (b"bye", b"more" * 50_000) == (farewell, read_all(server))


@pytest.mark.parametrize("after", ["nothing", "half-close"])
def test_a_reset_of_the_client_reaches_the_server(world: World, after: str) -> None:
    """RST is carried across as RST, also from a peer that had already half-closed."""
    client, server = world.pair()
    client.sendall(b"x")
    assert b"x" == server.recv(1)
    if after == "half-close":
        client.shutdown(socket.SHUT_WR)
        assert b"" == server.recv(1)

    abort(client)
    gone = select.poll()
    gone.register(server, 0)

    assert [(server.fileno(), select.POLLERR | select.POLLHUP)] == gone.poll(DEADLINE_S * 1000)


def test_a_reset_of_the_server_reaches_the_client(world: World) -> None:
    """RST is carried across as RST, in the other direction."""
    client, server = world.pair()
    server.sendall(b"x")
    assert b"x" == client.recv(1)

    abort(server)

    assert "reset" == outcome(client)


def test_an_early_answer_survives_the_upload_that_nobody_reads(world: World) -> None:
    """A server that answers and closes with the upload unread is heard, as without a relay."""
    client, server = world.pair()
    answer = b"413 too large\r\n"

    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(65536))
    client.settimeout(DEADLINE_S)
    server.sendall(answer)
    server.close()

    assert answer == read_exactly(client, len(answer))
    assert "reset" == outcome(client)


def test_a_slow_reader_holds_back_the_sender_and_costs_nothing(world: World) -> None:
    """Back-pressure: a writer is stopped while nobody reads, the relay idles, all arrives."""
    client, server = world.pair()
    data = random.Random(5).randbytes(1 << 20)
    sent = 0
    client.setblocking(False)
    full = select.poll()
    full.register(client, select.POLLOUT)
    while full.poll(QUIET_MS):
        with contextlib.suppress(BlockingIOError):
            sent += client.send(data[sent % len(data) :])
    before = time.process_time()
    still_full = full.poll(QUIET_MS)
    busy = time.process_time() - before
    client.setblocking(True)
    client.shutdown(socket.SHUT_WR)
    arrived = read_all(server)
    expected = (data * (sent // len(data) + 1))[:sent]

    assert [] == still_full
    assert busy < QUIET_MS / 1000 / 4
    assert sent < 2 * socket_buffers() + (2 << 20)
    assert hashlib.sha256(expected).digest() == hashlib.sha256(arrived).digest()


# ---- dialling --------------------------------------------------------------------------------


def test_dial_sends_the_head_first_and_then_carries(world: World) -> None:
    """A client adopted after its head was read: the server sees head and body in order."""
    client = world.adopt(head=b"GET / HTTP/1.1\r\n")
    server = world.accept()
    client.sendall(b"\r\n")
    client.shutdown(socket.SHUT_WR)
    request = read_all(server)
    server.sendall(b"200")
    server.close()

    assert (b"GET / HTTP/1.1\r\n\r\n", b"200") == (request, read_all(client))


def test_a_head_larger_than_any_buffer_arrives(world: World) -> None:
    """First bytes that the server's socket does not take at once are kept, in order."""
    head = random.Random(3).randbytes(8 << 20)
    client = world.adopt(head=head)
    server = world.accept()
    client.sendall(b"tail")
    client.shutdown(socket.SHUT_WR)

    assert head + b"tail" == read_all(server)


def test_a_client_may_end_its_stream_before_the_dial(asleep: World) -> None:
    """Half-close before the relay has dialled is carried once it has."""
    client = asleep.adopt(head=b"head ")
    client.sendall(b"body")
    client.shutdown(socket.SHUT_WR)
    asleep.relay.start()
    server = asleep.accept()
    request = read_all(server)
    server.sendall(b"answer")
    server.close()

    assert (b"head body", b"answer") == (request, read_all(client))


def test_a_server_on_the_second_family_only_is_reached(world: World) -> None:
    """Targets are tried in order: a server that listens on ::1 alone is found."""
    world.server.close()
    world.server = world.keep(world.box.listen("::1", world.port))
    client, server = world.pair()
    server.sendall(b"six")

    assert b"six" == client.recv(10)


def test_a_door_to_nobody_resets_its_client(world: World) -> None:
    """When all targets refuse, a door's client is reset and counted as failed."""
    world.server.close()
    world.open_door()

    assert "reset" == knock(world.address)
    assert 1 == world.relay.statistics().failed


def test_dial_to_nobody_says_so_even_to_a_client_that_keeps_talking(asleep: World) -> None:
    """The refusal is read in full and the stream ends in order, unread request or not."""
    asleep.server.close()
    client = asleep.adopt(head=b"GET / HTTP/1.1\r\n\r\n", refusal=REFUSAL)
    client.sendall(bytes(60_000))
    asleep.relay.start()

    assert REFUSAL == read_all(client)
    client.sendall(bytes(60_000))
    client.close()
    assert wait_until(lambda: asleep.relay.statistics().open == 0)


def test_dial_to_nobody_without_words_is_a_reset(world: World) -> None:
    """No refusal text: the client is reset."""
    world.server.close()

    assert "reset" == outcome(world.adopt(head=b"x"))


def test_a_dial_waits_for_a_full_backlog_and_ends_with_its_client(world: World) -> None:
    """A server that accepts nobody leaves the dial pending; a client's reset ends that too."""
    narrow = world.keep(world.box.listen())
    narrow.listen(0)
    world.targets = [narrow.getsockname()[:2]]
    world.open_door()
    clients = [world.client() for _ in range(4)]
    assert wait_until(lambda: world.relay.statistics().open == 4)
    for client in clients:
        abort(client)

    assert wait_until(lambda: world.relay.statistics().open == 0)


def test_a_retargeted_door_leads_new_clients_elsewhere(world: World) -> None:
    """Old connections stay where they are, new ones go to the new target."""
    old_client, old_server = world.pair()
    other = world.keep(world.box.listen())
    world.relay.retarget_door(1, [other.getsockname()])
    world.server = other
    client, server = world.pair()
    server.sendall(b"new")
    old_server.sendall(b"old")

    assert (b"new", b"old") == (client.recv(10), old_client.recv(10))


# ---- join ------------------------------------------------------------------------------------


def test_join_delivers_first_bytes_both_ways_and_accounts_for_the_connection(world: World) -> None:
    """Ready-made sockets are carried; the account comes once, by id, told by an eventfd."""
    left, inner_left = (world.keep(sock) for sock in tcp_pair())
    right, inner_right = (world.keep(sock) for sock in socket.socketpair())
    number = world.relay.join(
        inner_left.detach(), inner_right.detach(), group=9, to_right=b"to right ", to_left=b"hi "
    )
    left.sendall(b"abc")
    left.shutdown(socket.SHUT_WR)
    right.sendall(b"left")
    right.shutdown(socket.SHUT_WR)
    heard = (read_all(right), read_all(left))
    news = select.poll()
    news.register(world.relay.ended_fd(), select.POLLIN)
    news.poll(DEADLINE_S * 1000)

    assert (b"to right abc", b"hi left") == heard
    assert [EndedConnection(number, 12, 7, reset=False)] == world.relay.ended()
    assert [] == news.poll(0)


def test_an_account_tells_of_a_reset(world: World) -> None:
    """A joined connection that a peer reset is marked so."""
    left, inner_left = tcp_pair()
    right, inner_right = (world.keep(sock) for sock in tcp_pair())
    number = world.relay.join(inner_left.detach(), inner_right.detach(), group=9)
    abort(left)

    assert "reset" == outcome(right)
    assert wait_until(lambda: world.relay.statistics().open == 0)
    assert [EndedConnection(number, 0, 0, reset=True)] == world.relay.ended()


# ---- whose client ----------------------------------------------------------------------------


def test_the_owner_is_served(world: World) -> None:
    """A door with an owner serves that owner's programs, on both families."""
    world.open_door(owner=os.getuid())
    client, server = world.pair()
    server.sendall(b"welcome")

    assert b"welcome" == client.recv(10)
    assert (1, 0) == (world.relay.statistics().accepted, world.relay.statistics().refused)


def test_the_owner_is_served_over_ipv6(world: World) -> None:
    """The lookup of a client's owner works for IPv6 doors too."""
    listener = listen("::1")
    world.address = listener.getsockname()[:2]
    world.relay.add_door(
        1,
        listener.detach(),
        group=7,
        netns_fd=world.box.netns_fd,
        targets=world.targets,
        owner=os.getuid(),
    )
    client, server = world.client(), world.accept()
    server.sendall(b"welcome")

    assert b"welcome" == client.recv(10)


def test_a_client_bound_to_the_loopback_device_is_served(world: World) -> None:
    """SO_BINDTODEVICE on the client's side does not hide it from the lookup."""
    world.open_door(owner=os.getuid())
    client = world.keep(socket.socket())
    client.settimeout(DEADLINE_S)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    client.connect(world.address)
    server = world.accept()
    server.sendall(b"welcome")

    assert b"welcome" == client.recv(10)


@needs_other_uids
@pytest.mark.parametrize("hasty", [False, True], ids=["waits", "sends and closes before accept"])
def test_clients_of_other_users_are_reset(asleep: World, hasty: bool) -> None:
    """Another user's client is refused, also as an orphan that no longer has an owner."""
    asleep.open_door(owner=os.getuid())

    def leave_at_once() -> None:
        with socket.create_connection(asleep.address, DEADLINE_S) as client:
            client.sendall(b"let me in")

    def wait() -> None:
        if knock(asleep.address) != "reset":
            raise AssertionError

    if hasty:
        run_as(65533, leave_at_once)
        assert wait_until(lambda: is_orphaned(asleep.address[1]))
        asleep.relay.start()
    else:
        asleep.relay.start()
        run_as(65533, wait)

    assert wait_until(lambda: asleep.relay.statistics().refused == 1)
    asleep.server.setblocking(False)
    with pytest.raises(BlockingIOError):
        asleep.server.accept()


# ---- limits ----------------------------------------------------------------------------------


def test_a_door_out_of_descriptors_waits_without_spinning_and_recovers(world: World) -> None:
    """EMFILE: clients stay in the backlog, the relay idles, and serves them when there is room."""
    world.open_door()
    client = world.keep(socket.socket())
    client.settimeout(DEADLINE_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    quiet = select.poll()
    quiet.register(client, select.POLLIN)
    highest = max(int(name) for name in descriptors())
    spare = [os.dup(0) for _ in range(highest + 1 - count_descriptors() + 8)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        client.connect(world.address)
        before = time.process_time()
        answered = quiet.poll(QUIET_MS)
        busy = time.process_time() - before
        os.close(spare.pop())
        quiet.poll(100)  # now there is room for the client but not for its dial
        stuck = world.relay.statistics()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
    server = world.accept()
    server.sendall(b"at last")

    assert [] == answered
    assert busy < QUIET_MS / 1000 / 4
    assert (0, 0) == (stuck.failed, stuck.refused)
    assert b"at last" == client.recv(10)


@pytest.mark.slow
def test_ten_thousand_connections_leave_no_descriptor(world: World) -> None:
    """A soak through one door: each answer is checked, and the descriptor count is flat."""
    world.open_door()
    many, workers = 10_000, 4

    def serve() -> None:
        for _ in range(many):
            conn, _ = world.server.accept()
            with conn:
                conn.sendall(hashlib.sha256(conn.recv(100)).digest())

    def call(number: int) -> bool:
        with socket.create_connection(world.address, DEADLINE_S) as conn:
            data = b"%d" % number
            conn.sendall(data)
            return read_all(conn) == hashlib.sha256(data).digest()

    world.client().close()
    world.server.accept()[0].close()
    wait_until(lambda: world.relay.statistics().open == 0)
    before = descriptors()
    with ThreadPoolExecutor(workers + 1) as pool:
        serving = pool.submit(serve)
        right = sum(pool.map(call, range(many), chunksize=100))
        serving.result(DEADLINE_S)
    wait_until(lambda: world.relay.statistics().open == 0)

    assert many == right
    assert before == descriptors()


# ---- doors, groups, life ---------------------------------------------------------------------


def test_a_removed_door_keeps_its_connections(world: World) -> None:
    """remove_door closes the listener only."""
    client, server = world.pair()
    world.relay.remove_door(1)

    assert wait_until(lambda: is_closed(world.address))
    server.sendall(b"still here")
    assert b"still here" == client.recv(20)


def test_a_dropped_group_is_reset_and_others_are_not(world: World) -> None:
    """drop_group resets its connections, closes its doors and touches no other group."""
    client, server = world.pair()
    first_door = world.address
    world.open_door(2, group=8)
    other_client, other_server = world.client(), world.accept()
    world.relay.drop_group(7)

    assert ("reset", "reset") == (outcome(client), outcome(server))
    assert wait_until(lambda: is_closed(first_door))
    other_server.sendall(b"untouched")
    assert b"untouched" == other_client.recv(20)
    assert wait_until(lambda: set(world.relay.statistics().groups) == {8})


@pytest.mark.parametrize("named", [True, False], ids=["namespace named", "group only"])
def test_a_dropped_group_frees_its_namespace(world: World, named: bool) -> None:
    """Nothing of the relay keeps a dropped box's namespace alive: its devices vanish."""
    client, server = world.pair()
    add_veth("boxend", world.box.netns_fd)
    for sock in (client, server, world.server):
        sock.close()
    world.relay.drop_group(7, world.box.netns_fd if named else None)
    world.box.close()

    def is_freed() -> bool:
        return "boxend" not in [name for _, name in socket.if_nameindex()]

    assert wait_until(is_freed)


def test_statistics_are_read_while_the_relay_runs(world: World) -> None:
    """Counters move while connections are open, in total and per group."""
    client, server = world.pair()
    client.sendall(b"12345")
    read_exactly(server, 5)
    server.sendall(b"123")
    read_exactly(client, 3)
    wait_until(lambda: world.relay.statistics().bytes_out == 3)
    seen = world.relay.statistics()

    expected = RelayStatistics(
        open=1, accepted=1, refused=0, failed=0, bytes_in=5, bytes_out=3, groups=seen.groups
    )
    assert expected == seen
    assert (1, 8) == (seen.groups[7].open, seen.groups[7].bytes)


def test_stop_leaves_no_descriptor_and_no_thread(pure: bool) -> None:
    """stop resets what is open, also what was queued, and gives everything back; twice is fine."""
    before = (descriptors(), set(os.listdir("/proc/self/task")))
    with contextlib.ExitStack() as closing:
        home, box = Box(), Box()
        closing.callback(home.close)
        closing.callback(box.close)
        diag = closing.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4))
        relay = make_relay(home_netns_fd=home.netns_fd, diag_fd=diag.fileno(), pure=pure)
        world = World(relay, box, closing)
        relay.start()
        client, server = world.pair()
        client.sendall(bytes(100_000))
        read_exactly(server, 100_000)
        relay.stop()
        ends = (outcome(client), outcome(server))
        relay.stop()
        late, given = tcp_pair()
        closing.enter_context(late)
        relay.dial(
            given.detach(),
            group=1,
            netns_fd=box.netns_fd,
            targets=[("127.0.0.1", 1)],
            head=b"",
            refusal=b"",
        )
        after_stop = outcome(late)

    assert ("reset", "reset", "end") == (*ends, after_stop)
    assert before[0] == descriptors()
    # By id: a thread of an earlier test that ends meanwhile must not stand in for one of ours.
    assert wait_until(lambda: set(os.listdir("/proc/self/task")) <= before[1])


def test_a_relay_that_never_started_gives_back_what_it_was_given(asleep: World) -> None:
    """Commands queued before start are undone by stop: the listener is closed."""
    asleep.open_door()
    asleep.relay.stop()

    assert is_closed(asleep.address)


def test_a_stray_descriptor_is_dropped_and_the_relay_lives(world: World) -> None:
    """Something that is no socket is closed, not fatal."""
    before = descriptors()
    read_end, write_end = os.pipe()
    world.relay.join(read_end, write_end, group=1)
    assert wait_until(lambda: descriptors() == before)
    client, server = world.pair()
    server.sendall(b"alive")

    assert b"alive" == client.recv(10)


@pytest.mark.parametrize(
    "targets",
    [[], [("localhost", 80)], [("127.0.0.1", 0)], [("::1", 65536)], [("127.0.0.1", 80)] * 9],
    ids=["none", "a name", "port 0", "port 65536", "too many"],
)
def test_bad_targets_are_the_callers_mistake(targets: list[tuple[str, int]]) -> None:
    """Targets must be one to eight numeric addresses with real ports."""
    with pytest.raises(ValueError, match="target"):
        pack_targets(tuple(targets))


def test_targets_survive_packing() -> None:
    """What relay.pack_targets packs is what the cores read."""
    targets = (("127.0.0.1", 80), ("::1", 8080))
    packed = pack_targets(targets)

    assert [
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET6, ("::1", 8080)),
    ] == relay_python.unpack_targets(packed)


# ---- as a plain user -------------------------------------------------------------------------

ROOTLESS = """
import ctypes, fcntl, os, socket, struct, sys
import pytest
uid, gid = os.getuid(), os.getgid()
if ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) < 0:
    sys.exit(77)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"{uid} {uid} 1")
open("/proc/self/gid_map", "w").write(f"{gid} {gid} 1")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", sys.argv[1]]))
"""


@pytest.mark.anywhere
def test_the_suite_holds_for_a_plain_user_in_a_user_namespace() -> None:
    """Rootless, as the keeper runs: own uid, all capabilities in a user namespace of its own."""
    if INSIDE in os.environ:
        pytest.skip("this is that run")
    another: dict[str, Any] = {"user": 65533, "group": 65533, "extra_groups": []}
    done = subprocess.run(
        [sys.executable, "-B", "-c", ROOTLESS, __file__],
        **(another if os.geteuid() == 0 else {}),
        env={**os.environ, INSIDE: "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd="/",
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("user namespaces are forbidden here")

    assert done.returncode == 0, done.stdout + done.stderr
