"""The part of YAML that lab files are written in, without a dependency for it.

Owns: writing plain trees (mappings, lists, strings, numbers, booleans) as YAML 1.2 that every
reader takes the same way: every string that could be anything else is quoted.

Must never: read YAML (PyYAML does, when `loopbox import` meets some).

Example::

    dump({"name": "triangle", "ports": [8000]})      # 'name: triangle\\nports:\\n  - 8000\\n'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_AMBIGUOUS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def dump(value: Any) -> str:
    """`value` as a YAML document."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{pad}{_scalar(str(key))}:", item, depth)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            if isinstance(item, Mapping) and item:
                first, *rest = _lines(item, depth + 1)
                yield f"{pad}- {first.lstrip()}"
                yield from rest
            else:
                yield from _entry(f"{pad}-", item, depth)


def _entry(head: str, item: Any, depth: int) -> Iterator[str]:
    if isinstance(item, Mapping | list | tuple):
        if item:
            yield head
            yield from _lines(item, depth + 1)
        else:
            yield f"{head} {'{}' if isinstance(item, Mapping) else '[]'}"
    else:
        yield f"{head} {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _AMBIGUOUS
        return value if plain else '"' + "".join(map(_escaped, value)) + '"'
    return "null" if value is None else repr(value)


def _escaped(letter: str) -> str:
    """One letter of a double-quoted scalar (YAML 1.2 section 5.7)."""
    if letter in '"\\':
        return "\\" + letter
    if " " <= letter <= "~":
        return letter
    number = ord(letter)
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )
