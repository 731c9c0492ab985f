"""Typed reading of TOML tables, with errors that name file, line and remedy.

Owns: `Table`, a TOML table that knows where each of its values was written.

Must never: know what a lab is; give a value back that it did not check.

Example::

    table.number("mtu", low=68, high=65535, default=1500)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from loopbox.errors import ConfigError
from loopbox.lab.positions import Path as KeyPath
from loopbox.lab.records import Interface, Network

Places = Mapping[KeyPath, tuple[Path, int]]


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a document; `path` is its place in the document."""

    data: Mapping[str, Any]
    path: KeyPath
    places: Places
    file: Path

    def error(self, cause: str, *, hint: str, at: KeyPath = ()) -> ConfigError:
        """A ConfigError that points at the value `at` (relative to this table)."""
        full = (*self.path, *at)
        for length in range(len(full), 0, -1):
            if full[:length] in self.places:
                file, line = self.places[full[:length]]
                return ConfigError(f"cannot read `{file}`: line {line}: {cause}", hint=hint)
        return ConfigError(f"cannot read `{self.file}`: line 1: {cause}", hint=hint)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def known(self, keys: Iterable[str], *, what: str) -> None:
        """Refuse keys outside `keys`."""
        keys = sorted(keys)
        for key in self.data:
            if key not in keys:
                raise self.error(
                    f"{what} has no key `{key}`",
                    hint=suggestion(key, keys, "known keys"),
                    at=(key,),
                )

    def number(
        self, key: str, *, low: float, high: float, default: float, whole: bool = True
    ) -> float:
        """A number from `low` to `high`."""
        value = self.data.get(key, default)
        kind = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise self.error(
                f"`{key}` must be a {'whole ' if whole else ''}number from {low} to {high}, "
                f"not {shown(value)}",
                hint=f"write {key} = {default}",
                at=(key,),
            )
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.error(
                f"`{key}` must be true or false, not {shown(value)}",
                hint=f"write {key} = {'false' if default else 'true'}",
                at=(key,),
            )
        return value

    def text(self, key: str, *, example: str) -> str | None:
        """A string that is not empty, or None when the key is missing."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.error(
                f"`{key}` must be a string, not {shown(value)}",
                hint=f"write {key} = {quoted(example)}",
                at=(key,),
            )
        return value

    def choice(self, key: str, allowed: Iterable[str], *, default: str) -> str:
        """One of the `allowed` words, or the default where the key is missing."""
        value = self.data.get(key, default)
        allowed = list(allowed)
        if key in self.data and value not in allowed:
            raise self.error(
                f"`{key}` must be one of {', '.join(allowed)}, not {shown(value)}",
                hint=f"write {key} = {quoted(default or allowed[0])}",
                at=(key,),
            )
        return str(value)

    def items(self, key: str, *, example: str) -> list[Any]:
        """An array; a lone value counts as an array of one."""
        value = self.data.get(key, [])
        if isinstance(value, str | dict):
            return [value]
        if not isinstance(value, list):
            raise self.error(
                f"`{key}` must be an array, not {shown(value)}",
                hint=f"write {key} = [{quoted(example)}]",
                at=(key,),
            )
        return value

    def names(self, key: str, *, example: str) -> tuple[str, ...]:
        """An array of strings."""
        values = self.items(key, example=example)
        for value in values:
            if not isinstance(value, str):
                raise self.error(
                    f"`{key}` must hold strings, not {shown(value)}",
                    hint=f"write {key} = [{quoted(example)}]",
                    at=(key,),
                )
        return tuple(values)

    def child(self, key: str, *, example: str | None = None) -> Table | None:
        """The table under `key`; `true` means an empty one, missing or `false` None."""
        value = self.data.get(key)
        if value is None or value is False:
            return None
        if value is True:
            value = {}
        if not isinstance(value, dict):
            raise self.error(
                f"`{key}` must be a table or true, not {shown(value)}",
                hint=f"write {example or f'{key} = {{}}'}",
                at=(key,),
            )
        return Table(value, (*self.path, key), self.places, self.file)

    def children(self, key: str, *, example: str) -> Iterator[tuple[str, Table]]:
        """(name, table) for each table under `key`, which holds tables only."""
        parent = self.data.get(key)
        if parent is None:
            return
        if not isinstance(parent, dict):
            raise self.error(
                f"`{key}` must hold tables, not be {shown(parent)}",
                hint=f"write {example}",
                at=(key,),
            )
        for name, value in parent.items():
            if not isinstance(value, dict):
                raise self.error(
                    f"`{key}.{name}` must be a table, not {shown(value)}",
                    hint=f"write {example}",
                    at=(key, name),
                )
            yield name, Table(value, (*self.path, key, name), self.places, self.file)

    def array(self, key: str) -> Iterator[Table]:
        """The tables of an array of tables."""
        values = self.data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
            raise self.error(
                f"`{key}` must be an array of tables",
                hint=f"write [[{key}]] on a line of its own",
                at=(key,),
            )
        for index, value in enumerate(values):
            yield Table(value, (*self.path, key, index), self.places, self.file)

    def interface(self, value: object, *, key: str) -> Interface:
        """An address with prefix length; without one it is /32 or /128."""
        try:
            if not isinstance(value, str):
                raise ValueError
            return ip_interface(value)
        except ValueError:
            raise self.error(
                f"{shown(value)} is not an IP address with prefix length",
                hint='write it as "10.255.0.1/32" or "2001:db8::1/128"',
                at=(key,),
            ) from None

    def network(self, value: object, *, key: str) -> Network:
        """A network; host bits are an error."""
        try:
            if not isinstance(value, str):
                raise ValueError("not a string")
            return ip_network(value)
        except ValueError as err:
            raise self.error(
                f"{shown(value)} is not a network: {err}",
                hint='write it as "10.1.0.0/24" or "2001:db8:1::/64"',
                at=(key,),
            ) from None


def quoted(text: str) -> str:
    """`text` as a TOML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shown(value: object) -> str:
    """A value as it may stand in an error: short and without control characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def suggestion(word: str, known: Iterable[str], what: str) -> str:
    """`did you mean …`, else the list of what there is."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"{what}: {listed}" if names else f"{what}: none"
