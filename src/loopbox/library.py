"""The library: a box as a Python object.

Owns: `box()`, a context that holds a box for as long as it is open, and `Box`, what can be done
with one. Every call is blocking and may be made from any thread that does not share the object.
Must never: move the calling process into a box (a rootless process could not come back): programs
are started inside, and sockets are made inside and used from here.

Example::

    with loopbox.box("shop") as box:
        server = box.run(["python", "-m", "http.server", "8000"])
        box.wait_listening(8000)
        with box.connect(8000) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loopbox import client
from loopbox.errors import DeadlineError


class Box:
    """A box that is up while the context that gave it is open."""

    def __init__(self, keeper: client.Keeper, name: str, address: str) -> None:
        self._keeper = keeper
        self._lock = threading.Lock()
        self.name = name
        self.address = address
        """Where the host reaches it, on any port: 127.x.y.z."""

    def __repr__(self) -> str:
        return f"<loopbox.Box {self.name} at {self.address}>"

    def run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the box; `options` are subprocess.Popen's.

        The process id is the program's own. A program that cannot be started ends with 127, 126
        or 125 and says why on its standard error.
        """
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "loopbox", "exec", self.name, "--", *command], **options
        )

    def connect(self, port: int, *, timeout: float = 10.0) -> socket.socket:
        """A TCP connection to the box's loopback that lives in the box; the caller closes it.

        127.0.0.1 is tried first, then ::1. Raises ConnectionRefusedError when nothing listens,
        TimeoutError after `timeout` seconds.
        """
        refused: OSError | None = None
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            made = self.socket(family)
            made.settimeout(timeout)
            try:
                made.connect((host, port))
            except OSError as error:
                made.close()
                refused = refused or error
            else:
                return made
        assert refused is not None
        raise refused

    def listen(self, port: int = 0, *, host: str = "127.0.0.1") -> socket.socket:
        """A TCP listener that lives in the box; the caller closes it. Port 0 draws one."""
        made = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen()
        except BaseException:
            made.close()
            raise
        return made

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A new socket that lives in the box; the caller closes it."""
        _fields, fds = self._ask("socket", family=str(int(family)), type=str(int(kind)))
        return socket.socket(fileno=fds[0])

    def wait_listening(self, port: int, *, timeout: float = 30.0) -> None:
        """Wait until something listens on a TCP port. Raises DeadlineError after `timeout` s."""
        with client.connect(start=False) as keeper:
            keeper.request(
                {"verb": "wait", "name": self.name, "port": str(port), "timeout": str(timeout)}
            )

    def show(self) -> dict[str, Any]:
        """The box as `loopbox show --json` has it."""
        fields, _fds = self._ask("show")
        found = json.loads(fields["json"])
        assert isinstance(found, dict)
        return found

    @property
    def names(self) -> list[dict[str, Any]]:
        """The names that mean this box's loopback, inside it."""
        return list(self.show()["names"])

    @property
    def addresses(self) -> list[str]:
        """The addresses of its loopback interface."""
        return list(self.show()["loopback"])

    @property
    def egress(self) -> dict[str, Any]:
        """What it may reach outside: `{"policy", "rules"}`."""
        return dict(self.show()["egress"])

    def _ask(self, verb: str, **fields: str) -> tuple[dict[str, str], list[int]]:
        with self._lock:
            return self._keeper.request({"verb": verb, "name": self.name, **fields})


@contextmanager
def box(
    name: str | None = None, *, directory: str | os.PathLike[str] | None = None
) -> Iterator[Box]:
    """Hold a box: made when there is none, gone with the last that holds it or lives in it.

    Without a name it is the project's of `directory` (the working directory). What still runs
    in it when the context ends is ended (TERM, then KILL after 5 s), unless something else was
    in the box before. Raises LoopboxError when this machine allows no box.
    """
    with client.connect() as keeper:
        fields, fds = keeper.request(
            {
                "verb": "lease",
                "create": "1",
                "name": name or "",
                "cwd": os.fspath(directory) if directory is not None else os.getcwd(),
            }
        )
        for fd in fds:
            os.close(fd)
        made = Box(keeper, fields["name"], fields["address"])
        try:
            yield made
        finally:
            if fields["made"] == "1":
                keeper.request({"verb": "down", "names": made.name})


__all__ = ["Box", "DeadlineError", "box"]
