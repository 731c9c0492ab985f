"""Reads what a project's files say: its settings, its package's name, its place in git.

Owns: the walk from a directory up to the git root, and reading the few files on the way
(`loopbox.toml`, pyproject.toml, package.json, Cargo.toml, go.mod, `.git`).

Must never: run git (it may be missing, is slow to start, and obeys a hostile configuration),
follow anything above the git root, decide a name (`rules.naming` does), write.

A file of the user's own for loopbox with a mistake in it is a ConfigError. A package file with
one is passed over: another tool owns it and will say so better.

What a file says is remembered by its identity and times (`_remembered`): the keeper asks at every
command, and parsing a usual pyproject.toml takes 2 ms where a stat takes 2 us.

Tests of existence go through os.path, which takes a directory that may not be searched for one
without the file; pathlib would raise.

Example::

    project = read_project(Path.cwd())
    identity = naming.infer(project.facts, name=None, branch=None, owner_of=owners.get)
"""

from __future__ import annotations

import json
import os
import stat
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, cast

from loopbox.errors import ConfigError
from loopbox.rules.naming import NameSource, ProjectFacts
from loopbox.settings import ProjectSettings, UserSettings, parse_project, parse_user

T = TypeVar("T")

SETTINGS_FILE: Final = "loopbox.toml"

_SIZE_LIMIT: Final = 4 << 20
"""Bytes; a longer file is no file of this kind (a lab of 2,000 routers takes about 0.5 MB)."""


@dataclass(frozen=True, slots=True)
class Project:
    """What the files around a directory say."""

    facts: ProjectFacts
    settings: ProjectSettings
    settings_file: Path | None
    """The file the settings come from, None when there is none."""


@dataclass(frozen=True, slots=True)
class _Git:
    """Where a checkout stands in git, by its files alone."""

    root: Path
    repository: str | None = None
    linked: bool = False
    branch: str | None = None


def read_project(directory: Path, *, file: Path | None = None) -> Project:
    """The project around a directory; raises ConfigError for a mistake in the user's settings.

    Looks in the directory and upwards to the git root; without git only in the directory itself,
    since a stray package.json in a home directory would otherwise name every project below it.
    The settings are those of `file` instead, when one is given.
    """
    here = Path(os.path.realpath(directory))
    git = _read_git(here)
    places = list(_upwards(here, git.root if git else here))
    settings, settings_file = (
        _read_settings(places) if file is None else (read_settings_file(file), file)
    )
    configured = None
    if settings.name is not None and settings_file is not None:
        configured = NameSource(settings.name, settings_file)
    facts = ProjectFacts(
        directory=here,
        git_root=git.root if git else None,
        repository=git.repository if git else None,
        linked_worktree=git.linked if git else False,
        branch=git.branch if git else None,
        configured=configured,
        configured_branch=settings.branch,
        package=None if configured else _read_package(places),
    )
    return Project(facts=facts, settings=settings, settings_file=settings_file)


def read_settings_file(path: Path) -> ProjectSettings:
    """The settings of one file named by the user (`loopbox up FILE`); raises ConfigError."""
    return _parse_own(path)


def read_user_settings(path: Path) -> UserSettings:
    """The user's `config.toml`, the defaults when it is not there; raises ConfigError."""
    if not os.path.lexists(path):
        return UserSettings()
    return parse_user(_read_own(path), path=path)


def _upwards(here: Path, root: Path) -> Iterator[Path]:
    """The directory and its parents up to the root, which is one of them."""
    yield here
    for parent in here.parents:
        if here == root:
            return
        yield parent
        if parent == root:
            return


def _read_settings(places: list[Path]) -> tuple[ProjectSettings, Path | None]:
    """The nearest settings; in one directory `loopbox.toml` comes before pyproject.toml."""
    for place in places:
        own = place / SETTINGS_FILE
        if os.path.isfile(own):
            return _remembered(own, _parse_own), own
        shared = place / "pyproject.toml"
        settings = _remembered(shared, _parse_shared)
        if settings is not None:
            return settings, shared
    return ProjectSettings(), None


def _parse_own(path: Path) -> ProjectSettings:
    return parse_project(_read_own(path), path=path)


def _parse_shared(path: Path) -> ProjectSettings | None:
    """What a pyproject.toml says to loopbox, None when it has no table of ours."""
    text = _read_text(path)
    # Most such files say nothing of loopbox: don't parse those for it.
    if text is None or "loopbox" not in text:
        return None
    tool = _toml(text).get("tool")
    if not isinstance(tool, dict) or "loopbox" not in tool:
        return None
    return parse_project(text, path=path, table=("tool", "loopbox"))


def _read_own(path: Path) -> str:
    """The text of a file that is the user's word to loopbox; raises ConfigError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"cannot read `{path}`: it is no regular file", hint="name a file")
        data = path.read_bytes()
    except OSError as error:
        cause = (error.strerror or "it failed").lower()
        raise ConfigError(f"cannot read `{path}`: {cause}", hint=f"check `ls -l {path}`") from error
    if len(data) > _SIZE_LIMIT:
        raise ConfigError(
            f"cannot read `{path}`: it is larger than {_SIZE_LIMIT >> 20} MiB",
            hint="name a smaller file",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"cannot read `{path}`: line {line}: it is not UTF-8", hint="save it as UTF-8"
        ) from error


def _read_text(path: Path) -> str | None:
    """The text of another tool's file, None when there is none that can be read."""
    try:
        # Opened without blocking: a FIFO by that name must not hold up every command.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _SIZE_LIMIT:
            return None
        with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
            return file.read(_SIZE_LIMIT)
    except OSError:
        return None
    finally:
        os.close(descriptor)


_memory: dict[tuple[Path, Callable[[Path], object]], tuple[tuple[int, ...], object]] = {}
"""What each reader found in each file, and the identity the file had then; the one module-level
cache here. Values are frozen, so sharing them is safe."""

_MEMORY_LIMIT: Final = 1024
_SETTLED_NS: Final = 1_000_000_000
"""A file changed less than this ago may change again within one tick of its clock."""


def _remembered(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in the file, from memory when the file is still the same."""
    try:
        facts = os.stat(path)
    except OSError:
        return read(path)
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    known = _memory.get((path, read))
    if known is not None and known[0] == identity:
        return cast(T, known[1])
    found = read(path)
    if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS:
        while len(_memory) >= _MEMORY_LIMIT:
            del _memory[next(iter(_memory))]
        _memory[path, read] = (identity, found)
    return found


# --- packages -----------------------------------------------------------------------------------


def _toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _by_keys(values: object, *keys: str) -> str | None:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, str) and values.strip() else None


def _python_name(path: Path) -> str | None:
    values = _toml(_read_text(path) or "")
    return _by_keys(values, "project", "name") or _by_keys(values, "tool", "poetry", "name")


def _node_name(path: Path) -> str | None:
    try:
        return _by_keys(json.loads(_read_text(path) or ""), "name")
    except (ValueError, RecursionError):
        return None


def _rust_name(path: Path) -> str | None:
    return _by_keys(_toml(_read_text(path) or ""), "package", "name")


def _go_name(path: Path) -> str | None:
    for line in (_read_text(path) or "").splitlines():
        words = line.partition("//")[0].split()
        if len(words) == 2 and words[0] == "module":
            return words[1].strip('"`') or None
    return None


_PACKAGE_FILES: Final[tuple[tuple[str, Callable[[Path], str | None]], ...]] = (
    ("pyproject.toml", _python_name),
    ("package.json", _node_name),
    ("Cargo.toml", _rust_name),
    ("go.mod", _go_name),
)
"""In the order in which they are asked within one directory."""


def _read_package(places: list[Path]) -> NameSource | None:
    """The name of the nearest package that has one."""
    for place in places:
        for file_name, read_name in _PACKAGE_FILES:
            path = place / file_name
            name = _remembered(path, read_name) if os.path.isfile(path) else None
            if name is not None:
                return NameSource(name, path)
    return None


# --- git ----------------------------------------------------------------------------------------


def _read_git(here: Path) -> _Git | None:
    """The checkout around a directory, None when there is none (gitrepository-layout(5))."""
    for place in (here, *here.parents):
        marker = place / ".git"
        if os.path.isdir(marker):
            # An empty directory of that name (some tools mask .git so) is no repository.
            if os.path.exists(marker / "HEAD"):
                return _Git(root=place, repository=place.name, branch=_read_branch(marker))
        elif os.path.isfile(marker):
            return _read_git_file(place, marker)
    return None


def _read_git_file(place: Path, marker: Path) -> _Git:
    """A checkout whose `.git` is a file: a linked worktree or a submodule."""
    text = (_read_text(marker) or "").strip()
    if not text.startswith("gitdir:"):
        return _Git(root=place, repository=place.name)
    directory = (place / text.removeprefix("gitdir:").strip()).resolve()
    branch = _read_branch(directory)
    common_text = _read_text(directory / "commondir")
    if common_text is None:
        # A submodule, or a repository kept elsewhere: a checkout of its own.
        return _Git(root=place, repository=place.name, branch=branch)
    common = (directory / common_text.strip()).resolve()
    return _Git(root=place, repository=_repository_name(common), linked=True, branch=branch)


def _repository_name(common: Path) -> str:
    """How people call the repository: `shop` for shop/.git, shop.git and shop/.bare."""
    if common.name.startswith("."):
        return common.parent.name
    return common.name.removesuffix(".git")


def _read_branch(directory: Path) -> str | None:
    """The branch that HEAD names; None when it is detached, or not told by files (reftable)."""
    text = _read_text(directory / "HEAD") or ""
    branch = text.strip().removeprefix("ref: refs/heads/")
    if not text.startswith("ref: refs/heads/") or branch == ".invalid":
        return None
    return branch or None
