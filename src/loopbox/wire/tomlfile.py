"""TOML text to checked tables: a mistake in a user's file told with file, line and remedy.

Owns: parsing with tomllib, the check of one table key by key (`Table.take` by a `Kind`,
`Table.finish` against unknown keys), and the search for the line on which a value is written.

Must never: know a key of any particular file (`loopbox.settings` and `lab.topology` do), read a
file. Every failure is a ConfigError of one printable line, however hostile the text is.

Example::

    top = load('forward = "x"', path=Path("loopbox.toml"))
    top.take("forward", PORTS)
    # ConfigError: cannot read `loopbox.toml`: line 1: `forward` must be a list of ports
    # hint: write forward = [5432]
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from loopbox.errors import ConfigError

KeyPath = tuple[str | int, ...]

_LONG_NUMBER = re.compile(r"[0-9][0-9_]{999}")
_TWICE = re.compile(r"Cannot declare \((.*)\) twice")


def is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable() and " " not in value


def is_list(value: object, check: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(check(item) for item in value)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key's value must be, in a program's and in a person's words."""

    check: Callable[[object], bool]
    says: str
    example: str


ANY: Final = Kind(lambda value: True, "", "")
TEXT: Final = Kind(_is_text, "must be text in quotes", '"…"')
WORD: Final = Kind(_is_word, "must be text in quotes without spaces", '"…"')
WORDS: Final = Kind(lambda v: is_list(v, _is_word), "must be a list of texts", '["…"]')
TRUTH: Final = Kind(lambda v: isinstance(v, bool), "must be true or false", "true")
PORT: Final = Kind(is_port, "must be a port, 1 to 65535", "8000")
PORTS: Final = Kind(lambda v: is_list(v, is_port), "must be a list of ports", "[5432]")
SECONDS: Final = Kind(
    lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v < 1e9,
    "must be a number of seconds",
    "600",
)


def one_of(*words: str) -> Kind:
    """The kind of a key that takes one of these words."""
    quoted = ", ".join(f'"{word}"' for word in words)
    return Kind(lambda value: value in words, f"must be one of {quoted}", f'"{words[0]}"')


def load(text: str, *, path: Path, table: tuple[str, ...] = ()) -> Table:
    """The text's top table, or the one below these keys (empty when it is not there)."""
    source = Source(path=path, text=text)
    raw: object = source.load()
    for key in table:
        raw = raw.get(key, {}) if isinstance(raw, dict) else {}
    return Table(source, raw, table)


class Table:
    """One table of the file, read key by key; remembers what it was asked for."""

    __slots__ = ("asked", "path", "raw", "source")

    def __init__(self, source: Source, raw: object, path: KeyPath) -> None:
        if not isinstance(raw, dict):
            source.fail(
                path,
                "must be a table",
                hint=f"write [{'.'.join(map(_bare_or_quoted, map(str, path)))}]",
            )
        self.source = source
        self.raw: dict[str, Any] = raw
        """The table as tomllib read it."""
        self.path = path
        self.asked: set[str] = set()

    def take(self, key: str, kind: Kind) -> Any:
        """The key's value, None when the key is not there; raises ConfigError by its kind."""
        self.asked.add(key)
        if key not in self.raw:
            return None
        value = self.raw[key]
        if not kind.check(value):
            self.fail(key, kind.says, hint=f"write {_bare_or_quoted(key)} = {kind.example}")
        return value

    def table(self, key: str) -> Table | None:
        """The table below the key, None when the key is not there."""
        self.asked.add(key)
        return self.child(key) if key in self.raw else None

    def child(self, key: str) -> Table:
        """The table below a key that is there."""
        self.asked.add(key)
        return Table(self.source, self.raw[key], (*self.path, key))

    def fail(self, key: str, cause: str, *, hint: str) -> NoReturn:
        """Raises ConfigError about a key of this table."""
        self.source.fail((*self.path, key), cause, hint=hint)

    def finish(self, *, also_known: Iterable[str] = ()) -> None:
        """Refuses the first key that nobody asked for."""
        known = self.asked | set(also_known)
        for key in self.raw:
            if key not in known:
                hint = did_you_mean(key, known) or f"known here: {', '.join(sorted(known))}"
                self.fail(key, "is no setting of loopbox", hint=hint)


@dataclass(frozen=True, slots=True)
class Source:
    """The file's text, for messages that name file and line."""

    path: Path
    text: str

    def load(self) -> dict[str, Any]:
        """The text as TOML; a BOM, which editors of another system leave, is passed over."""
        try:
            return tomllib.loads(self.text.removeprefix("\ufeff").replace("\r\n", "\n"))
        except tomllib.TOMLDecodeError as error:
            cause, line = _syntax_fault(str(error), self.text)
            raise self.error(line, cause, hint=f"correct line {line}") from None
        except RecursionError:
            lines = self.text.splitlines()
            line = max(range(len(lines)), key=lambda n: lines[n].count("[") + lines[n].count("{"))
            raise self.error(
                line + 1, "brackets are nested too deeply", hint="nest them less"
            ) from None
        except ValueError:
            # Python reads no number of more digits (sys.get_int_max_str_digits).
            before = self.text[: long.start()] if (long := _LONG_NUMBER.search(self.text)) else ""
            raise self.error(
                before.count("\n") + 1, "the number is too long", hint="write a shorter number"
            ) from None

    def fail(self, path: KeyPath, cause: str, *, hint: str) -> NoReturn:
        """Raises ConfigError about the value at the path."""
        name = ".".join(shown(str(part)) for part in path)
        raise self.error(find_line(self.text, path), f"`{name}` {cause}", hint=hint)

    def error(self, line: int, cause: str, *, hint: str) -> ConfigError:
        return ConfigError(
            f"cannot read `{shown(str(self.path))}`: line {line}: {cause}", hint=hint
        )


def _syntax_fault(message: str, text: str) -> tuple[str, int]:
    """tomllib's message as cause and line: `Invalid value (at line 3, column 5)`."""
    cause, found, place = message.rpartition(" (at ")
    words = place.rstrip(")").replace(",", "").split()
    if found and words[:1] == ["line"] and len(words) > 1 and words[1].isdigit():
        line = int(words[1])
    else:
        line = max(1, len(text.splitlines()))
        cause = cause or message
    if twice := _TWICE.fullmatch(cause):
        keys = re.findall(r"'([^']*)'|\"([^\"]*)\"", twice[1])
        cause = f"`[{'.'.join(one or other for one, other in keys)}]` stands here a second time"
    return shown(cause[:1].lower() + cause[1:]), line


def did_you_mean(key: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"did you mean `{shown(close[0])}`?" if close else None


def shown(text: str) -> str:
    """The text on one line, cut, with nothing in it that steers a terminal."""
    cut = text if len(text) <= 200 else text[:197] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _bare_or_quoted(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else f'"{shown(key)}"'


# --- where a value stands -----------------------------------------------------------------------


def find_line(text: str, path: KeyPath) -> int:
    """The line (from 1) on which the value at the path is written, or that of its nearest parent.

    `path` holds keys, and numbers for items of `[[arrays]]`: ("link", 0, "ends"). A scan of the
    text and no second parser: exact for headers, keys and dotted keys; a key in an inline table
    or a multi-line array is reported at the line where that begins.
    """
    best_line, best_length = 1, 0
    for line, known in _lines_of_keys(text):
        length = len(known)
        if length > best_length and known == path[:length]:
            best_line, best_length = line, length
    return best_line


def _lines_of_keys(text: str) -> Iterable[tuple[int, KeyPath]]:
    """Each header and each `key = …` line with the path it defines."""
    header: KeyPath = ()
    counts: dict[KeyPath, int] = {}
    closing = ""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if closing:
            if closing in line:
                closing = ""
            continue
        if depth > 0:
            depth += _bracket_balance(line)
            continue
        stripped = line.strip().removeprefix("\ufeff")
        if stripped.startswith("["):
            doubled = stripped.startswith("[[")
            keys, _ = _split_key(stripped.lstrip("["))
            header = _resolve(keys, counts)
            if doubled:
                yield number, header
                index = counts.get(header, -1) + 1
                counts[header] = index
                header = (*header, index)
            yield number, header
        elif stripped and not stripped.startswith("#"):
            keys, rest = _split_key(stripped)
            for length in range(1, len(keys) + 1):
                yield number, (*header, *keys[:length])
            for quotes in ('"""', "'''"):
                if rest.count(quotes) == 1:
                    closing = quotes
            depth = max(0, _bracket_balance(rest))


def _resolve(keys: tuple[str, ...], counts: Mapping[KeyPath, int]) -> KeyPath:
    """A header's keys with the current item's number after each array on the way."""
    path: KeyPath = ()
    for position, key in enumerate(keys):
        path = (*path, key)
        if path in counts and position < len(keys) - 1:
            path = (*path, counts[path])
    return path


def _split_key(text: str) -> tuple[tuple[str, ...], str]:
    """The dotted key at the beginning of the text (up to `=` or `]`) and what follows it."""
    parts: list[str] = []
    current = ""
    quote = ""
    for position, character in enumerate(text):
        if quote:
            if character == quote:
                quote = ""
            else:
                current += character
        elif character in "\"'":
            quote = character
        elif character in "=]":
            return (*parts, current), text[position + 1 :]
        elif character == ".":
            parts.append(current)
            current = ""
        elif not character.isspace():
            current += character
    return (*parts, current), ""


def _bracket_balance(text: str) -> int:
    """How many more square brackets open than close outside quotes and comments."""
    balance = 0
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#":
            break
        else:
            balance += {"[": 1, "]": -1}.get(character, 0)
    return balance
