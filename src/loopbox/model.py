"""The values that travel between the layers: what a box is, as data.

Owns: `Box`, `Listener`, `Process`, `Name` and their JSON form (CONTRACT: BOX, LISTENER).
Must never: hold descriptors, read anything, decide anything.

Example::

    Listener("tcp", "dual", "::", 3000, at="127.64.1.2:3000").as_json()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket of a box that waits for peers."""

    protocol: str
    """`tcp` or `udp`."""
    family: str
    """`ipv4`, `ipv6`, or `dual`: an IPv6 wildcard that takes IPv4 too."""
    bind: str
    port: int
    pid: int | None = None
    command: str | None = None
    at: str | None = None
    """Where the host finds it, `127.x.y.z:port`; None when the front door could not open."""
    url: str | None = None
    problem: str | None = None
    """Why the host cannot reach it, or not by name, with the remedy."""

    def as_json(self) -> Json:
        """The contract's LISTENER; `problem` only where there is one."""
        document: Json = {
            "protocol": self.protocol,
            "family": self.family,
            "bind": self.bind,
            "port": self.port,
            "pid": self.pid,
            "command": self.command,
            "at": self.at,
            "url": self.url,
        }
        if self.problem is not None:
            document["problem"] = self.problem
        return document


@dataclass(frozen=True, slots=True)
class Process:
    """A process that lives in a box."""

    pid: int
    command: str

    def as_json(self) -> Json:
        """`{"pid", "command"}`."""
        return {"pid": self.pid, "command": self.command}


@dataclass(frozen=True, slots=True)
class Name:
    """A host name that means this box's loopback, inside the box."""

    name: str
    target: str | None
    tls: bool

    def as_json(self) -> Json:
        """`{"name", "target", "tls"}`."""
        return {"name": self.name, "target": self.target, "tls": self.tls}


@dataclass(frozen=True, slots=True)
class Box:
    """A device with its own lo, as a person or program sees it."""

    name: str
    state: str
    """`up` or `stopped`."""
    address: str
    directory: str
    created: str
    """ISO 8601 with zone."""
    loopback: tuple[str, ...] = ("127.0.0.1/8", "::1/128")
    names: tuple[Name, ...] = ()
    listeners: tuple[Listener, ...] = ()
    processes: tuple[Process, ...] = ()
    forward: tuple[int, ...] = ()
    egress_policy: str = "open"
    egress_rules: tuple[str, ...] = ()
    links: tuple[Json, ...] = ()
    router: Json | None = None
    kept: bool = False
    problems: tuple[str, ...] = field(default=())
    """What this box lacks on this machine, and the remedy."""

    def as_json(self) -> Json:
        """The contract's BOX; `problems` only where there are some."""
        document: Json = {
            "name": self.name,
            "state": self.state,
            "address": self.address,
            "directory": self.directory,
            "created": self.created,
            "loopback": list(self.loopback),
            "names": [name.as_json() for name in self.names],
            "listeners": [listener.as_json() for listener in self.listeners],
            "processes": [process.as_json() for process in self.processes],
            "forward": list(self.forward),
            "egress": {"policy": self.egress_policy, "rules": list(self.egress_rules)},
            "links": [dict(link) for link in self.links],
            "router": self.router,
            "kept": self.kept,
        }
        if self.problems:
            document["problems"] = list(self.problems)
        return document
