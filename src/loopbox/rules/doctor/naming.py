"""The upper rungs: DNS, and whether this user can make boxes.

Owns: which answers are true (two names whose addresses everybody knows, one name that cannot
exist), and telling a dead resolver from a lying one and from a captive portal.

Must never: ask anything.

Example::

    dns(observed).cause      # "10.0.0.1 answers every name with 10.0.0.1: a captive portal"
"""

from __future__ import annotations

from dataclasses import replace

from loopbox.rules.doctor.observed import Observed, ServerSeen
from loopbox.rules.doctor.rung import Rung, failed, passed, skipped, unasked, warned

KNOWN: dict[str, frozenset[str]] = {
    "one.one.one.one": frozenset({"1.1.1.1", "1.0.0.1"}),
    "dns.google": frozenset({"8.8.8.8", "8.8.4.4"}),
}
"""Names of public resolvers, whose addresses are their trade."""
NOWHERE = "this-name-cannot-exist.invalid"
"""RFC 6761 section 6.4: resolvers must not know it."""

_SERVER_CAUSES = {
    "timeout": "name server {server} does not answer",
    "refused": "nothing listens for DNS at {server}",
    "unreachable": "there is no route to name server {server}",
    "no-host": "name server {server} is unreachable",
    "filtered": "this machine's own packet filter refuses DNS to {server}",
    "prohibited": "a route prohibits name server {server}",
    "invalid": "a route black-holes name server {server}",
    "no-address": "this device has no address to reach name server {server} from",
    "servfail": "name server {server} fails (SERVFAIL): it reaches no other server",
    "refused-by-policy": "name server {server} refuses to answer this machine (REFUSED)",
}
_FIX = "write a working `nameserver ADDRESS` line into /etc/resolv.conf"


def dns(seen: Observed) -> Rung:
    """The servers of resolv.conf, and the C library's view."""
    name, part = "dns", seen.names
    if seen.offline:
        return unasked(name)
    evidence = [_server_text(server) for server in part.servers]
    evidence.append(f"C library: {part.library}")
    if part.leaks:
        cause = "the name server is on the loopback, which does not work"
        return failed(name, cause, "mend the loopback first", evidence)
    if not part.servers:
        what = "no name server in /etc/resolv.conf" if part.has_file else "no /etc/resolv.conf"
        return failed(name, what, _FIX, evidence)
    for server in part.servers:
        lie = _lie(server)
        if lie is not None:
            cause, fix = lie
            return failed(name, cause, fix, evidence)
    working = [server for server in part.servers if server.outcome == "ok"]
    if not working:
        server = part.servers[0]
        cause = _SERVER_CAUSES.get(server.outcome, "name server {server}: " + server.outcome)
        return failed(name, cause.format(server=server.address), _FIX, evidence)
    return _dns_details(seen, working, evidence)


def _dns_details(seen: Observed, working: list[ServerSeen], evidence: list[str]) -> Rung:
    """A server answers; what else is worth saying?"""
    name, part = "dns", seen.names
    if "dns" not in seen.localhost.sources and "resolve" not in seen.localhost.sources:
        fix = "write `hosts: files dns` in /etc/nsswitch.conf"
        return failed(name, "nsswitch.conf does not ask DNS", fix, evidence)
    ignorant = all(server.codes.get(known) == "nxdomain" for server in working for known in KNOWN)
    if ignorant:
        cause = f"{working[0].address} does not know public names: a closed network's resolver"
        return warned(name, cause, "use the network's own names, or another name server", evidence)
    first = part.servers[0]
    if first.outcome != "ok":
        cause = f"name server {first.address} is dead, so each look-up waits before the next"
        return warned(name, cause, "take it out of /etc/resolv.conf", evidence)
    if part.library not in ("ok", "not-tried"):
        cause = f"the servers answer, but the C library does not: {part.library}"
        return warned(name, cause, "getent ahosts one.one.one.one", evidence)
    return passed(name, evidence)


def _lie(server: ServerSeen) -> tuple[str, str] | None:
    """(cause, fix) when a server's answers cannot be true."""
    invented = server.answers.get(NOWHERE, ())
    portal = "open a web page: a network that wants a log-in answers every name"
    if invented:
        return (
            f"{server.address} answers a name that cannot exist ({invented[0]}): captive portal?",
            portal,
        )
    for known, true in KNOWN.items():
        answered = server.answers.get(known)
        if answered and not set(answered) & true:
            return (
                f"{server.address} gives a wrong answer: {known} is not {answered[0]}",
                "use another name server, or ask who runs this one",
            )
    return None


def _server_text(server: ServerSeen) -> str:
    answers = "; ".join(
        f"{name} {', '.join(found) or server.codes.get(name, '')}"
        for name, found in server.answers.items()
    )
    return f"{server.address}: {server.outcome} ({server.ms:.1f} ms) {answers}".rstrip()


def boxes(seen: Observed) -> Rung:
    """Can this user make boxes?"""
    name, part = "boxes", seen.boxes
    if seen.system != "linux":
        works = "classify, addr, audit and doctor work here all the same"
        return replace(skipped(name, [works]), cause="Linux only")
    if part is None:
        return skipped(name, ["boxes are made on the host"])
    evidence = ["as root, without a user namespace" if part.is_root else "as a plain user"]
    if part.is_wsl:
        evidence.append("WSL2: boxes live inside its virtual machine; Windows sees their addresses")
    if part.problem is not None:
        works = "classify, addr plan, audit and doctor work all the same"
        return failed(name, part.problem, part.fix, [*evidence, works])
    if part.lacks:
        return warned(name, "; ".join(part.lacks), part.fix, evidence)
    return passed(name, evidence)
