"""The files of a lab: read, joined along `extends`, every value with its place.

Owns: reading lab files, TOML errors as one line, `extends` (a file, or several in order; later
ones and the file itself win), cycles.

Must never: understand what the tables mean.

Example::

    root = read_document('extends = "base.toml"\\n[box.r9]\\n', path=Path("lab.toml"))
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopbox.errors import ConfigError
from loopbox.lab.positions import Path as KeyPath
from loopbox.lab.positions import find_lines
from loopbox.lab.tables import Table, quoted, shown
from loopbox.wire.tomlfile import Source

MAX_BYTES = 4 * 1024 * 1024
"""As for every file of settings (kernel.projects)."""


def read_text(path: Path) -> str:
    """The text of the file at `path`; ConfigError when it is missing, too large or not UTF-8."""
    try:
        # Without blocking: a FIFO by that name would hold the command up for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"cannot read `{path}`: no regular file", hint="name a file")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"cannot read `{path}`: larger than {MAX_BYTES // 1024 // 1024} MiB",
                hint="is it a lab file?",
            )
        return data.decode()
    except OSError as err:
        raise ConfigError(
            f"cannot read `{path}`: {(err.strerror or str(err)).lower()}",
            hint="check the path of the lab file",
        ) from err
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        raise ConfigError(
            f"cannot read `{path}`: line {line}: not UTF-8 text", hint="save the file as UTF-8"
        ) from err


def read_document(text: str, *, path: Path, read: Callable[[Path], str] = read_text) -> Table:
    """The document of `text`, merged over those it extends."""
    data, places = _merged(text, path, read, (path,))
    return Table(data, (), places, path)


def _merged(
    text: str, path: Path, read: Callable[[Path], str], above: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[KeyPath, tuple[Path, int]]]:
    text = text.removeprefix("\ufeff")
    data = _load(text, path)
    places = {key: (path, line) for key, line in find_lines(text).items()}
    table = Table(data, (), places, path)
    merged: dict[str, Any] = {}
    merged_places: dict[KeyPath, tuple[Path, int]] = {}
    for name in table.names("extends", example="base.toml"):
        if not name or not name.isprintable():
            raise table.error(
                f"cannot extend {shown(name)}: that is no path",
                hint='write extends = "base.toml"',
                at=("extends",),
            )
        other = path.parent / name
        if any(_same(other, seen) for seen in above):
            chain = " extends ".join(f"`{item}`" for item in (*above, other))
            raise table.error(
                f"cycle in `extends`: {chain}", hint="take one `extends` out", at=("extends",)
            )
        try:
            base_text = read(other)
        except (ConfigError, OSError) as err:
            raise table.error(
                f"cannot extend {quoted(name)}: {_cause(err)}",
                hint="paths in `extends` are relative to the file that holds them",
                at=("extends",),
            ) from err
        base, base_places = _merged(base_text, other, read, (*above, other))
        _merge(merged, merged_places, base, base_places)
    data.pop("extends", None)
    _merge(merged, merged_places, data, places)
    return merged, merged_places


def _same(left: Path, right: Path) -> bool:
    return left.resolve() == right.resolve()


def _cause(err: Exception) -> str:
    """Why a file could not be read, without its path, which is named already."""
    if isinstance(err, ConfigError):
        return err.message.rpartition("`: ")[2]
    return (getattr(err, "strerror", None) or str(err)).lower()


def _load(text: str, path: Path) -> dict[str, Any]:
    try:
        return Source(path, text).load()
    except ConfigError as err:
        raise ConfigError(
            err.message, hint="a lab file is TOML: [tables], key = value, strings in quotes"
        ) from None


def _merge(
    into: dict[str, Any],
    into_places: dict[KeyPath, tuple[Path, int]],
    data: dict[str, Any],
    places: dict[KeyPath, tuple[Path, int]],
) -> None:
    """Lay `data` over `into`: tables merge, arrays of tables are joined, all else is replaced."""
    shifts: dict[str, int] = {}
    for key, value in data.items():
        old = into.get(key)
        if isinstance(old, list) and _is_tables(value) and _is_tables(old):
            shifts[key] = len(old)
            into[key] = [*old, *value]
        else:
            into[key] = _laid(old, value)
    for path, place in places.items():
        shift = shifts.get(str(path[0]), 0)
        if shift and len(path) > 1 and isinstance(path[1], int):
            into_places[(path[0], path[1] + shift, *path[2:])] = place
        else:
            into_places[path] = place


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) for i in value)


def _laid(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _laid(old.get(key), value) for key, value in new.items()}}
    return new
