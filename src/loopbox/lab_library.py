"""The library's labs: `lab()`, a context that holds a lab, its boxes, links and routers.

Owns: `Lab` and what can be done with it from a test or a script. Bringing up, cutting and mending
is done by the command in a process of its own, since a process that entered a box could not come
back; routers are asked straight over FRR's own sockets.
Must never: move the calling process into a box; take a lab down that was up before.

Example::

    with loopbox.lab("triangle.toml") as lab:
        lab.link("r1", "r2").cut()
        assert lab["r1"].router.bgp("r2").state == "Established"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from loopbox import client
from loopbox.errors import ConfigError, DeadlineError, HostError, KeeperError, LoopboxError
from loopbox.lab import records
from loopbox.lab.asking import RouterView, wait_converged
from loopbox.lab.memory import LabRecord, Memory
from loopbox.lab.runner import links_named, standing_sessions, view_of
from loopbox.library import Box
from loopbox.places import runtime_path

_KINDS: Mapping[str, type[LoopboxError]] = {
    "bad-config": ConfigError,
    "usage": ConfigError,
    "timeout": DeadlineError,
    "keeper": KeeperError,
    "host": HostError,
    "no-frr": HostError,
    "no-user-namespaces": HostError,
    "no-capability": HostError,
    "no-netem": HostError,
    "too-many-files": HostError,
}
"""Code of a command's error to the class it had there."""


class LabBox(Box):
    """A box of a lab: all that a box can do, and its router."""

    def __init__(self, keeper: client.Keeper, name: str, address: str, view: partial[RouterView]):
        super().__init__(keeper, name, address)
        self._view = view

    @property
    def router(self) -> RouterView:
        """FRR in this box, to be asked. Raises UsageError where none runs."""
        return self._view()


class LabLink:
    """A link of a lab."""

    def __init__(self, lab: Lab, record: records.Link) -> None:
        self._lab = lab
        self.name = record.name
        self.ends = tuple(end.box for end in record.ends)
        """Names of the boxes it joins, as the file has them."""

    def __repr__(self) -> str:
        return f"<loopbox link {self.name}: {self.state}>"

    @property
    def state(self) -> str:
        """`up`, `cut` or `silent`."""
        return str(self._lab._record().cut.get(self.name, "up"))

    def cut(self, *, silent: bool = False) -> None:
        """Take it away at every end; `silent` drops all packets with the carrier up."""
        self._lab._command("link", "cut", self.name, *(["--silent"] if silent else []))

    def mend(self) -> None:
        """Bring it back, whichever way it was cut."""
        self._lab._command("link", "mend", self.name)


class Lab:
    """A lab that is up while the context that gave it is open."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self._memory = Memory(Path(runtime_path()))
        self._stack = stack
        self._lock = threading.Lock()
        self._boxes: dict[str, LabBox] = {}
        self.topology = self._memory.lab_of(self._record())
        """What the file says, resolved: addresses, router IDs, sessions."""
        self.links: Mapping[str, LabLink] = {
            link.name: LabLink(self, link) for link in self.topology.links
        }
        """Name to link."""

    def __repr__(self) -> str:
        return f"<loopbox.Lab {self.name}: {len(self.topology.boxes)} boxes>"

    @property
    def boxes(self) -> dict[str, LabBox]:
        """Name in the file to box."""
        return {box.name: self[box.name] for box in self.topology.boxes}

    def __getitem__(self, name: str) -> LabBox:
        """The box called `name` in the file; KeyError otherwise."""
        self.topology.box(name)
        with self._lock:
            if name not in self._boxes:
                self._boxes[name] = self._open(name)
            return self._boxes[name]

    def _open(self, name: str) -> LabBox:
        record = self._record()
        keeper = self._stack.enter_context(client.connect(start=False, recover=True))
        reply, fds = keeper.request({"verb": "descriptors", "names": record.boxes[name]})
        for fd in fds:
            os.close(fd)
        [found] = json.loads(reply["json"])
        view = partial(view_of, record, self.topology, name)
        return LabBox(keeper, found["name"], found["address"], view)

    def link(self, first: str, second: str | None = None) -> LabLink:
        """The (first) link between two boxes, or the one of that name. Raises UsageError."""
        words = [first] if second is None else [first, second]
        return self.links[links_named(self.topology, words)[0].name]

    def wait_converged(self, *, timeout: float = 30.0) -> None:
        """Until all neighbours are Full and all sessions Established; DeadlineError after that.

        Only for a lab whose links are all up.
        """
        record = self._record()
        wait_converged(
            [view_of(record, self.topology, box.name) for box in self.topology.boxes
             if box.is_router],
            standing=partial(standing_sessions, self.topology),
            seconds=timeout,
            tell=lambda _done, _all: None,
        )  # fmt: skip

    def _record(self) -> LabRecord:
        record = self._memory.find(self.name)
        if record is None:
            raise LoopboxError(
                f"cannot find lab `{self.name}`: it was taken down meanwhile", code="no-lab"
            )
        return record

    def _command(self, *arguments: str) -> Any:
        return _run([*arguments, "--lab", self.name])


def _run(arguments: Sequence[str]) -> Any:
    """The JSON document of a loopbox command; raises the error it ended with.

    In a session of its own: Ctrl-C reaches it from here, and it may finish undoing.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "loopbox", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, talk = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
    try:
        document = json.loads(output)
    except ValueError:
        words = talk.strip().rpartition("\n")[2] or f"status {process.returncode}"
        raise LoopboxError(f"cannot run loopbox {arguments[0]}: {words}") from None
    if process.returncode:
        error = document["error"]
        kind = _KINDS.get(error["code"], LoopboxError)
        raise kind(error["message"], hint=error["hint"], code=error["code"])
    return document


@contextmanager
def lab(
    file: str | os.PathLike[str], *, name: str | None = None, timeout: float = 120.0
) -> Iterator[Lab]:
    """Hold a lab: brought up and converged, gone with the context; one that was up before stays.

    `name` sets the lab's name, so that several of one file can be up. Raises ConfigError for a
    mistake in the file, HostError where this machine cannot, DeadlineError after `timeout`
    seconds without convergence (the lab is then taken down).
    """
    before = Memory(Path(runtime_path())).all()
    options = [] if name is None else ["--name", name]
    known = {record.lab for record in before}
    try:
        found = _run(["up", os.fspath(file), *options, "--timeout", str(timeout)])
    except DeadlineError:
        for record in Memory(Path(runtime_path())).all():
            if record.lab not in known and Path(record.file) == Path(file).resolve():
                _run(["down", record.lab])
        raise
    with ExitStack() as stack:
        if found["changed"]:
            stack.callback(_run, ["down", found["lab"]])
        yield Lab(found["lab"], stack)


__all__ = ["Lab", "LabBox", "LabLink", "lab"]
