"""The services of `loopbox up`: started, their logs shown side by side, ended together.

Owns: starting services in order, waiting for their ports, prefixing their lines, and ending them
all together. Services already running are left alone, so a second `up` changes nothing.
Must never: leave a service behind that it started.

Example::

    status = bring_up(directory, settings, name=None, file=None, out=out)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from loopbox import client
from loopbox.cli import asking
from loopbox.cli.output import Output, printable
from loopbox.errors import ConfigError, DeadlineError, LoopboxError
from loopbox.kernel.processes import environment_of, session_of
from loopbox.settings import ProjectSettings, ServiceSettings

_MARK = "LOOPBOX_SERVICE"
"""Environment variable that tells which service a process belongs to."""
_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green")
_GRACE = 10.0
"""Seconds between TERM and KILL for a service."""
_PATIENCE = 60.0
"""Seconds for a service to listen on its port."""
_TICK = 0.05
"""Seconds between two looks at what is still there while services end."""


@dataclass(slots=True)
class _Running:
    name: str
    process: asyncio.subprocess.Process
    settings: ServiceSettings
    reader: asyncio.Task[None]


class _Stage:
    """The services of one box while `up` runs."""

    def __init__(self, box: str, directory: Path, out: Output, services: Mapping[str, object]):
        self.box = box
        self.directory = directory
        self.out = out
        self.width = max((len(name) for name in services), default=0)
        self.names = list(services)
        self.running: list[_Running] = []
        self.failed: str | None = None
        self.stopping = asyncio.Event()
        self.hurried = asyncio.Event()

    def line(self, service: str, text: str) -> None:
        """One line of a service, side by side with the others'."""
        if self.out.json:
            self.report("line", service=service, text=text)
            return
        color = _COLORS[self.names.index(service) % len(_COLORS)]
        prefix = self.out.style(f"{service:<{self.width}} |", fg=color)
        click.echo(f"{prefix} {printable(text)}")

    def report(self, event: str, **fields: object) -> None:
        """With `--json`: one object a line, for a program that follows."""
        if self.out.json:
            click.echo(json.dumps({"event": event, "box": self.box, **fields}))

    async def start(self, name: str, settings: ServiceSettings) -> None:
        """Start a service and wait until it is ready. Raises LoopboxError when it ends first."""
        directory = self.directory / settings.cwd
        if not directory.is_dir():
            raise ConfigError(
                f"cannot start service `{name}`: `{directory}` is no directory",
                hint=f"make it, or mend `cwd` of [services.{name}]",
            )
        environment = {**os.environ, **settings.env, _MARK: name}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "loopbox", "exec", self.box, "--"),
            *_arguments(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=directory,
            env=environment,
            start_new_session=True,
            limit=1 << 20,
        )
        reader = asyncio.create_task(self._read(name, process), name=f"log {name}")
        running = _Running(name, process, settings, reader)
        self.running.append(running)
        if settings.ready is not None:
            await self._until_ready(running, settings.ready)

    async def _until_ready(self, running: _Running, port: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while not self.stopping.is_set():
            if running.process.returncode is not None:
                await _drain(running.reader)
                raise LoopboxError(
                    f"cannot start service `{running.name}`: it ended with status "
                    f"{running.process.returncode} before port {port} was ready",
                    hint="its lines are above",
                )
            # In short turns: a thread that waits cannot be told to stop waiting.
            patience = min(0.25, max(0.0, deadline - loop.time()))
            try:
                await asyncio.to_thread(
                    asking.ask, "wait", name=self.box, port=str(port), timeout=str(patience)
                )
            except DeadlineError as error:
                if loop.time() >= deadline:
                    raise DeadlineError(
                        f"cannot wait longer for service `{running.name}`: nothing listens on "
                        f"port {port} after {_PATIENCE:g} s",
                        hint=f"see what does: loopbox show {self.box}",
                    ) from error
            else:
                return

    async def _read(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the limit: its rest comes as the next
                continue
            if not line:
                return
            self.line(name, line.decode("utf-8", "replace").rstrip("\r\n"))

    async def until_done(self) -> None:
        """Until told to stop, all services have ended, or one has failed."""
        waits = {asyncio.create_task(running.process.wait()): running for running in self.running}
        stopping = asyncio.create_task(self.stopping.wait())
        pending: set[asyncio.Task[Any]] = {*waits, stopping}
        while len(pending) > 1 and not self.stopping.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                running = waits.get(task)
                if running is None:
                    continue
                status = running.process.returncode
                await _drain(running.reader)
                self.report("ended", service=running.name, status=status)
                if not self.out.json:
                    self.line(running.name, f"ended with status {status}")
                if status != 0 and not self.stopping.is_set():
                    self.failed = running.name
                    self.stopping.set()
        for task in pending:
            task.cancel()

    async def end(self) -> None:
        """TERM to every process of the services, grace (unless hurried), KILL."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + _GRACE
        signal_now: signal.Signals | None = signal.SIGTERM
        while left := await asyncio.to_thread(self._left):
            if self.hurried.is_set() or loop.time() > kill_at:
                signal_now = signal.SIGKILL
            if signal_now is not None:
                for pid in left:
                    _signal(pid, signal_now)
                signal_now = None
            await asyncio.sleep(_TICK)
        for running in self.running:
            await running.process.wait()
            await _drain(running.reader)

    def _left(self) -> list[int]:
        """What is still there of the services started here, daemons in other sessions too.

        The newest first: a parent then still reaps and reports its children.
        """
        own = {running.name for running in self.running}
        left = {
            running.process.pid for running in self.running if running.process.returncode is None
        }
        if own:
            try:
                there = asking.box(self.box)["processes"]
            except LoopboxError:
                there = []
            # By session too: Redis and PostgreSQL write their title over their environment.
            sessions = {running.process.pid for running in self.running}
            left |= {
                one["pid"]
                for one in there
                if environment_of(one["pid"], _MARK) in own or session_of(one["pid"]) in sessions
            }
        return sorted(left, reverse=True)

    def stop(self) -> None:
        """Begin to end the services; asked a second time, without grace."""
        if self.stopping.is_set():
            self.hurried.set()
            return
        self.stopping.set()
        if self.running:
            self.out.say("ending the services; Ctrl-C again ends them at once")


async def _drain(reader: asyncio.Task[None]) -> None:
    """Wait for a service's last lines, but not for a daemon that has kept its output open."""
    await asyncio.wait({reader}, timeout=1.0)


def _arguments(settings: ServiceSettings) -> tuple[str, ...]:
    return ("/bin/sh", "-c", settings.run) if isinstance(settings.run, str) else settings.run


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def bring_up(
    directory: Path, settings: ProjectSettings, *, name: str | None, file: Path | None, out: Output
) -> int:
    """Start the services, wait until they end or Ctrl-C, and give the exit status.

    `file` is the settings file where one was named, and `name` the box's.
    """
    return asyncio.run(_up(directory, settings, name, file, out))


async def _up(
    directory: Path,
    settings: ProjectSettings,
    name: str | None,
    file: Path | None,
    out: Output,
) -> int:
    keeper = client.connect()
    try:
        # The connection holds the box while services come and go.
        reply, fds = keeper.request(
            {
                "verb": "lease",
                "create": "1",
                "cwd": str(directory),
                "file": str(file or ""),
                "name": name or "",
            }
        )
        for fd in fds:
            os.close(fd)
        stage = _Stage(reply["name"], directory, out, settings.services)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stage.stop)
        try:
            await _start_all(stage, settings, reply)
            await stage.until_done()
        finally:
            await stage.end()
        if stage.failed is not None:
            raise LoopboxError(
                f"cannot go on: service `{stage.failed}` failed", hint="its lines are above"
            )
        return 0
    finally:
        keeper.close()


async def _start_all(stage: _Stage, settings: ProjectSettings, reply: dict[str, str]) -> None:
    there = _running_services(stage.box, settings.services)
    for service in _in_order(settings.services):
        if stage.stopping.is_set():
            return
        if service in there:
            stage.out.say(f"{service} runs already")
            stage.report("running", service=service)
            continue
        await stage.start(service, settings.services[service])
        ready = settings.services[service].ready
        if ready is not None and not stage.stopping.is_set():
            stage.out.say(f"{service} is ready: localhost:{ready} in box {stage.box}")
            stage.report("ready", service=service, port=ready)
    if not stage.stopping.is_set():
        stage.report("up", address=reply["address"])
        stage.out.say(f"box {stage.box} is up at {reply['address']}; Ctrl-C ends it")


def _running_services(box: str, services: Mapping[str, ServiceSettings]) -> set[str]:
    """Services that bear our mark, or (Redis paints over it) whose ready port is listened on."""
    shown = asking.box(box)
    marks = (environment_of(process["pid"], _MARK) for process in shown["processes"])
    ports = {one["port"] for one in shown["listeners"] if one["protocol"] == "tcp"}
    ready = {name for name, service in services.items() if service.ready in ports}
    return {mark for mark in marks if mark is not None} | ready


def _in_order(services: Mapping[str, ServiceSettings]) -> list[str]:
    """The order of the file, each after what it names in `after`."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        for before in services[name].after:
            add(before)
        order.append(name)

    for name in services:
        add(name)
    return order
