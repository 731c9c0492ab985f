"""A small internet for test_wayout.py: a host, a far host with servers, a keeper, boxes.

Needs root to build; the keeper then runs as whoever the test wants.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from dnslib import QTYPE, RCODE, RR, DNSRecord
from networld import Host, join

from loopbox.kernel.syscalls import CLONE_NEWNET, setns

HOST4, FAR4, DNS4 = "203.0.113.1", "203.0.113.2", "203.0.113.53"
HOST6, FAR6 = "2001:db8:1::1", "2001:db8:1::2"
ZONE = {
    "example.test": {"A": ["203.0.113.2"], "AAAA": ["2001:db8:1::2"]},
    "big.test": {"TXT": [f'"{"x" * 200}{number}"' for number in range(40)]},
}
DOWNLOAD = bytes(range(256)) * 4096 * 32
"""32 MiB."""


class World:
    """Host and far host, joined; what the far host serves; everything ends with the block."""

    def __init__(self, files: Path) -> None:
        self.stack = contextlib.ExitStack()
        self.files = files
        self.queries: list[str] = []

    def __enter__(self) -> World:
        self.host = self.stack.enter_context(Host())
        self.far = self.stack.enter_context(Host())
        join(
            self.host,
            self.far,
            one_has=[f"{HOST4}/24", f"{HOST6}/64"],
            other_has=[f"{FAR4}/24", f"{DNS4}/24", f"{FAR6}/64"],
        )
        # Refusals are what is tested here, so the far host must not tire of them.
        self.far.sysctl("ipv4/icmp_ratelimit", 0)
        self.far.sysctl("ipv6/icmp/ratelimit", 0)
        self.host.run(f"ip route add default via {FAR4}")
        self.host.run(f"ip -6 route add default via {FAR6}")
        self.files.mkdir(mode=0o755)
        (self.files / "etc").mkdir()
        for name in ("hosts", "resolv.conf", "nsswitch.conf"):
            (self.files / "etc" / name).write_text("")
        (self.files / "resolv.conf").write_text(f"nameserver {DNS4}\n")
        (self.files / "hosts").write_text("127.0.0.1 localhost\n203.0.113.2 Printer printer.lan\n")
        for address in (FAR4, FAR6):
            self._serve(self.far, address, 7, _echo)
            self._serve(self.far, address, 80, _download)
            self._serve_udp(self.far, address, 7, lambda data, peer: b"echo " + data)
        self._serve_udp(self.far, DNS4, 53, self._answer)
        self._serve(self.far, DNS4, 53, self._answer_stream)
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    def serve_on_host(self, address: str, port: int) -> None:
        """An echo server on the host itself."""
        self._serve(self.host, address, port, _echo)

    def _serve(self, where: Host, address: str, port: int, handle) -> None:
        listener = where.listen(address, port)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_handled, args=(handle, client), daemon=True).start()

        self._run(accept, listener)

    def _serve_udp(self, where: Host, address: str, port: int, answer) -> None:
        opened = where.listen(address, port, kind=socket.SOCK_DGRAM)

        def serve() -> None:
            while True:
                try:
                    data, peer = opened.recvfrom(65535)
                except OSError:
                    return
                if peer is None:  # shut down
                    return
                opened.sendto(answer(data, peer), peer)

        self._run(serve, opened)

    def _run(self, target, opened: socket.socket) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()

        def end() -> None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            thread.join(5)

        self.stack.callback(end)

    def _answer(self, data: bytes, peer: object, *, limit: int = 512) -> bytes:
        query = DNSRecord.parse(data)
        name, kind = str(query.q.qname), QTYPE[query.q.qtype]
        self.queries.append(f"{name} {kind}")
        reply = query.reply(ra=1, aa=0)
        records = ZONE.get(name.lower().rstrip("."))
        if records is None:
            reply.header.rcode = RCODE.NXDOMAIN
        else:
            for text in records.get(kind, []):
                reply.add_answer(*RR.fromZone(f"{name} 60 IN {kind} {text}"))
        packed = reply.pack()
        if len(packed) > limit:
            reply.rr, reply.header.tc = [], 1
            packed = reply.pack()
        return packed

    def _answer_stream(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while head := stream.read(2):
                data = stream.read(struct.unpack(">H", head)[0])
                response = self._answer(data, None, limit=65535)
                client.sendall(struct.pack(">H", len(response)) + response)


class Box:
    """A network namespace of the keeper's, entered from outside."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go."""
        os.close(self.fd)

    def do(self, function, *arguments, **options):
        """`function(*arguments)` in a thread inside this box."""
        outcome = []

        def inside() -> None:
            setns(self.fd, CLONE_NEWNET)
            try:
                outcome.append((function(*arguments, **options), None))
            except OSError as error:
                outcome.append((None, error))

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def connect(self, address: str, port: int, *, kind=socket.SOCK_STREAM) -> socket.socket:
        """A connected socket of the box; five seconds of patience."""

        def connect() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            made.settimeout(5)
            try:
                made.connect((address, port))
            except OSError:
                made.close()
                raise
            return made

        return self.do(connect)

    def listen(self, address: str, port: int, *, kind=socket.SOCK_STREAM) -> socket.socket:
        """A bound (and listening) socket of the box."""

        def listen() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            made.settimeout(5)
            try:
                made.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    made.listen()
            except OSError:
                made.close()
                raise
            return made

        return self.do(listen)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A program in the box, as root."""
        return self.do(subprocess.run, command.split(), capture_output=True, text=True, check=False)


class KeeperProcess:
    """The keeper program on the host, asked by lines of JSON."""

    def __init__(self, world: World, *, uid: int) -> None:
        argv = [sys.executable, str(Path(__file__).with_name("wayout_keeper.py"))]
        if uid:
            argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *argv]
        self.process = world.host.do(
            subprocess.Popen,
            [*argv, str(world.files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.boxes: dict[int, Box] = {}

    def ask(self, *command: object):
        """Send one command, give its answer."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def make(self, group: int) -> Box:
        """A new box."""
        self.boxes[group] = box = Box(self.ask("make", group))
        return box

    def close(self) -> int:
        """End the keeper in order; gives its exit status."""
        for box in self.boxes.values():
            box.close()
        self.process.stdin.close()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def _handled(handle, client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        handle(client)


def _echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def _download(client: socket.socket) -> None:
    client.recv(65536)
    client.sendall(DOWNLOAD)
