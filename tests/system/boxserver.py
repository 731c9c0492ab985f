"""The servers that the front door's tests run in a box: one program, one protocol per port.

Owns: HTTP with everything people do over it (8000), the same on ::1 alone (8001) and on another
loopback address (8002), a protocol in which the server speaks first (2525), one that needs a
half-close (9000), resets both ways (9001, 9002), a source that never ends by itself (9003), TLS
with the box's own certificate (8443), UDP (5353), and a control port (7000) that opens and closes
listeners on demand. Runs on the standard library alone, as a program of the user's does.

Must never: know of loopbox. It binds loopback only, and says its own name in every answer.

Example::

    python boxserver.py shop shop.pem        # shop.pem: key and certificate
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import socket
import socketserver
import ssl
import struct
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = 1 << 20
PATTERN = hashlib.shake_256(b"loopbox").digest(BLOCK)
LINGER_RESET = struct.pack("ii", 1, 0)
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

PAGE = """<!doctype html><meta charset=utf-8><title>{name}</title>
<p id=where>served by {name}</p><p id=called>waiting</p><p id=socket>waiting</p>
<img src="/hold?{number}">
<script>
function say(id, text) {{ document.getElementById(id).textContent = text; }}
let called = fetch("http://localhost:8000/who").then(answer => answer.text())
  .then(text => say("called", "called " + text), () => say("called", "refused"));
let heard = new Promise(done => {{
  let socket = new WebSocket("ws://" + location.host + "/ws");
  socket.onopen = () => socket.send("page");
  socket.onmessage = message => done(say("socket", "heard " + message.data));
  socket.onerror = () => done(say("socket", "failed"));
}});
Promise.all([called, heard]).then(() => {{
  let texts = ["where", "called", "socket"].map(id => document.getElementById(id).textContent);
  fetch("/done?{number}&" + texts.map(encodeURIComponent).join("&"));
}});
</script>
"""
"""Its picture is not there, and says so only when the script is done: until then it loads."""


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes in blocks of which no two are the same, on both ends of a test."""
    number = 0
    while size > 0:
        block = struct.pack(">Q", number) + PATTERN[8:]
        yield block[:size]
        size -= len(block)
        number += 1


class State:
    """What the servers of this process share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.next_event = threading.Event()
        self.written = 0
        """Bytes that the source has been able to write to its last client."""
        self.endings: list[str] = []
        """How clients of port 9002 ended: `end` or `reset`, with what they had sent."""
        self.accepted = 0
        """Clients of port 9002 so far."""
        self.opened: dict[str, socket.socket] = {}
        self.pages: list[threading.Event] = []
        """One per page served, set when its script is done."""
        self.shown: list[list[str]] = []
        """What those pages then showed."""


class Web(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    server: WebServer
    served = 0

    def do_GET(self) -> None:
        """One table of paths."""
        self.served += 1
        path, _, query = self.path.partition("?")
        if path == "/ws":
            self._websocket()
        elif path == "/events":
            self._events()
        elif path == "/big":
            self._big(int(query))
        else:
            kind, text = self._page(path, query)
            self._say(text.encode(), kind=kind)

    def _page(self, path: str, query: str) -> tuple[str, str]:
        state = self.server.state
        if path == "/page":
            state.pages.append(threading.Event())
            return "text/html", PAGE.format(name=state.name, number=len(state.pages) - 1)
        if path == "/hold":
            state.pages[int(query)].wait(20)
        elif path == "/done":
            number, *texts = query.split("&")
            state.pages[int(number)].set()
            state.shown.append([urllib.parse.unquote(text) for text in texts])
        elif path == "/next":
            state.next_event.set()
        told = {
            "/who": state.name,
            "/count": str(self.served),
            "/next": "ok",
            "/host": self.headers["Host"] or "",
            "/head": self.requestline + "\n" + str(self.headers),
            "/written": str(state.written),
            "/shown": json.dumps(state.shown),
            "/endings": json.dumps([state.accepted, *state.endings]),
        }
        return "text/plain", told.get(path, state.name)

    def do_POST(self) -> None:
        """The body's length and hash, however it is sent."""
        self.served += 1
        digest, length = hashlib.sha256(), 0
        for piece in self._body():
            digest.update(piece)
            length += len(piece)
        answer = {"name": self.server.state.name, "length": length, "sha256": digest.hexdigest()}
        self._say(json.dumps(answer).encode(), kind="application/json")

    do_PUT = do_POST  # noqa: N815 - the library's own spelling

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0 and (piece := self.rfile.read(min(BLOCK, left))):
            yield piece
            left -= len(piece)

    def _say(self, body: bytes, *, kind: str = "text/plain") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(body)

    def _big(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for block in blocks(size):
            self.wfile.write(block)

    def _events(self) -> None:
        """One event at once, the second when somebody asks for /next: nothing may hold it back."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        state = self.server.state
        for number in (1, 2):
            self.wfile.write(f"data: {state.name} {number}\n\n".encode())
            state.next_event.wait(20)
        state.next_event.clear()
        self.close_connection = True

    def _websocket(self) -> None:
        """Echoes text messages with this server's name in front (RFC 6455)."""
        key = self.headers["Sec-WebSocket-Key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                return
            length = head[1] & 127
            if length == 126:
                length = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            text = bytes(one ^ mask[at % 4] for at, one in enumerate(self.rfile.read(length)))
            answer = self.server.state.name.encode() + b" " + text
            self.wfile.write(b"\x81" + bytes([len(answer)]) + answer)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing is logged."""


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """HTTP on one address."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, state: State, address: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.state = state
        super().__init__((address, port), Web)

    def server_bind(self) -> None:
        """Without the look-up of the host's own name that the library does here."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, *_arguments: Any) -> None:
        """A client that goes away is its own business."""


def serve(
    address: str, port: int, handle: Callable[[State, socket.socket], None], state: State
) -> None:
    """A thread that accepts, and one per client."""
    listener = socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=1024
    )

    def one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            handle(state, client)

    def accept() -> None:
        while True:
            client, _peer = listener.accept()
            threading.Thread(target=one, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def serve_tls(state: State, certificate: str) -> None:
    """HTTPS with this box's own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = WebServer(state, "127.0.0.1", 8443)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()


def greet(state: State, client: socket.socket) -> None:
    """The server speaks first, as in SMTP."""
    client.sendall(f"220 {state.name} ready\r\n".encode())
    line = client.makefile("rb").readline()
    client.sendall(b"250 " + state.name.encode() + b" heard " + line)


def hash_all(state: State, client: socket.socket) -> None:
    """Answers only after the client's end of stream."""
    digest = hashlib.sha256()
    while data := client.recv(BLOCK):
        digest.update(data)
    client.sendall(f"{state.name} {digest.hexdigest()}".encode())


def reset(_state: State, client: socket.socket) -> None:
    """Resets the client after its first bytes."""
    client.recv(100)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def watch_end(state: State, client: socket.socket) -> None:
    """Writes down how the client ended."""
    state.accepted += 1
    client.sendall(b"hello")
    got = b""
    try:
        while data := client.recv(100):
            got += data
        state.endings.append(f"end after {got.decode()}")
    except ConnectionResetError:
        state.endings.append(f"reset after {got.decode()}")


def pour(state: State, client: socket.socket) -> None:
    """64 MiB as fast as the client takes them."""
    state.written = 0
    for block in blocks(64 * BLOCK):
        view = memoryview(block)
        while view:
            sent = client.send(view[:65536])
            state.written += sent
            view = view[sent:]


def control(state: State, client: socket.socket) -> None:
    """`open PROTOCOL ADDRESS PORT` and `close PORT`, one line each, answered when done."""
    lines = client.makefile("rb")
    while words := lines.readline().decode().split():
        if words[0] == "close":
            one = state.opened.pop(words[1])
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        else:
            state.opened[words[3]] = _open(state, words[1], words[2], int(words[3]))
        client.sendall(b"done\n")


def _open(state: State, protocol: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if protocol == "tcp":
        listener = socket.create_server((address, port), family=family)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _peer = listener.accept()
                    with client:
                        client.sendall(f"{state.name} {port}".encode())

        threading.Thread(target=accept, daemon=True).start()
        return listener
    return _open_udp(state, address, port)


def _open_udp(state: State, address: str, port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((address, port))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = one.recvfrom(65536)
                if not peer:
                    return
                one.sendto(f"{state.name} {port} ".encode() + data, peer)

    threading.Thread(target=answer, daemon=True).start()
    return one


def main(name: str, certificate: str) -> None:
    """Open every port, then serve until killed."""
    state = State(name)
    for address, port in (("127.0.0.1", 8000), ("::1", 8001), ("127.0.0.5", 8002)):
        server = WebServer(state, address, port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    for port, handle in (
        (2525, greet),
        (9000, hash_all),
        (9001, reset),
        (9002, watch_end),
        (9003, pour),
    ):
        serve("127.0.0.1", port, handle, state)
    _open_udp(state, "127.0.0.1", 5353)
    _open_udp(state, "::1", 5354)
    serve_tls(state, certificate)
    serve("127.0.0.1", 7000, control, state)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
