"""Two copies of one program, each in a box of its own, and the clients that call them.

Owns: `Copies` (boxes `shop` and `fix-ui.shop`, both running `boxserver.py` on the same ports), and
helpers that call as users do: `curl`, a plain socket, one line of another user's Python.

Must never: look inside loopbox. What it knows it has from the command line.

Example::

    with two_copies(tmp_path) as copies:
        copies.curl("http://fix-ui.shop.localhost:8000/who")        # "fix-ui.shop"
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Sandbox, until

SERVER = Path(__file__).parent / "boxserver.py"
DEADLINE = 20.0
NOBODY = 65534


def need(program: str) -> str:
    """The program's path. Without it the test is skipped, on the build server it fails."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    if found is None:
        assert "CI" not in os.environ, f"{program} is not installed"
        pytest.skip(f"{program} is not installed")
    return found


class Copies:
    """Two boxes with the same program in them."""

    names = ("shop", "fix-ui.shop")

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.address: dict[str, str] = {}
        self.certificate: dict[str, Path] = {}

    def start(self) -> None:
        """Both copies up and serving."""
        for name in self.names:
            self.certificate[name] = make_certificate(self.sandbox.root, name)
            self.sandbox.serve(
                *(sys.executable, str(SERVER), name, str(self.certificate[name])),
                name=name,
                port=7000,
            )
            self.address[name] = self.sandbox.ok("address", name).strip()

    def curl(self, *arguments: str) -> str:
        """What curl prints on the host."""
        return curl(*arguments)

    def connect(self, name: str, port: int) -> socket.socket:
        """A connection to a box's own address."""
        return socket.create_connection((self.address[name], port), DEADLINE)

    def keeper_pid(self) -> int:
        """The keeper that serves them."""
        pid = self.sandbox.keeper_pid()
        assert pid is not None
        return pid


def curl(*arguments: str) -> str:
    """What curl prints, with no proxy and a deadline; fails when curl does."""
    done = subprocess.run(
        [need("curl"), "-sS", "--noproxy", "*", "--max-time", "60", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


def make_certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for NAME.localhost and what is below it, with its key."""
    path = folder / f"{name}.pem"
    made = subprocess.run(
        [
            *(need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "-", "-days", "2"),
            *("-subj", f"/CN={name}.localhost"),
            *("-addext", f"subjectAltName=DNS:{name}.localhost,DNS:*.{name}.localhost"),
        ],
        capture_output=True,
        check=True,
    )
    path.write_bytes(made.stdout)
    return path


@contextlib.contextmanager
def two_copies(root: Path) -> Iterator[Copies]:
    """Both copies up, and everything gone afterwards."""
    sandbox = Sandbox(root)
    try:
        copies = Copies(sandbox)
        copies.start()
        yield copies
    finally:
        sandbox.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    pieces = []
    while data := sock.recv(1 << 20):
        pieces.append(data)
    return b"".join(pieces)


def ask(address: tuple[str, int], request: bytes) -> bytes:
    """One request, and everything that is answered."""
    with socket.create_connection(address, DEADLINE) as sock:
        sock.sendall(request)
        return read_all(sock)


def as_nobody(script: str, *arguments: str) -> str:
    """What a Python script prints that another user of this machine runs."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", script, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd="/",
    )
    return done.stdout.strip()


def wait_for_listener(address: str, port: int) -> None:
    """Until a TCP connection to there is taken."""

    def connects() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return True
        return False

    until(connects, what=f"{address}:{port}")
