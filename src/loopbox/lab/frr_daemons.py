"""FRR's daemons for one box: files, start, questions, end.

Owns: a run directory per box, the command lines that work as root and as a plain user, the
notice of daemons that died or answer nothing, FRR's own vty sockets.

Must never: enter a namespace (call `spawn` from a thread that stands in the box's), touch the
system's FRR service or its /etc/frr, end a process it did not start.

The flags (measured, FRR 8.4.4): in a user namespace `-u root -g frrvty` names who runs already
and, as group, FRR's vty group: then FRR changes no ids and its membership check passes. A daemon
whose socket cannot be made goes on useless or ends with status 0, so only an answer counts.

Example::

    router = RouterDaemons(Path("/run/…/r1"), files=render(lab, box))
    router.write()
    router.spawn("zebra")                   # in r1's network namespace
    router.ask_json("ospfd", "show ip ospf neighbor json")
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopbox.errors import DeadlineError, HostError
from loopbox.kernel.rooted import RootedNetworks

FOLDERS = ("/usr/lib/frr", "/usr/libexec/frr", "/usr/local/sbin", "/usr/sbin")
"""Where distributions put the daemons (Debian first)."""

ORDER = ("zebra", "staticd", "bfdd", "ospfd", "bgpd")

_VTY_GROUP, _OWN_USER = "frrvty", "frr"
_SOCKET_PATH_LIMIT = 107  # struct sockaddr_un, unix(7)
_END_OF_ANSWER = b"\0\0\0"
_POLL = 0.004
_LOG_TAIL = 2000


def find_folder() -> Path:
    """Where FRR's daemons are; HostError saying how to install them when they are not."""
    for folder in FOLDERS:
        if os.access(f"{folder}/zebra", os.X_OK):
            return Path(folder)
    raise HostError(
        "cannot run routers: FRR is not installed",
        hint="sudo apt-get install --no-install-recommends frr, then sudo systemctl disable "
        "--now frr",
        code="no-frr",
    )


class RouterDaemons:
    """The daemons of one router. Not for two threads at once; `ask` may be used from anywhere."""

    def __init__(
        self, directory: Path, *, files: Mapping[str, str], rooted: RootedNetworks | None = None
    ) -> None:
        """`files`: daemon to configuration (`frr.render`); which daemons run follows from it.

        `rooted`: the namespace in which a plain user's daemons are root; the box's network must
        be one of its. None when this process is root already, real or mapped.
        """
        self.directory = directory
        self._files = dict(files)
        self._rooted = rooted
        self._folder = find_folder()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._as = ("", "")
        longest = max((len(str(self._socket(name))) for name in files), default=0)
        if longest > _SOCKET_PATH_LIMIT:
            raise HostError(
                f"cannot run routers in `{directory}`: the path is too long for a Unix socket",
                hint="set XDG_RUNTIME_DIR to a shorter folder",
            )

    @property
    def daemons(self) -> tuple[str, ...]:
        """Names in starting order."""
        return tuple(name for name in ORDER if name in self._files)

    def write(self) -> None:
        """Make the run directory and the configurations, owned by whoever will run."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._as = _identity(self.directory)
        for name, text in self._files.items():
            path = self.directory / f"{name}.conf"
            path.write_text(text, encoding="utf-8")
            if self._as[0] == _OWN_USER:
                shutil.chown(path, *self._as)

    def command(self, daemon: str) -> list[str]:
        """The command line of `daemon`, in the foreground; call after `write`."""
        here, (user, group) = self.directory, self._as
        return [
            str(self._folder / daemon),
            *("-u", user, "-g", group),
            *("-f", str(here / f"{daemon}.conf"), "-i", str(here / f"{daemon}.pid")),
            *("-z", str(here / "zserv.api"), "--vty_socket", str(here), "-P", "0"),
            *("--log", f"file:{here / daemon}.log"),
        ]

    def spawn(self, daemon: str) -> int:
        """Start `daemon` in the calling thread's namespaces and return its pid; does not wait."""
        prefix = () if self._rooted is None else self._rooted.prefix
        keeps = () if self._rooted is None else (self._rooted.user,)
        with open(self.directory / f"{daemon}.out", "wb") as output:
            process = subprocess.Popen(
                [*prefix, *self.command(daemon)],
                pass_fds=keeps,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        self._running[daemon] = process
        return process.pid

    def is_ready(self, daemon: str) -> bool:
        """Whether `daemon` answers on its socket; HostError with its last words when it ended."""
        process = self._running.get(daemon)
        if process is not None and process.poll() is not None:
            raise HostError(
                f"cannot start `{daemon}` in `{self.directory.name}`: it ended with status "
                f"{process.returncode}: {self.last_words(daemon)}",
                hint=f"its log is {self.directory / daemon}.log",
            )
        # A look for the files first: it costs a hundredth of a question.
        if not os.path.exists(self._socket(daemon)) or (
            daemon == "zebra" and not os.path.exists(self.directory / "zserv.api")
        ):
            return False
        try:
            self.ask(daemon, "show version")
        except (OSError, HostError):
            return False
        return True

    def last_words(self, daemon: str) -> str:
        """The last line that `daemon` wrote to its log or its terminal."""
        for suffix in ("out", "log"):
            with contextlib.suppress(OSError):
                data = (self.directory / f"{daemon}.{suffix}").read_bytes()[-_LOG_TAIL:]
                lines = data.decode("utf-8", "replace").split("\n")
                if words := [line.strip() for line in lines if line.strip()]:
                    return words[-1]
        return "it said nothing"

    def dead(self) -> list[str]:
        """Daemons that were started and have ended since."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def processes(self) -> list[int]:
        """Pids of the daemons that run."""
        return [item.pid for item in self._running.values() if item.poll() is None]

    def ask(self, daemon: str, *commands: str, timeout: float = 5.0) -> str:
        """What FRR's shell would print for `commands`, straight from the daemon's socket.

        Works from any namespace: the socket is a file. OSError when nobody listens, HostError
        when a command is refused.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vty:
            vty.settimeout(timeout)
            vty.connect(str(self._socket(daemon)))
            answer = ""
            for command in ("enable", *commands):
                vty.sendall(command.encode() + b"\0")
                answer, status = _read_answer(vty)
                if status:
                    raise HostError(
                        f"cannot run `{command}` in `{daemon}`: {answer.strip() or 'refused'}"
                    )
            return answer

    def ask_json(self, daemon: str, command: str) -> Any:
        """The JSON document that `command` prints; an empty answer is an empty object."""
        return json.loads(self.ask(daemon, command).strip() or "{}")

    def stop(self, *, grace: float = 0.0) -> None:
        """End the daemons and collect them. Without grace by SIGKILL: nothing has to be saved.

        The namespace's routes go with the namespace, so an orderly end would only cost a second.
        """
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if grace else signal.SIGKILL)
        deadline = time.monotonic() + grace
        for process in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0) if grace else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _socket(self, daemon: str) -> Path:
        return self.directory / f"{daemon}.vty"


def _read_answer(vty: socket.socket) -> tuple[str, int]:
    """Text and status of one answer: text, three zero bytes, one status byte (lib/vty.c)."""
    data = bytearray()
    while len(data) < 4 or data[-4:-1] != _END_OF_ANSWER:
        chunk = vty.recv(65536)
        if not chunk:
            raise ConnectionResetError("the daemon closed its socket")
        data += chunk
    return data[:-4].decode("utf-8", "replace"), data[-1]


def _identity(directory: Path) -> tuple[str, str]:
    """User and group for FRR: its own where we may become it, else root of a user namespace.

    Real root hands `directory` to FRR's user. Where there is one uid only, chown fails and FRR
    stays who it is: uid 0, with its vty group as a mere name.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(OSError, LookupError):
            shutil.chown(directory, _OWN_USER, _OWN_USER)
            return _OWN_USER, _OWN_USER
    return "root", _VTY_GROUP


Spawn = Callable[[RouterDaemons, str], Awaitable[None]]


async def start_all(
    routers: Sequence[RouterDaemons], *, spawn: Spawn, seconds: float = 120.0
) -> None:
    """Start every daemon of every router, all routers at once, zebra before its clients.

    `spawn(router, daemon)` calls `router.spawn(daemon)` in the right namespace. Raises HostError
    for a daemon that ended, DeadlineError after `seconds`. The caller stops the rest.
    """
    import asyncio  # noqa: PLC0415  30 ms, which a lab without routers need not pay

    deadline = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for router in routers:
            group.create_task(
                _start(router, spawn, deadline), name=f"start router {router.directory.name}"
            )


async def _start(router: RouterDaemons, spawn: Spawn, deadline: float) -> None:
    router.write()
    first, rest = router.daemons[:1], router.daemons[1:]
    for stage in (first, rest):
        for daemon in stage:
            await spawn(router, daemon)
        await _until_ready(router, stage, deadline)


async def _until_ready(router: RouterDaemons, daemons: Iterable[str], deadline: float) -> None:
    import asyncio  # noqa: PLC0415  see start_all

    for daemon in daemons:
        while not router.is_ready(daemon):
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"cannot start `{daemon}` in `{router.directory.name}`: it does not answer: "
                    f"{router.last_words(daemon)}",
                    hint=f"its log is {router.directory / daemon}.log",
                )
            await asyncio.sleep(_POLL)
