"""On which line of a TOML file a value was written.

Owns: a map from key path to line number, because `tomllib` gives values without places and an
error must name the line.

Must never: judge the file; `tomllib` does. The scan expects text that `tomllib` accepted.

Example::

    find_lines('[box.r1]\\nloopback = ["10.0.0.1/32"]\\n')[("box", "r1", "loopback")] == 2
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEYS})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEYS})\s*=")
_INNER = re.compile(rf"[{{,]\s*({_KEYS})\s*=")
_PART = re.compile(_KEY)
_TOKEN = re.compile(r'''"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[\[\]{}]''')


def find_lines(text: str) -> dict[Path, int]:
    """Map each key path of `text` to the line (from 1) on which it is written.

    Items of an array of tables have their index in the path: ("link", 2, "ends"). Keys of inline
    tables are found; items of plain arrays are not: use `nearest`.
    """
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    current: Path = ()
    for number, line in _statements(text):
        if header := _HEADER.match(line):
            parts = _split(header[2])
            if header[1] == "[[":
                base = _resolve(parts, counts)
                counts[base] = counts.get(base, -1) + 1
                current = (*base, counts[base])
                found.setdefault(base, number)
            else:
                current = _resolve(parts, counts)
            for length in range(1, len(current) + 1):
                found.setdefault(current[:length], number)
        elif assignment := _ASSIGNMENT.match(line):
            path = (*current, *_split(assignment[1]))
            for length in range(len(current) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
            for inner in _INNER.finditer(line, assignment.end()):
                inner_line = number + line.count("\n", 0, inner.start(1))
                found.setdefault((*path, *_split(inner[1])), inner_line)
    return found


def nearest(lines: Mapping[Path, int], path: Path) -> int | None:
    """Line of the longest known beginning of `path`, or None when not even that is known."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def _split(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _resolve(parts: Path, counts: Mapping[Path, int]) -> Path:
    """Put the current index behind each array of tables that `parts` passes through."""
    path: Path = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if position < len(parts) - 1 and path in counts:
            path = (*path, counts[path])
    return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, statement); a value over several lines stays one statement."""
    start, depth, quote = 1, 0, ""
    pending: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not pending:
            start = number
        is_header = not pending and line.lstrip().startswith("[")
        kept = line
        for token in _TOKEN.finditer(line):
            word = token[0]
            if quote:
                quote = "" if word == quote else quote
            elif word in ('"""', "'''"):
                quote = word
            elif word.startswith("#"):
                kept = line[: token.start()]
                break
            elif word in "[{":
                depth += 1
            elif word in "]}":
                depth -= 1
        pending.append(kept)
        if is_header or (depth <= 0 and not quote):
            yield start, "\n".join(pending)
            pending, depth, quote = [], 0, ""
    if pending:
        yield start, "\n".join(pending)
