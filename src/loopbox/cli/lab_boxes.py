"""What a lab needs of the keeper, over the control protocol; and which lab a command means.

Owns: `KeeperBoxes` (the runner's `Boxes`), the choice of a lab from `--lab`, the directory or the
only one there is, and holding Ctrl-C back while the keeper makes boxes.
Must never: enter a box, decide what a lab is made of.

Example::

    runner = Runner(KeeperBoxes(), memory(), say=out.say)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from loopbox import client
from loopbox.cli import asking
from loopbox.errors import BoxError, DeadlineError, KeeperError, UsageError
from loopbox.lab.memory import LabRecord, Memory
from loopbox.lab.records import Service
from loopbox.places import runtime_path

_PER_REQUEST = 15
"""Networks asked for at once: a reply carries 16 descriptors (client.py), one is the user's."""
_SERVICE_PATIENCE = 60.0
_TURN = 0.25


def memory() -> Memory:
    """The labs of this user."""
    return Memory(Path(runtime_path()))


class KeeperBoxes:
    """The boxes of this user's keeper, which is started where there is none."""

    def make(self, names: Sequence[str], *, directory: Path, rooted: bool) -> None:
        """See `loopbox.lab.runner.Boxes`."""
        with client.connect() as keeper, uninterrupted():
            keeper.request(
                {
                    "verb": "make",
                    "names": ",".join(names),
                    "cwd": str(directory),
                    "sealed": "1",
                    "rooted": "1" if rooted else "0",
                }
            )

    def networks(self, names: Sequence[str]) -> tuple[dict[str, tuple[int, int]], int | None]:
        """See `loopbox.lab.runner.Boxes`."""
        found: dict[str, tuple[int, int]] = {}
        user: int | None = None
        try:
            with client.connect(start=False, recover=True) as keeper:
                for start in range(0, len(names), _PER_REQUEST):
                    some = names[start : start + _PER_REQUEST]
                    reply, fds = keeper.request({"verb": "descriptors", "names": ",".join(some)})
                    cookies = [item["cookie"] for item in json.loads(reply["json"])]
                    nets, rest = fds[: len(some)], fds[len(some) :]
                    found |= dict(zip(some, zip(nets, cookies, strict=True), strict=True))
                    for fd in rest:
                        if user is None:
                            user = fd
                        else:
                            os.close(fd)
        except BaseException as error:
            for fd in (*(fd for fd, _cookie in found.values()), *([] if user is None else [user])):
                os.close(fd)
            if isinstance(error, KeeperError) and error.code == "no-keeper":
                raise BoxError(
                    f"cannot find box `{names[0]}`: it is not up", code="no-box"
                ) from error
            raise
        return found, user

    def serve(self, name: str, service: Service, *, directory: Path, log: Path) -> None:
        """See `loopbox.lab.runner.Boxes`."""
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "loopbox", "exec", name, "--", "/bin/sh", "-c",
                 service.run],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env={**os.environ, "LOOPBOX_SERVICE": service.name},
                start_new_session=True,
            )  # fmt: skip
        if service.ready is None:
            return
        deadline = time.monotonic() + _SERVICE_PATIENCE
        while True:
            try:
                asking.ask("wait", name=name, port=str(service.ready), timeout=str(_TURN))
            except DeadlineError as error:
                if process.poll() is not None:
                    raise BoxError(
                        f"cannot start service `{service.name}` in `{name}`: it ended with status "
                        f"{process.returncode} before port {service.ready} was ready"
                        f"{_last_line(log)}"
                    ) from error
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"cannot wait longer for service `{service.name}` in `{name}`: nothing "
                        f"listens on port {service.ready} after {_SERVICE_PATIENCE:g} s"
                        f"{_last_line(log)}"
                    ) from error
            else:
                return

    def down(self, names: Sequence[str], *, grace: float) -> None:
        """See `loopbox.lab.runner.Boxes`."""
        if not names:
            return
        try:
            with uninterrupted():
                asking.ask("down", names=",".join(names), missing="ok", grace=str(grace))
        except KeeperError as error:
            if error.code != "no-keeper":
                raise


def _last_line(log: Path) -> str:
    try:
        words = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""
    return f": {words[:200]}" if words else ""


# -- Ctrl-C -----------------------------------------------------------------------------------


class Ended(BaseException):
    """A signal asked this command to end. Not an error: what was begun is undone on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_by_signal() -> Iterator[Callable[[], None]]:
    """Let SIGINT, SIGTERM and SIGHUP raise Ended inside the block.

    Python drops what a handler raises in a destructor or a fork's hook: the function given
    raises it then, and is to be called now and again.
    """
    asked: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for one in _SIGNALS:  # a second one must not end the undoing of what was begun
            signal.signal(one, lambda _number, _frame: None)
        raise Ended(number)

    def check() -> None:
        if asked:
            raise Ended(asked[0])

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold these signals back until the block has ended (the keeper would go on regardless)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- which lab --------------------------------------------------------------------------------


def find_lab(name: str | None, *, boxes: Sequence[str] = ()) -> LabRecord:
    """The lab meant: by name, by the last part of a box's name, by directory, or the only one.

    Raises BoxError when none is up, UsageError when it is not clear which.
    """
    known = memory().all()
    if name is not None:
        for record in known:
            if record.lab == name:
                return record
        raise BoxError(
            f"cannot find lab `{name}`: it is not up", hint="loopbox up FILE", code="no-lab"
        )
    for candidates in (
        [record for record in known if set(boxes) & set(record.boxes.values())],
        [record for record in known if _is_here(record)],
        known,
    ):
        if len(candidates) == 1:
            return candidates[0]
    if not known:
        raise BoxError("cannot find a lab: none is up", hint="loopbox up FILE", code="no-lab")
    raise UsageError(
        f"cannot tell which lab is meant: {', '.join(record.lab for record in known)} are up",
        hint=f"say which: --lab {known[0].lab}",
    )


def labs_here() -> list[LabRecord]:
    """Labs whose file is in the working directory."""
    return [record for record in memory().all() if _is_here(record)]


def _is_here(record: LabRecord) -> bool:
    try:
        return os.path.samefile(Path(record.file).parent, asking.here())
    except OSError:
        return False
