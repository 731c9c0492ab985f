"""The processes of a benchmark: started, waited for, pinned, ended.

Owns: every process it starts, the temporary folder, and a loopbox of its own (runtime, state and
configuration folders in that temporary folder). Must never: touch the user's own keeper or boxes,
nor end a process it did not start.

Example::

    with World() as world:
        server = world.start(["nginx", ...])
        world.wait_for("127.0.0.1", 8000)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.harness import MeasurementError

START_LIMIT_S = 20.0


class World:
    """Everything that one group of measurements starts; all of it ends with the `with` block.

    `memory`: its folder is on a memory file system where there is one.
    """

    def __init__(self, *, memory: bool = False) -> None:
        place = "/dev/shm" if memory and os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="loopbox-bench-", dir=place))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._boxes: list[Loopbox] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for loopbox in self._boxes:
            loopbox.close()
        for process in reversed(self._processes):
            end(process)
        for log in self._logs:
            log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `command` in a session of its own, its words in a file of the world's folder."""
        log = (self.folder / f"{len(self._logs)}-{Path(command[0]).name}.log").open("wb")
        self._logs.append(log)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=None if env is None else dict(env),
            cwd=self.folder,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def loopbox(self, name: str, *, env: Mapping[str, str] | None = None) -> Loopbox:
        """A loopbox with a keeper of its own; `env` is added to its environment."""
        folder = self.folder / f"loopbox-{name}"
        made = Loopbox(self, folder, env or {})
        self._boxes.append(made)
        return made

    def wait_for(self, address: str, port: int) -> None:
        """Wait until something accepts at the address; raises MeasurementError."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
                return
            time.sleep(0.02)
        raise MeasurementError(f"nothing listens at {address}:{port}")


class Loopbox:
    """The `loopbox` command with folders of its own."""

    def __init__(self, world: World, folder: Path, env: Mapping[str, str]) -> None:
        self._world = world
        program = Path(sys.executable).parent / "loopbox"
        self.program = program if program.exists() else Path(shutil.which("loopbox") or "loopbox")
        self.env = dict(os.environ)
        for variable, part in (
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CONFIG_HOME", "config"),
        ):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            self.env[variable] = str(folder / part)
        self.env.update(env)
        self.env.pop("LOOPBOX", None)

    def call(self, *arguments: str, patience: float = 60.0) -> str:
        """Run a command to its end and return what it printed; raises MeasurementError."""
        try:
            done = subprocess.run(
                [self.program, *arguments],
                capture_output=True,
                text=True,
                env=self.env,
                cwd=self._world.folder,
                timeout=patience,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise MeasurementError(f"loopbox {arguments[0]}: {err}") from err
        if done.returncode != 0:
            raise MeasurementError(f"loopbox {arguments[0]}: {done.stderr.strip()[-200:]}")
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        """The JSON answer of a command."""
        return json.loads(self.call("--json", *arguments))

    def run(self, box: str, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start `command` in the box `box`, which is made if need be and kept."""
        return self._world.start(
            [self.program, "run", "--name", box, "--keep", "--", *command], env=self.env
        )

    def through(self, *arguments: str) -> tuple[str, ...]:
        """A prefix for another command line: `loopbox ARGUMENTS` in this loopbox's environment."""
        names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
        return (
            "env",
            *(f"{name}={self.env[name]}" for name in names),
            str(self.program),
            *arguments,
        )

    def address(self, box: str) -> str:
        """The box's address on the host, once there is one; raises MeasurementError."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return self.call("address", box).split()[0]
            except (MeasurementError, IndexError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    def keeper_pid(self) -> int:
        """The keeper's process."""
        return int(self.ask("keeper", "status")["pid"])

    def close(self) -> None:
        """Remove all boxes and end the keeper; a failure is no concern of a measurement."""
        for arguments in (("down", "--all"), ("keeper", "stop")):
            with contextlib.suppress(MeasurementError):
                self.call(*arguments)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, the session it leads, and what left that session, kindly first."""
    # pasta puts its command into another session, where no signal to ours would reach it.
    everyone = [(pid, _start_of(pid)) for pid in family([process.pid])]
    for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    for pid, start in everyone:
        if start and _start_of(pid) == start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _start_of(pid: int) -> str:
    """When the process started (proc(5), field 22); a reused number has another. "" when gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[19]
    return ""


def family(pids: Iterable[int]) -> list[int]:
    """The processes and all their descendants that live now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The second field may hold spaces and brackets: read from its end.
                rest = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                parents.setdefault(int(rest[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.append(pid)
            todo += parents.get(pid, [])
    return found


@contextlib.contextmanager
def pinned(pids: Iterable[int], cpus: set[int]) -> Iterator[None]:
    """Hold every thread of the processes on `cpus`, and let them go again."""
    threads = [thread for pid in pids for thread in _threads(pid)]
    everywhere = os.sched_getaffinity(0)
    for thread in threads:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, cpus)
    try:
        yield
    finally:
        for thread in threads:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, everywhere)


def memory_kib(pids: Iterable[int]) -> float:
    """Proportional set size of the processes together, in KiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
            total += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return float(total)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the processes have used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            fields = text.rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []
