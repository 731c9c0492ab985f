"""The front door with a real relay and real network namespaces, without the keeper around it.

The test's own network namespace is the host, each box is a fresh one. Servers are sockets made
in a box and served by the test's event loop: a socket stays where it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TypeVar

import pytest

from harness import in_thread
from loopbox.keeper.frontdoor import DoorBox, FrontDoor
from loopbox.keeper.relay import Relay, make_relay
from loopbox.keeper.shareddoor import SharedDoors
from loopbox.keeper.udpdoor import UdpDoors
from loopbox.kernel.namespaces import open_namespace, raise_lo
from loopbox.kernel.sockets import ListeningSocket, listening, open_diag
from loopbox.kernel.syscalls import CLONE_NEWNET, setns, unshare

pytestmark = [pytest.mark.system, pytest.mark.root]

T = TypeVar("T")
Listening = tuple[str, str, int]
"""Protocol, address, port."""

DEADLINE = 10.0
NOBODY = 65534
PLAIN_PYTHON = "/usr/bin/python3"


def make_namespace() -> int:
    """A network namespace with lo up, as a descriptor."""

    def make() -> int:
        unshare(CLONE_NEWNET)
        raise_lo()
        return open_namespace("net")

    return in_thread(make)


class ThreadRoam:
    """Runs functions inside boxes, each in a thread of its own."""

    async def inside(self, netns_fd: int, function: Callable[[], T], /) -> T:
        """The function's result from that namespace."""

        def enter() -> T:
            setns(netns_fd, CLONE_NEWNET)
            return function()

        return await asyncio.to_thread(lambda: in_thread(enter))


class World:
    """A host with boxes and a front door."""

    def __init__(self, relay: Relay, diag: socket.socket) -> None:
        self.names: dict[str, str] = {}
        self.boxes: dict[str, DoorBox] = {}
        self.relay = relay
        self.diag = diag
        self.roam = ThreadRoam()
        self.front_door: FrontDoor
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []

    def open(self, *, head_seconds: float = 10.0) -> None:
        """Put the front door up."""
        self.front_door = FrontDoor(
            relay=self.relay,
            roam=self.roam,
            diag=self.diag,
            owner=os.geteuid(),
            directory=lambda: self.names,
            head_seconds=head_seconds,
        )

    def add(self, name: str) -> DoorBox:
        """A box that is up and shows nothing yet."""
        number = len(self.boxes) + 1
        self.boxes[name] = DoorBox(
            name=name,
            address=IPv4Address(f"127.64.0.{number}"),
            group=number,
            netns_fd=make_namespace(),
            owner=os.geteuid(),
        )
        self.names[name] = "up"
        return self.boxes[name]

    def inside(self, box: DoorBox, function: Callable[[], T]) -> T:
        """The function's result from the box's namespace."""

        def enter() -> T:
            setns(box.netns_fd, CLONE_NEWNET)
            return function()

        return in_thread(enter)

    async def serve(self, box: DoorBox, address: str, port: int) -> None:
        """A TCP server in the box: says its box, port and what it got, then echoes."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = self.inside(box, lambda: socket.create_server((address, port), family=family))

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                writer.write(f"{box.name} {port}\n".encode())
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        self._servers.append(await asyncio.start_server(greet, sock=listener))

    def serve_udp(self, box: DoorBox, address: str, port: int) -> None:
        """A UDP server in the box: answers its box's name and the datagram."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            made.bind((address, port))
            return made

        server = self.inside(box, make)
        self._sockets.append(server)

        def answer() -> None:
            data, client = server.recvfrom(65536)
            server.sendto(f"{box.name} {client[1]} ".encode() + data, client)

        asyncio.get_running_loop().add_reader(server.fileno(), answer)

    async def show(self, *boxes: DoorBox) -> dict[tuple[str, int], str | None]:
        """Show what listens in the boxes; the problems of the last."""
        problems: dict[tuple[str, int], str | None] = {}
        for box in boxes:
            problems = await self.front_door.show(box, self.inside(box, listening_here))
        return problems

    async def close(self) -> None:
        """Everything is closed."""
        for server in self._servers:
            server.close()
        for one in self._sockets:
            asyncio.get_running_loop().remove_reader(one.fileno())
            one.close()
        for box in self.boxes.values():
            os.close(box.netns_fd)


@contextlib.asynccontextmanager
async def world(*, head_seconds: float = 10.0) -> AsyncIterator[World]:
    """A host with a relay and a front door; whatever it opened must be closed afterwards."""
    before = descriptors()
    home = make_namespace()
    with open_diag() as relay_diag, open_diag() as diag:
        relay = make_relay(home_netns_fd=home, diag_fd=relay_diag.fileno())
        relay.start()
        made = World(relay, diag)
        made.open(head_seconds=head_seconds)
        try:
            yield made
        finally:
            await made.front_door.close()
            await asyncio.to_thread(relay.stop)
            await made.close()
            os.close(home)
    # The loop lets go of accepted transports in its next rounds.
    await until(lambda: descriptors() <= before, "all descriptors to be closed")


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


async def ask(address: str, port: int, request: bytes, *, wanted: int = -1) -> bytes:
    """Connect, send, and read to the end, or until `wanted` bytes are there."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            writer.write(request)
            return await (reader.read() if wanted < 0 else reader.readexactly(wanted))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def get(host: str, *more: str) -> bytes:
    """A request for a host."""
    return "\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *more, "", ""]).encode()


async def echoed(address: str, port: int, request: bytes, greeting: bytes) -> bool:
    """Whether that greeting comes and the request comes back as it was sent."""
    answer = await ask(address, port, request, wanted=len(greeting) + len(request))
    return answer == greeting + request


async def status(address: str, port: int, request: bytes) -> bytes:
    """The status code of the answer, b"" for none."""
    return (await ask(address, port, request))[9:12]


async def is_refused(address: str, port: int) -> bool:
    """Whether nobody listens there."""
    try:
        _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def as_nobody(script: str, *arguments: str) -> str:
    """What a Python script of another user prints."""
    done = subprocess.run(
        [PLAIN_PYTHON, "-I", "-c", script, *arguments],
        capture_output=True,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        timeout=DEADLINE,
        check=False,
        cwd="/",
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


ASK_TCP = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
        s.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
        data = s.recv(100)
        print(data.decode().split("\\n")[0] or "closed")
except ConnectionResetError:
    print("reset")
"""

SEND_TCP = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
    s.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
print("sent")
"""

ASK_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("127.0.0.1", int((sys.argv + ["0"])[3])))
    s.settimeout(0.4)
    s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    try:
        print(s.recv(100).decode().split(" ")[0])
    except TimeoutError:
        print("silence")
"""


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "0.0.0.0", "::", "127.9.9.9"])
def test_a_listener_appears_at_the_boxs_address(bind: str) -> None:
    """Whichever address of its loopback a server in the box has bound, the host reaches it."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, bind, 3000)

            assert await host.show(box) == {("tcp", 3000): None}
            assert await echoed("127.64.0.1", 3000, b"\0\xffhello", b"shop 3000\n")

    run(scenario)


def test_two_boxes_share_a_port_number() -> None:
    """Each is reached at its own address, and by its own name at the shared door."""

    async def scenario() -> None:
        async with world() as host:
            shop, fix = host.add("shop"), host.add("fix-ui.shop")
            await host.serve(shop, "127.0.0.1", 3000)
            await host.serve(fix, "::1", 3000)
            await host.show(shop, fix)

            for address in ("127.0.0.1", "::1"):
                for name in ("shop", "api.shop", "SHOP", "a.b.shop"):
                    request = get(f"{name}.localhost:3000") + b"body\0"
                    assert await echoed(address, 3000, request, b"shop 3000\n")
                for name in ("fix-ui.shop", "api.fix-ui.shop"):
                    request = get(f"{name}.localhost.")
                    assert await echoed(address, 3000, request, b"fix-ui.shop 3000\n")
            assert await echoed("127.64.0.1", 3000, b"x", b"shop 3000\n")
            assert await echoed("127.64.0.2", 3000, b"x", b"fix-ui.shop 3000\n")

    run(scenario)


def test_what_goes_disappears_and_what_stays_stays() -> None:
    """Showing less closes what is gone, showing the same changes nothing."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.serve(box, "127.0.0.1", 3001)
            await host.show(box)
            numbers = host.front_door.statistics()
            await host.show(box)
            assert numbers == host.front_door.statistics()

            reader, writer = await asyncio.open_connection("127.64.0.1", 3001)
            assert await reader.readline() == b"shop 3001\n"
            remaining = [one for one in host.inside(box, listening_here) if one.port == 3000]
            await host.front_door.show(box, remaining)

            await until_refused("127.64.0.1", 3001)
            assert await is_refused("127.0.0.1", 3001)
            assert await is_refused("::1", 3001)
            assert await echoed("127.64.0.1", 3000, b"x", b"shop 3000\n")
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"
            writer.close()

            await host.front_door.hide(box)
            for address in ("127.64.0.1", "127.0.0.1", "::1"):
                await until_refused(address, 3000)
            assert await is_refused("127.0.0.1", 80)

    run(scenario)


def listening_here() -> list[ListeningSocket]:
    """What listens in the calling thread's namespace."""
    with open_diag() as diag:
        return list(listening(diag))


async def until_refused(address: str, port: int) -> None:
    """Wait until nobody listens there: the relay closes doors in its own thread."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not await is_refused(address, port):
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)


def test_names_that_lead_nowhere_are_told() -> None:
    """404 with the names, 503 with the box's name, 508 for a loop; never another box."""

    async def scenario() -> None:
        async with world() as host:
            shop, idle = host.add("shop"), host.add("idle")
            host.names["old"] = "stopped"
            await host.serve(shop, "127.0.0.1", 3000)
            await host.show(shop, idle)

            unknown = await ask("127.0.0.1", 3000, get("till.localhost:3000"))
            stopped = await ask("::1", 3000, get("old.localhost:3000"))
            silent = await ask("127.0.0.1", 3000, get("idle.localhost:3000"))

            assert (unknown[9:12], b"idle, shop" in unknown) == (b"404", True)
            assert (stopped[9:12], b"box old is stopped" in stopped) == (b"503", True)
            assert (silent[9:12], b"in box idle" in silent) == (b"503", True)
            for host_name in ("localhost", "127.0.0.1", "[::1]:3000", "shop", "x.example.com"):
                assert await status("127.0.0.1", 3000, get(host_name)) == b"404"
            looped = get("shop.localhost", "Via: " + "1.1 x, " * 30)
            assert await status("127.0.0.1", 3000, looped) == b"508"
            page = await ask("127.0.0.1", 3000, get("localhost", "Accept: text/html"))
            assert b'<a href="http://shop.localhost:3000">' in page

    run(scenario)


def test_bad_heads_are_answered() -> None:
    """No Host, two, junk, too much: an answer that arrives although more was sent than read."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.show(box)

            for request, expected in (
                (b"GET / HTTP/1.1\r\n\r\n", b"400"),
                (get("a", "Host: b"), b"400"),
                (b"\0\1\2 junk", b"400"),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
                (get("shop.localhost", "X: " + "a" * 300_000), b"431"),
                (b"GET / HTTP/9.9\r\n", b"505"),
            ):
                assert await status("127.0.0.1", 3000, request) == expected

    run(scenario)


def test_slow_and_silent_heads_end_by_deadline() -> None:
    """A byte now and then does not stretch the deadline, and is answered 408."""

    async def scenario() -> None:
        async with world(head_seconds=0.4) as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.show(box)
            began = asyncio.get_running_loop().time()
            reader, writer = await asyncio.open_connection("127.0.0.1", 3000)
            answer = asyncio.ensure_future(reader.read())
            for value in get("shop.localhost"):
                writer.write(bytes([value]))
                await asyncio.wait({answer}, timeout=0.05)
                if answer.done():
                    break
            silent = await ask("127.0.0.1", 3000, b"")

            assert (await answer)[9:12] == b"408"
            assert silent[9:12] == b"408"
            assert asyncio.get_running_loop().time() - began < 3
            writer.close()
            assert host.front_door.statistics().shared.waiting == 0

    run(scenario)


def test_many_open_heads_push_out_the_oldest() -> None:
    """However many clients say nothing, only so many are kept; the newest is still served."""

    async def scenario() -> None:
        async with world() as host:
            await host.front_door.close()
            box = host.add("shop")
            doors = SharedDoors(
                relay=host.relay,
                diag=host.diag,
                owner=os.geteuid(),
                directory=lambda: host.names,
                shown=lambda name: None,
                client_limit=4,
            )
            assert doors.open(3000)
            clients = [await asyncio.open_connection("127.0.0.1", 3000) for _ in range(10)]
            await until(lambda: doors.statistics.accepted == 10, "all to be accepted")

            assert doors.statistics.waiting == 4
            for reader, _ in clients[:6]:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            clients[9][1].write(get(f"{box.name}.localhost"))
            assert (await clients[9][0].read())[9:12] == b"503"
            doors.close_all()
            for _, writer in clients:
                writer.close()

    run(scenario)


def client_hello(name: str | None) -> bytes:
    """The first bytes of a TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def test_tls_is_led_by_server_name_and_passed_through() -> None:
    """The ClientHello arrives in the box as it was sent; unknown names get their alert."""

    async def scenario() -> None:
        async with world() as host:
            box, old = host.add("shop"), "old"
            host.names[old] = "stopped"
            await host.serve(box, "127.0.0.1", 8443)
            await host.show(box)

            for port in (8443, 443):
                hello = client_hello("api.shop.localhost")
                assert await echoed("127.0.0.1", port, hello, b"shop 8443\n")
            for name, alert in (("till.localhost", 112), (None, 112), ("old.localhost", 80)):
                answer = await ask("::1", 8443, client_hello(name))
                assert answer == bytes([21, 3, 3, 0, 2, 2, alert])

    run(scenario)


def test_web_port_is_served_on_80() -> None:
    """Port 80 leads to the port that most likely speaks HTTP."""

    async def scenario() -> None:
        async with world() as host:
            shop, till, data = host.add("shop"), host.add("till"), host.add("data")
            await host.serve(shop, "127.0.0.1", 5432)
            await host.serve(shop, "127.0.0.1", 5173)
            await host.serve(till, "127.0.0.1", 80)
            await host.serve(data, "127.0.0.1", 5432)
            await host.show(shop, till, data)

            for name, greeting in (("shop", b"shop 5173\n"), ("till", b"till 80\n")):
                assert await echoed("127.0.0.1", 80, get(f"{name}.localhost"), greeting)
            assert await status("127.0.0.1", 80, get("data.localhost")) == b"503"

    run(scenario)


def test_other_users_are_reset() -> None:
    """Another user reaches neither the box's address nor the shared door, whatever it sends."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            host.serve_udp(box, "127.0.0.1", 5353)
            await host.show(box)
            request = get("shop.localhost").decode().encode("unicode_escape").decode()

            for address in ("127.64.0.1", "127.0.0.1", "::1"):
                said = await asyncio.to_thread(as_nobody, ASK_TCP, address, "3000", request)
                assert said == "reset"
            assert await asyncio.to_thread(as_nobody, ASK_UDP, "127.64.0.1", "5353") == "silence"
            assert host.front_door.statistics().shared.foreign == 2

    run(scenario)


def test_a_foreign_client_that_is_gone_before_it_is_accepted_stays_foreign() -> None:
    """Who sends and closes while nobody looks leaves an orphan, which is not taken for root's."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.show(box)
            request = get("shop.localhost").decode().encode("unicode_escape").decode()

            # Called in the event loop's own thread: the door cannot accept meanwhile.
            assert as_nobody(SEND_TCP, "127.0.0.1", "3000", request) == "sent"

            await until(lambda: host.front_door.statistics().shared.accepted == 1, "the client")
            found = host.front_door.statistics().shared
            assert (found.foreign, found.passed_on) == (1, 0)

    run(scenario)


def test_a_client_that_shuts_its_side_is_answered() -> None:
    """The end of what a client sends is carried across with its head."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.show(box)
            request = get("shop.localhost")
            for address in ("127.64.0.1", "127.0.0.1"):
                reader, writer = await asyncio.open_connection(address, 3000)
                writer.write(request)
                writer.write_eof()
                async with asyncio.timeout(DEADLINE):
                    assert await reader.read() == b"shop 3000\n" + request
                writer.close()

    run(scenario)


def test_a_port_that_passes_to_another_user_takes_no_flow_with_it() -> None:
    """Whoever has the client's port next is looked up anew."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            host.serve_udp(box, "127.0.0.1", 5353)
            doors = UdpDoors(roam=host.roam, diag=host.diag, trust_seconds=0.02)
            doors.open(box, 5353, target=("127.0.0.1", 5353))
            with UdpClient() as client:
                port = str(client.socket.getsockname()[1])
                await client.ask(b"x", ("127.64.0.1", 5353))

            said = await asyncio.to_thread(as_nobody, ASK_UDP, "127.64.0.1", "5353", port)

            assert said == "silence"
            assert doors.flow_count == 1
            await doors.aclose()

    run(scenario)


def test_a_box_that_admits_everyone_lets_other_users_in() -> None:
    """The opt-out holds for that box alone; names of the others are not even told."""

    async def scenario() -> None:
        async with world() as host:
            shop, public = host.add("shop"), replace(host.add("public"), owner=None)
            for box in (shop, public):
                await host.serve(box, "127.0.0.1", 3000)
                host.serve_udp(box, "127.0.0.1", 5353)
            await host.show(shop, public)

            async def foreign(address: str, name: str) -> str:
                request = get(f"{name}.localhost").decode().encode("unicode_escape").decode()
                return await asyncio.to_thread(as_nobody, ASK_TCP, address, "3000", request)

            assert await foreign("127.0.0.1", "public") == "public 3000"
            assert await foreign("127.64.0.2", "public") == "public 3000"
            assert await foreign("127.0.0.1", "shop") == "reset"
            assert await foreign("127.0.0.1", "unknown") == "reset"
            assert await asyncio.to_thread(as_nobody, ASK_UDP, "127.64.0.2", "5353") == "public"
            assert await asyncio.to_thread(as_nobody, ASK_UDP, "127.64.0.1", "5353") == "silence"

    run(scenario)


def test_ports_of_the_host_are_left_alone_and_said_so() -> None:
    """What a program of the host holds stays its own; later the door opens after all."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            with socket.create_server(("0.0.0.0", 3000)):
                problems = await host.show(box)

                text = "is in use on the host: a program of user 0 listens on 0.0.0.0:3000"
                assert problems == {("tcp", 3000): f"127.64.0.1:3000 {text}"}
                assert host.front_door.shared_problems == {3000: f"127.0.0.1:3000 {text}"}
                assert await is_refused("::1", 3000)
                assert await host.show(box) == problems
            assert await host.show(box) == {("tcp", 3000): None}
            assert host.front_door.shared_problems == {}
            assert host.front_door.is_shared(3000)
            assert await echoed("127.64.0.1", 3000, b"x", b"shop 3000\n")

    run(scenario)


def test_listeners_that_loopback_does_not_reach_make_no_door() -> None:
    """A server bound to a device other than lo is not shown."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            found = [replace(one, interface=7) for one in host.inside(box, listening_here)]

            assert await host.front_door.show(box, found) == {}

    run(scenario)


def test_a_server_that_moves_is_followed() -> None:
    """A door whose listener comes back on another address leads there."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "::1", 3000)
            await host.show(box)
            host._servers.pop().close()
            await host.serve(box, "127.9.9.9", 3000)
            await host.show(box)

            assert await echoed("127.64.0.1", 3000, b"x", b"shop 3000\n")
            assert await echoed("127.0.0.1", 3000, get("shop.localhost"), b"shop 3000\n")

    run(scenario)


def test_a_server_that_is_gone_gives_503_by_name_and_a_reset_by_address() -> None:
    """Between a server's end and the next look the door says what it found."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            await host.serve(box, "127.0.0.1", 3000)
            await host.show(box)
            host._servers.pop().close()

            assert await status("127.0.0.1", 3000, get("shop.localhost")) == b"503"
            with pytest.raises(ConnectionResetError):
                await ask("127.64.0.1", 3000, b"x")

    run(scenario)


class UdpClient:
    """A UDP client on the host."""

    def __init__(self, *, connected: tuple[str, int] | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(("127.0.0.1", 0))
        if connected is not None:
            self.socket.connect(connected)

    async def ask(self, data: bytes, to: tuple[str, int]) -> tuple[bytes, tuple[str, int]]:
        """Send and wait for the answer and who sent it."""
        loop = asyncio.get_running_loop()
        self.socket.sendto(data, to)
        async with asyncio.timeout(DEADLINE):
            answer, sender = await loop.sock_recvfrom(self.socket, 65536)
        return answer, sender

    def __enter__(self) -> UdpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_udp_comes_and_goes(bind: str) -> None:
    """Datagrams reach the box and answers come from the address that was asked."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            host.serve_udp(box, bind, 5353)
            assert await host.show(box) == {("udp", 5353): None}
            door = ("127.64.0.1", 5353)

            with UdpClient() as one, UdpClient(connected=door) as two:
                first, sender = await one.ask(b"a", door)
                again, _ = await one.ask(b"b" * 60_000, door)
                other, _ = await two.ask(b"", door)

            assert sender == door
            assert (
                first.split(b" ", 2)[2],
                again.split(b" ", 2)[2],
                other.split(b" ", 2)[2],
            ) == (b"a", b"b" * 60_000, b"")
            # One port in the box for each client, so that the server can tell them apart.
            assert first.split(b" ")[1] == again.split(b" ")[1] != other.split(b" ")[1]

    run(scenario)


def test_idle_udp_flows_end_and_their_number_is_bounded() -> None:
    """A flow nobody uses is closed; beyond the limit the one unused longest gives way."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            host.serve_udp(box, "127.0.0.1", 5353)
            doors = UdpDoors(roam=host.roam, diag=host.diag, idle_seconds=0.3, flow_limit=2)
            doors.open(box, 5353, target=("127.0.0.1", 5353))
            door = ("127.64.0.1", 5353)

            with UdpClient() as one, UdpClient() as two, UdpClient() as three:
                for client in (one, two, three, one):
                    assert (await client.ask(b"x", door))[0].startswith(b"shop ")
                    assert doors.flow_count <= 2
                await until(lambda: doors.flow_count == 0, "idle flows to end")
                assert (await one.ask(b"x", door))[0].startswith(b"shop ")
            await doors.aclose()
            assert doors.flow_count == 0

    run(scenario)


def test_udp_port_in_use_is_said() -> None:
    """A UDP port that the host holds is a problem, not a failure."""

    async def scenario() -> None:
        async with world() as host:
            box = host.add("shop")
            host.serve_udp(box, "127.0.0.1", 5353)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
                holder.bind(("0.0.0.0", 5353))
                problems = await host.show(box)
                text = "is in use on the host: a program of user 0 listens on 0.0.0.0:5353"
                assert problems == {("udp", 5353): f"127.64.0.1:5353 {text}"}
            assert await host.show(box) == {("udp", 5353): None}

    run(scenario)


def test_a_box_made_anew_under_its_name_replaces_the_old_one() -> None:
    """The same name with another namespace closes what led into the old one."""

    async def scenario() -> None:
        async with world() as host:
            old = host.add("shop")
            await host.serve(old, "127.0.0.1", 3000)
            await host.show(old)
            new = replace(host.add("second"), name="shop")
            await host.serve(new, "127.0.0.1", 3001)
            await host.show(new)

            await until_refused("127.64.0.1", 3000)
            assert await echoed("127.0.0.1", 3001, get("shop.localhost"), b"shop 3001\n")
            assert await status("127.0.0.1", 80, get("second.localhost")) == b"503"

    run(scenario)
