"""A server for bulk in both directions: `python bulkserver.py PORT`.

`GET /` is answered with bytes until the client goes; the body of `POST /` is read and thrown away,
then counted back. Just enough HTTP that a proxy which speaks only HTTP can be measured too. Must
never import anything of this project: it runs in boxes and in containers.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading

CHUNK = 256 * 1024
ENDLESS = 1 << 40
"""Content-Length of an answer that nobody reads to its end."""


def serve(client: socket.socket) -> None:
    """One connection, one request."""
    with client, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            got = client.recv(CHUNK)
            if not got:
                return
            head += got
        head, _, rest = head.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ENDLESS)
            block = bytes(CHUNK)
            while True:
                client.sendall(block)
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        left = int(length[1]) - len(rest) if length else 0
        buffer = bytearray(CHUNK)
        while left > 0:
            count = client.recv_into(buffer)
            if not count:
                return
            left -= count
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def main() -> None:
    """Listen on 127.0.0.1 until killed."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
