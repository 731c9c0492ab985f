"""Verdicts as findings: severity, title, attack, fix; and the order a person reads them in.

Owns: the contract's finding object, the severity table, which published attack applies.

Must never: lower a severity because something is not known.

Example::

    finding(listener, verdict, holders, where="host").severity      # "high"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loopbox.rules.addressing import is_loopback, is_unspecified, text_of
from loopbox.rules.audit.reach import Verdict
from loopbox.rules.audit.tools import Tool, recognised
from loopbox.rules.network import ListeningSocket

SEVERITIES = ("info", "low", "unknown", "medium", "high")
"""Least worrying first; unknown is never ranked as safe."""

HIDDEN = "its process could not be seen"
"""Evidence of a listener whose holders were not ours to see."""
EXPOSED = frozenset({"link", "lan", "internet", "unknown"})
"""Levels for which `audit --check` fails."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds a socket."""

    pid: int
    command: str
    user: int | None = None

    def as_json(self) -> dict[str, object]:
        """As it stands in a finding's `holders`."""
        return {"pid": self.pid, "command": self.command, "uid": self.user}


@dataclass(frozen=True, slots=True)
class Finding:
    """One listener's verdict."""

    code: str
    severity: str
    title: str
    where: str
    """`host`, or the box's name."""
    listener: ListeningSocket
    holders: tuple[Holder, ...]
    reach: str
    evidence: tuple[str, ...]
    fix: str
    subnet: str | None = None
    """Of a whole network that neighbours can route to: the network, else None."""
    ours: str | None = None
    """Of a listener of loopbox's own: what it is ("loopbox front door of shop")."""

    def as_json(self) -> dict[str, object]:
        """The contract's finding, with all holders and the socket's owner beside it."""
        first = self.holders[0] if self.holders else None
        return {
            "code": self.code,
            "severity": self.severity,
            "title": self.title,
            "where": self.where,
            "listener": {
                "protocol": self.listener.protocol,
                "family": self.listener.family,
                "bind": text_of(self.listener.address),
                "port": self.listener.port,
                "pid": None if first is None else first.pid,
                "command": None if first is None else first.command,
                "at": endpoint(self.listener),
                "url": None,
            },
            "reach": self.reach,
            "evidence": list(self.evidence),
            "fix": self.fix,
            "holders": [holder.as_json() for holder in self.holders],
            "uid": self.listener.uid,
            "subnet": self.subnet,
            "ours": self.ours,
        }


_SEVERITY = {
    # level: (ordinary program, one that obeys whoever connects)
    "loopback": ("info", "info"),
    "same-host": ("low", "medium"),
    "link": ("medium", "high"),
    "lan": ("medium", "high"),
    "internet": ("high", "high"),
    "blocked": ("info", "low"),
    "unreachable": ("info", "info"),
    "unknown": ("unknown", "unknown"),
}
_WHO = {
    "loopback": "only programs on this device reach it",
    "same-host": "containers and boxes of this machine reach it",
    "link": "neighbours on the same link reach it",
    "lan": "everybody on the local network reaches it",
    "internet": "the Internet reaches it",
    "blocked": "only the packet filter keeps others out",
    "unreachable": "nobody reaches it now",
    "unknown": "who reaches it cannot be told",
}
_CODES = {
    "loopback": "loopback-only",
    "blocked": "behind-filter",
    "unreachable": "unreachable",
    "unknown": "unknown-rule",
}
_CAUSES = {
    "wildcard": "exposed-wildcard",
    "address": "exposed-address",
    "alias": "exposed-alias",
    "route-localnet": "exposed-route-localnet",
    "nat": "exposed-nat",
    "multicast": "exposed-multicast",
    "broadcast": "exposed-broadcast",
    "published": "published-port",
    "routed": "routed-subnet",
}


def finding(
    listener: ListeningSocket,
    verdict: Verdict,
    holders: Sequence[Holder],
    *,
    where: str,
    is_seen: bool = True,
    ours: str | None = None,
) -> Finding:
    """The finding for one listener.

    `is_seen` False: its holders were not ours to see. `ours`: what it is to loopbox (ours.py).
    """
    tool = _tool(holders, listener)
    ordinary, obedient = _SEVERITY[verdict.level]
    severity = obedient if tool is not None and tool.unauthenticated else ordinary
    evidence = [*verdict.evidence, *_attacks(listener, verdict, tool)]
    if not holders and verdict.cause not in ("published", "routed"):
        evidence.append(
            "no process holds it: the kernel's own" if is_seen else f"{HIDDEN} (uid {listener.uid})"
        )
    name = ours or (tool.name if tool is not None else _program(holders))
    if ours is not None and ours.startswith("loopbox front door of"):
        evidence.append(f"leads into box {ours.rpartition(' ')[2]}, through its keeper")
    if verdict.cause == "published":
        name = "a published port"
    return Finding(
        code=_CODES.get(verdict.level) or _CAUSES.get(verdict.cause, "exposed-wildcard"),
        severity=severity,
        title=f"{name} on {endpoint(listener)}: {_WHO[verdict.level]}",
        where=where,
        listener=listener,
        holders=tuple(holders),
        reach=verdict.level,
        evidence=tuple(evidence),
        fix=_fix(listener, verdict, tool, where),
        ours=ours,
    )


def by_danger(findings: Sequence[Finding]) -> list[Finding]:
    """Most dangerous first, then by place, protocol and port."""
    return sorted(
        findings,
        key=lambda found: (
            -SEVERITIES.index(found.severity),
            found.where,
            found.listener.protocol,
            found.listener.port,
        ),
    )


def is_exposed(found: Finding) -> bool:
    """Whether `--check` fails for it."""
    return found.reach in EXPOSED


def endpoint(listener: ListeningSocket) -> str:
    """BIND:PORT, IPv6 in brackets."""
    text = text_of(listener.address)
    return f"[{text}]:{listener.port}" if ":" in text else f"{text}:{listener.port}"


def summary(findings: Sequence[Finding]) -> str:
    """One line for a person."""
    exposed = [found for found in findings if found.reach in EXPOSED - {"unknown"}]
    doubtful = sum(found.reach == "unknown" for found in findings)
    doubt = f", {doubtful} that cannot be judged" if doubtful else ""
    if not findings:
        return "nothing listens"
    if not exposed:
        return f"{_count(len(findings))}, none reachable from outside{doubt}"
    high = sum(found.severity == "high" for found in exposed)
    danger = f", {high} of them dangerous" if high else ""
    return f"{_count(len(findings))}, {len(exposed)} reachable from outside{danger}{doubt}"


def _count(number: int) -> str:
    return f"{number} listener" if number == 1 else f"{number} listeners"


def _tool(holders: Sequence[Holder], listener: ListeningSocket) -> Tool | None:
    for holder in holders:
        tool = recognised(holder.command, listener.port)
        if tool is not None:
            return tool
    return None if holders else recognised(None, listener.port)


def _program(holders: Sequence[Holder]) -> str:
    if not holders:
        return "a listener"
    words = holders[0].command.split()
    name = words[0].rpartition("/")[2] if words else "a listener"
    return name[:40] or "a listener"


def _attacks(listener: ListeningSocket, verdict: Verdict, tool: Tool | None) -> list[str]:
    """Published attacks the listener is open to, one line each."""
    said: list[str] = []
    outside = verdict.level in EXPOSED
    if tool is not None and tool.danger and outside:
        said.append(f"{tool.name}: whoever reaches it can {tool.danger}")
    if verdict.cause == "route-localnet":
        said.append("CVE-2020-8558: route_localnet opens loopback listeners to the link")
    if verdict.cause == "nat":
        said.append("translated packets reach it past rules that name its own port")
    if tool is not None and tool.is_http and tool.unauthenticated and listener.protocol == "tcp":
        if is_unspecified(listener.address):
            said.append("0.0.0.0-day: a web page may reach it at http://0.0.0.0")
        if is_loopback(listener.address) or is_unspecified(listener.address):
            said.append("DNS rebinding: a web page may reach it unless it checks the Host header")
    return said


def _fix(listener: ListeningSocket, verdict: Verdict, tool: Tool | None, where: str) -> str:
    """What to do, as a command where there is one."""
    if verdict.level in ("loopback", "unreachable"):
        return "nothing"
    if verdict.cause == "route-localnet":
        return "sysctl -w net.ipv4.conf.all.route_localnet=0, or: loopbox guard on --host"
    if verdict.level == "unknown":
        return (
            "look at the rule the evidence names; bound to 127.0.0.1 it is safe whatever that does"
        )
    if verdict.cause == "published" and listener.port == 0:
        return "translate only the ports that are meant"
    if verdict.cause == "published":
        return f"publish it on loopback only: -p 127.0.0.1:{listener.port}:PORT"
    if verdict.cause == "nat":
        return "remove the translation, or bind the program to an address it does not lead to"
    if tool is not None:
        return tool.fix
    address = "::1" if listener.family == "ipv6" else "127.0.0.1"
    if where == "host":
        return f"bind it to {address}, or run it in a box: loopbox run -- COMMAND"
    return f"bind it to {address}"
