"""What is remembered of a lab that is up: its record and the lab itself, in the runtime directory.

Owns: `labs/NAME.json` (which file, which boxes, which links are cut, where the routers' run
directories are), `labs/NAME.lab` (the lab as it was made: the file may have changed since), and
the run directories. Written whole by a rename, so that a reader sees the old or the new.
Must never: ask the keeper, enter a box, trust anything outside the runtime directory.

Example::

    memory = Memory(Path("/run/user/1000/loopbox"))
    memory.save(record, lab)
    memory.find("triangle").cut
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from loopbox.errors import BoxError, HostError
from loopbox.lab.records import Lab

Cut = Literal["cut", "silent"]

_PATH_ROOM = 107 - len("/staticd.vty")
"""Bytes a router's run directory may have: sun_path less the longest socket's name (unix(7))."""


@dataclass(frozen=True, slots=True)
class LabRecord:
    """A lab that is up, or was begun."""

    lab: str
    file: str
    """Absolute path of the lab file."""
    digest: str
    """Of the lab as it was made: another one means that the file says something else now."""
    runs: str
    """Directory that holds the routers' run directories."""
    done: bool = False
    """False from before the first box is made until everything was started."""
    fabric: str | None = None
    """The box in which the bridges are."""
    boxes: Mapping[str, str] = field(default_factory=dict)
    """Name in the file to the box's name."""
    cookies: Mapping[str, int] = field(default_factory=dict)
    """Box's name to the number of its network: another number means it was made anew."""
    cut: Mapping[str, Cut] = field(default_factory=dict)
    """Links that are not as they were made."""

    @property
    def places(self) -> list[str]:
        """Names of every box of the lab, the one with the bridges too."""
        return [*self.boxes.values(), *([] if self.fabric is None else [self.fabric])]

    def run_directory(self, box: str) -> Path:
        """The run directory of a router, by its name in the file."""
        return Path(self.runs) / box

    def with_state(self, link: str, state: Cut | None) -> LabRecord:
        """The record with one link cut, or mended (None)."""
        cut = {name: how for name, how in self.cut.items() if name != link}
        return replace(self, cut=cut if state is None else {**cut, link: state})


def digest_of(lab: Lab) -> str:
    """What changes when the lab does; comments and order of keys do not count."""
    parts = (lab.name, lab.timers, lab.boxes, lab.links, lab.sessions)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Memory:
    """The labs of one user. `runtime` is his private runtime directory."""

    def __init__(self, runtime: Path) -> None:
        self._folder = runtime / "labs"

    def all(self) -> list[LabRecord]:
        """Every lab that is up or was begun, by name; what cannot be read is left out."""
        try:
            names = sorted(path.stem for path in self._folder.glob("*.json"))
        except OSError:
            return []
        return [record for name in names if (record := self.find(name)) is not None]

    def find(self, name: str) -> LabRecord | None:
        """The record of a lab, or None."""
        try:
            document = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
            record = LabRecord(**document)
        except (OSError, ValueError, TypeError):
            return None
        return record if record.lab == name else None

    def lab_of(self, record: LabRecord) -> Lab:
        """The lab as it was made. Raises BoxError when another version of loopbox made it."""
        try:
            # Ours: the runtime directory is this user's and closed to others.
            found = pickle.loads((self._folder / f"{record.lab}.lab").read_bytes())
        except Exception as error:
            raise BoxError(
                f"cannot use lab `{record.lab}`: what was remembered of it cannot be read",
                hint=f"make it anew: loopbox down {record.lab} && loopbox up {record.file}",
            ) from error
        assert isinstance(found, Lab)
        return found

    def begin(self, lab: Lab, record: LabRecord) -> None:
        """Remember a lab before anything of it is made. Raises HostError."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            _write_whole(self._folder / f"{lab.name}.lab", pickle.dumps(lab))
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self.save(record)

    def save(self, record: LabRecord) -> None:
        """Write the record down. Raises HostError."""
        path = self._folder / f"{record.lab}.json"
        try:
            _write_whole(path, json.dumps(asdict(record), indent=1).encode())
        except OSError as error:
            raise _unwritable(path, error) from error

    def forget(self, record: LabRecord) -> None:
        """Remove all that was written of a lab, its run directories too."""
        shutil.rmtree(record.runs, ignore_errors=True)
        for suffix in ("json", "lab"):
            (self._folder / f"{record.lab}.{suffix}").unlink(missing_ok=True)
            for draft in self._folder.glob(f".{record.lab}.{suffix}.*"):  # of one killed writing
                draft.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:
            pass  # other labs are up

    def choose_runs(self, lab: Lab) -> Path:
        """Where the run directories are to be; `make_runs` makes it, once a record names it.

        Below the runtime directory where that is the user's own and short enough for a socket's
        path; else by a name nobody could know before.
        """
        wanted = self._folder / lab.name
        longest = max((len(os.fsencode(box.name)) for box in lab.boxes), default=0)
        if os.geteuid() != 0 and len(os.fsencode(wanted)) + 1 + longest <= _PATH_ROOM:
            return wanted
        base = "/run" if os.access("/run", os.W_OK) else "/tmp"
        return Path(base, f"loopbox-lab-{os.urandom(4).hex()}")

    def make_runs(self, record: LabRecord) -> None:
        """Make the directory for the run directories, reachable for FRR. Raises HostError."""
        runs = Path(record.runs)
        try:
            if runs.parent == self._folder:
                shutil.rmtree(runs, ignore_errors=True)
            runs.mkdir(mode=0o700)  # not one that somebody else made by that name
            if os.geteuid() == 0:
                runs.chmod(0o711)  # FRR's daemons give root up and still must reach their own
        except OSError as error:
            raise _unwritable(runs, error) from error


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _unwritable(path: Path, error: OSError) -> HostError:
    return HostError(
        f"cannot write `{path}`: {error.strerror or error}", hint=f"see: df -h {path.parent}"
    )
