"""Helpers that act as a user does: run the installed command, wait for what must come true.

Owns: `Sandbox` (one user's loopbox, apart from all others), `until` (a condition with a
deadline), and `traces` (everything loopbox could leave behind, to compare before and after).
"""

from __future__ import annotations

import glob
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

COMMAND = Path(sys.executable).parent / "loopbox"
"""The command as pip installed it."""

_TICK = select.poll()


def until(
    condition: Callable[[], Value], *, deadline: float = 10.0, what: str = "the condition"
) -> Value:
    """What `condition` gives once it is true. Fails the test after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {deadline:g} s")
        _TICK.poll(10)


def in_thread(function: Callable[[], Value], *, deadline: float | None = None) -> Value:
    """`function()` in a thread that ends afterwards, so that it may change its namespaces."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(deadline)


class Sandbox:
    """One user's loopbox: runtime, state and project directories below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runtime = root / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.project = root / "shop"
        self.project.mkdir()
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("LOOPBOX_")},
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_CONFIG_HOME": str(root / "config"),
            "HOME": str(root),
            "LOOPBOX_IDLE": "600",
            "NO_COLOR": "1",
        }
        self._started: list[subprocess.Popen[str]] = []

    @property
    def log(self) -> str:
        """What the keeper has logged so far."""
        path = self.root / "state/loopbox/keeper.log"
        return path.read_text() if path.exists() else ""

    def __call__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, as a user would, and give what it said."""
        return subprocess.run(
            [str(COMMAND), *arguments],
            cwd=cwd or self.project,
            env={**self.env, **(env or {})},
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ok(self, *arguments: str, **options: Any) -> str:
        """As calling it, but exit status 0 is demanded; gives stdout."""
        done = self(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str, **options: Any) -> Any:
        """The JSON document a command prints."""
        return json.loads(self.ok(*arguments, "--json", **options))

    def start(
        self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the command and leave it running; `close` ends it."""
        process = subprocess.Popen(
            [str(COMMAND), *arguments],
            cwd=cwd or self.project,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def serve(self, *arguments: str, name: str, port: int, **options: Any) -> subprocess.Popen[str]:
        """Start a program in a box and wait until it listens on `port`."""
        process = self.start("run", "--name", name, "--", *arguments, **options)
        until(lambda: name in self.box_names() or process.poll() is not None, what=f"box {name}")
        assert process.poll() is None, process.communicate()
        self.ok("wait", name, str(port), "--timeout", "20")
        return process

    def box_names(self) -> list[str]:
        """Names of the boxes that are up."""
        return [box["name"] for box in self.json("ls")["boxes"]]

    def keeper_pid(self) -> int | None:
        """The keeper's process id, from its lock file; None when it never ran."""
        try:
            text = (self.runtime / "loopbox/keeper.lock").read_text().strip()
        except FileNotFoundError:
            return None
        return int(text) if text else None

    def _has_left_something(self) -> bool:
        """Whether loopbox was ever needed here; most tests of wrong usage never get that far."""
        return (self.runtime / "loopbox").exists() or (self.root / "state").exists()

    def close(self) -> None:
        """End everything that was started here, the keeper too."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        try:
            if self._has_left_something():
                self("uninstall", cwd=self.root)
        finally:
            for process in self._started:
                if process.poll() is None:
                    process.kill()
                process.communicate()


def boxes_of_pid(pid: int) -> int:
    """The network namespace inode of a process."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def ignored_signals(status: str) -> int:
    """The mask of ignored signals in the text of a /proc/PID/status."""
    [line] = [line for line in status.splitlines() if line.startswith("SigIgn:")]
    return int(line.split()[1], 16)


def inherited_ignored_signals() -> int:
    """What a program started from here ignores: ours, but for what Python itself ignores.

    A test run in the background of a script inherits an ignored SIGINT, for example.
    """
    own = ignored_signals(Path("/proc/self/status").read_text())
    return own & ~(1 << signal.SIGPIPE - 1) & ~(1 << signal.SIGXFSZ - 1)


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def own_processes() -> list[int]:
    """Processes of this run: the plain user's, beside this one, has a process namespace."""
    own = os.readlink("/proc/self/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == own:
                found.append(int(entry))
        except OSError:
            continue
    return found


def own_files(pattern: str) -> set[str]:
    """What matches and belongs to this user, for places that the other run uses too."""
    found = set()
    for path in glob.glob(pattern):
        try:
            if os.lstat(path).st_uid == os.geteuid():
                found.add(path)
        except FileNotFoundError:
            continue
    return found


def traces() -> dict[str, object]:
    """Everything a box could leave behind on the host, to compare before and after."""
    namespaces: set[str] = set()
    for pid in own_processes():
        try:
            namespaces.add(os.readlink(f"/proc/{pid}/ns/net"))
            namespaces.add(os.readlink(f"/proc/{pid}/ns/mnt"))
        except OSError:
            continue
    return {
        "namespaces with processes": len(namespaces),
        "mounts": Path("/proc/self/mounts").read_text(),
        "listeners": _output("ss", "-Hlntu"),
        "addresses": _output("ip", "-o", "addr"),
        "nftables": _output("nft", "list", "ruleset") if os.geteuid() == 0 else "",
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
