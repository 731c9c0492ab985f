"""From the text of a lab file to a `Lab`: the one door to the lab's records.

Owns: the order of the stages (read and merge files, understand tables, give addresses, check,
work out sessions and router IDs); each stage lives in its own module.

Must never: make anything real, or return a lab with a mistake in it.

Example::

    lab = parse(Path("triangle.toml").read_text(), path=Path("triangle.toml"))
    assert lab.box("r1").router_id.value == IPv4Address("10.255.0.1")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loopbox.errors import ConfigError
from loopbox.lab import labfile, resolve
from loopbox.lab.records import (
    MAX_BOXES,
    Anycast,
    Bgp,
    End,
    Lab,
    LabBox,
    Link,
    Ospf,
    Session,
    SessionEnd,
    StaticRoute,
)

__all__ = [
    "MAX_BOXES",
    "Anycast",
    "Bgp",
    "End",
    "Lab",
    "LabBox",
    "Link",
    "Ospf",
    "Session",
    "SessionEnd",
    "StaticRoute",
    "load",
    "parse",
]


def parse(text: str, *, path: Path, read: Callable[[Path], str] = labfile.read_text) -> Lab:
    """Turn the text of a lab file into a `Lab`; `read` fetches the files it `extends`.

    Raises ConfigError (one line naming file, line and cause; the remedy as hint) for the first
    mistake. A lab without a name takes the file's stem, or its folder's name for loopbox.toml.
    """
    return resolve.resolve(labfile.read_document(text, path=path, read=read))


def load(path: Path) -> Lab:
    """Read and parse the lab file at `path`; ConfigError also when it cannot be read.

    Nor can it when the `config` of a box cannot.
    """
    root = labfile.read_document(labfile.read_text(path), path=path)
    lab = resolve.resolve(root)
    for box in lab.boxes:
        if box.config is None:
            continue
        try:
            labfile.read_text(box.config)
        except ConfigError as err:
            cause = err.message.removeprefix("cannot read ")
            raise root.error(
                f"cannot use the `config` of box `{box.name}`: {cause}",
                hint="`config` is the path of an frr.conf, relative to this file",
                at=("box", box.name, "config"),
            ) from err
    return lab
