"""The user's files: `loopbox.toml` of a project, `[tool.loopbox]`, and the user's `config.toml`.

Owns: the text of these files to frozen values, and the words in which their mistakes are told.
Every mistake is a ConfigError that names file, line and remedy; an unknown key is a mistake.
The lab's part of the file (`[box.*]`, `[[link]]`, …) is left raw for `lab.topology`.

Must never: read a file, look at the environment, know where a file lies (callers pass the path
for the messages). Safe to call with anything a user can write.

Example::

    project = parse_project('forward = [5432]', path=Path("loopbox.toml"))
    project.forward                                     # (5432,)
    parse_project('forward = "x"', path=…)
    # ConfigError: cannot read `loopbox.toml`: line 1: `forward` must be a list of ports
    # hint: write forward = [5432]

One reader per table, and in it one line per key: `Table.take` checks the value by its kind, and
`Table.finish` refuses what no line asked for (see `wire.tomlfile`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final, TypeVar

from loopbox.rules.naming import is_box_name
from loopbox.wire.tomlfile import (
    ANY,
    PORT,
    PORTS,
    SECONDS,
    TEXT,
    TRUTH,
    WORD,
    WORDS,
    Kind,
    Table,
    did_you_mean,
    is_list,
    is_port,
    load,
    one_of,
    shown,
)

T = TypeVar("T")

POLICIES: Final = ("open", "local", "none", "filter")
ADMISSIONS: Final = ("owner", "anyone")

LAB_KEYS: Final = frozenset({"box", "link", "extends", "timers"})
"""Top-level keys of the lab's part; their content is `lab.topology`'s to judge."""

DEFAULT_IDLE_SECONDS: Final = 600.0
_HERE: Final = PurePosixPath(".")


@dataclass(frozen=True, slots=True)
class NameSetting:
    """A host name that means the box's loopback: `"shop.example.com" = 8000`."""

    name: str
    """Lower-case, without a trailing dot; `*.` in front for a wildcard."""
    port: int | None
    """Also answered on 80 and 443 and handed to this port; None: only resolved."""


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """The `[egress]` table: what the box may reach outside itself."""

    policy: str = "open"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    via: str | None = None
    inspect: bool = False
    script: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """One `[services.NAME]` table: a program that `loopbox up` starts."""

    name: str
    run: str | tuple[str, ...]
    """A shell line (text) or an argument vector (list)."""
    ready: int | None = None
    """The port on which it listens when it is ready."""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cwd: PurePosixPath = _HERE
    """Relative to the file's directory, or absolute."""
    after: tuple[str, ...] = ()
    """Services that must be ready first; there is no circle."""


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What `loopbox.toml` or `[tool.loopbox]` says about the project's box."""

    name: str | None = None
    branch: str | None = None
    """Prefix instead of the git branch's; "" means none."""
    forward: tuple[int, ...] = ()
    """Ports of the host's loopback that are visible in the box, as written, without doubles."""
    admit: str = "owner"
    """Whose connections the front door takes: "owner" or "anyone" on this machine."""
    names: tuple[NameSetting, ...] = ()
    egress: EgressSettings | None = None
    """None: the table is not there, the user's own default holds."""
    services: Mapping[str, ServiceSettings] = field(default_factory=lambda: MappingProxyType({}))
    """In the order of the file."""
    lab: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The raw tables of `LAB_KEYS` that are there."""


@dataclass(frozen=True, slots=True)
class UserSettings:
    """What `$XDG_CONFIG_HOME/loopbox/config.toml` says; the defaults when it is not there."""

    admit: str = "owner"
    shared_doors: bool = True
    """Whether 127.0.0.1 and ::1 serve the boxes' ports by name."""
    idle_seconds: float = DEFAULT_IDLE_SECONDS
    """After how long without boxes and commands the keeper ends itself."""
    egress: EgressSettings = EgressSettings()


def parse_project(text: str, *, path: Path, table: tuple[str, ...] = ()) -> ProjectSettings:
    """The project's settings in a file's text; raises ConfigError.

    `table` is where they lie in it: () in `loopbox.toml`, ("tool", "loopbox") in pyproject.toml
    (ProjectSettings() when the table is not there).
    """
    top = load(text, path=path, table=table)
    lab = {key: top.take(key, ANY) for key in sorted(LAB_KEYS & top.raw.keys())}
    names = top.table("names")
    egress = top.table("egress")
    services = top.table("services")
    settings = ProjectSettings(
        name=top.take("name", _BOX_NAME),
        branch=top.take("branch", TEXT),
        forward=_unique(top.take("forward", PORTS) or ()),
        admit=top.take("admit", _ADMISSION) or "owner",
        names=_read_names(names) if names else (),
        egress=_read_egress(egress) if egress else None,
        services=_read_services(services) if services else MappingProxyType({}),
        lab=MappingProxyType(lab),
    )
    top.finish(also_known=LAB_KEYS)
    return settings


def parse_user(text: str, *, path: Path) -> UserSettings:
    """The user's own settings in a file's text; raises ConfigError."""
    top = load(text, path=path)
    egress = top.table("egress")
    shared = top.take("shared_doors", TRUTH)
    idle = top.take("idle_seconds", SECONDS)
    settings = UserSettings(
        admit=top.take("admit", _ADMISSION) or "owner",
        shared_doors=True if shared is None else shared,
        idle_seconds=DEFAULT_IDLE_SECONDS if idle is None else float(idle),
        egress=_read_egress(egress) if egress else EgressSettings(),
    )
    top.finish()
    return settings


def _read_names(table: Table) -> tuple[NameSetting, ...]:
    """`[names]`: each key a host name, each value a port or true."""
    found: dict[str, NameSetting] = {}
    for key in list(table.raw):
        name = key.lower().rstrip(".")
        if not _is_host_name(name.removeprefix("*.")):
            table.fail(key, "is no host name", hint='write "shop.example.com" = 8000')
        if name in found:
            table.fail(key, "is there twice", hint="keep one of the two lines")
        found[name] = NameSetting(name, table.take(key, _NAME_TARGET))
        if table.raw[key] is True:
            found[name] = NameSetting(name, None)
    return tuple(found.values())


def _read_egress(table: Table) -> EgressSettings:
    """`[egress]`; the rules' own grammar is judged by `rules.egress`."""
    settings = EgressSettings(
        policy=table.take("policy", _POLICY) or "open",
        allow=tuple(table.take("allow", WORDS) or ()),
        deny=tuple(table.take("deny", WORDS) or ()),
        via=table.take("via", WORD),
        inspect=bool(table.take("inspect", TRUTH)),
        script=table.take("script", TEXT),
    )
    table.finish()
    return settings


def _read_services(services: Table) -> Mapping[str, ServiceSettings]:
    """`[services.*]` in the order of the file, with `after` checked for strangers and circles."""
    found: dict[str, ServiceSettings] = {}
    tables: dict[str, Table] = {}
    for name in services.raw:
        table = services.child(name)
        if not name.strip() or not name.isprintable():
            services.fail(name, "is no service", hint='write [services.web] and run = "COMMAND"')
        run = table.take("run", _COMMAND)
        if run is None:
            services.fail(name, "has no `run`", hint='add run = "COMMAND"')
        found[name] = ServiceSettings(
            name=name,
            run=tuple(run) if isinstance(run, list) else run,
            ready=table.take("ready", PORT),
            env=MappingProxyType(dict(table.take("env", _ENVIRONMENT) or {})),
            cwd=PurePosixPath(table.take("cwd", TEXT) or "."),
            after=_unique(table.take("after", WORDS) or ()),
        )
        table.finish()
        tables[name] = table
    for name, service in found.items():
        for other in service.after:
            if other not in found:
                hint = did_you_mean(other, found) or "declare that service, or drop it here"
                tables[name].fail("after", f"names no service: `{shown(other)}`", hint=hint)
    circle = _find_circle({name: service.after for name, service in found.items()})
    if circle:
        text = " after ".join(f"`{shown(name)}`" for name in [*circle, circle[0]])
        tables[circle[0]].fail("after", f"makes a circle: {text}", hint="drop one of them")
    return MappingProxyType(found)


def _find_circle(after: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The names of one circle in order, [] when there is none."""
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        # Depth first by hand: a file of 10,000 services must not meet the recursion limit.
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, index = stack.pop()
            if index == 0:
                if name in path:
                    return path[path.index(name) :]
                if name in done:
                    continue
                path.append(name)
            if index < len(after[name]):
                stack.append((name, index + 1))
                stack.append((after[name][index], 0))
            else:
                done.add(name)
                path.pop()
    return []


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def _is_environment(value: object) -> bool:
    return isinstance(value, dict) and all(
        key and "=" not in key and "\0" not in key and isinstance(text, str) and "\0" not in text
        for key, text in value.items()
    )


def _is_command(value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value and bool(value.strip())
    return bool(value) and is_list(value, TEXT.check) and bool(value[0])  # type: ignore[index]


def _is_label(label: str) -> bool:
    return (
        0 < len(label) < 64
        and label.isascii()
        and all(c.isalnum() or c in "-_" for c in label)
        and "-" not in (label[0], label[-1])
    )


def _is_host_name(value: object) -> bool:
    """A DNS name as programs look it up; an underscore is allowed (facts of real zones)."""
    return isinstance(value, str) and len(value) < 254 and all(map(_is_label, value.split(".")))


_BOX_NAME: Final = Kind(
    lambda v: isinstance(v, str) and is_box_name(v),
    "must be lower-case DNS labels (a-z, 0-9, hyphen; dots between)",
    '"shop"',
)
_NAME_TARGET: Final = Kind(
    lambda v: v is True or is_port(v), "must be a port, 1 to 65535, or true", "8000"
)
_COMMAND: Final = Kind(
    _is_command, "must be a command: text, or a list of texts", '"python -m http.server 8000"'
)
_ENVIRONMENT: Final = Kind(_is_environment, "must be a table of texts", '{ DEBUG = "1" }')
_POLICY: Final = one_of(*POLICIES)
_ADMISSION: Final = one_of(*ADMISSIONS)
