"""The lower rungs: the loopback interface, its two families, and the name localhost.

Owns: telling a loopback that is down from one without addresses, without a local route, filtered,
or with ping alone switched off.

Must never: take a failed ping for a broken loopback while TCP and UDP work.

Example::

    loopback_ipv4(observed).cause      # "127.0.0.1/8 is missing from lo"
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from loopbox.rules.addressing import is_loopback
from loopbox.rules.doctor.observed import Attempt, LoopbackSeen, Observed
from loopbox.rules.doctor.rung import Rung, failed, passed, warned
from loopbox.rules.network import Link

_WORDS = {
    "ok": "answers",
    "timeout": "does not answer",
    "refused": "is refused",
    "unreachable": "has no route",
    "no-host": "is unreachable",
    "filtered": "is refused by the packet filter",
    "prohibited": "is prohibited by a route",
    "invalid": "is black-holed by a route",
    "no-address": "is not an address of this device",
    "not-permitted": "may not be tried by this user",
    "not-tried": "was not tried",
}


def told(what: str, attempt: Attempt) -> str:
    """One attempt as evidence."""
    words = _WORDS.get(attempt.outcome, attempt.outcome)
    return f"{what} {words}" + (f" ({attempt.ms:.1f} ms)" if attempt.is_ok else "")


def loopback_interface(seen: Observed) -> Rung:
    """An interface with the LOOPBACK flag, up."""
    name = "loopback-interface"
    link = seen.network.loopback
    if link is None:
        return failed(name, "no interface has the LOOPBACK flag", "restart this network namespace")
    evidence = [f"{link.name}: index {link.index}, {'up' if link.is_up else 'down'}"]
    if not link.is_up:
        never = not seen.network.addresses_on(link)
        cause = f"{link.name} is down" + (", and was never up" if never else "")
        return failed(name, cause, f"sudo ip link set {link.name} up", evidence)
    return passed(name, evidence)


def loopback_ipv4(seen: Observed) -> Rung:
    """127.0.0.1: address, local route, TCP, UDP, ping."""
    name = "loopback-ipv4"
    part, link = seen.loopback4, seen.network.loopback
    evidence = _evidence("127.0.0.1", part)
    if link is not None and not part.tcp.is_ok:
        found = [
            entry
            for entry in seen.network.addresses_on(link)
            if entry.address == IPv4Address("127.0.0.1")
        ]
        if not found:
            fix = f"sudo ip addr add 127.0.0.1/8 dev {link.name}"
            return failed(name, f"127.0.0.1/8 is missing from {link.name}", fix, evidence)
    rung = _answers(name, "127.0.0.1", part, link, evidence)
    if rung.state == "pass" and link is not None:
        knob = seen.network.knob("ipv4/icmp_echo_ignore_all")
        if not part.ping.is_ok and knob == "1":
            return warned(
                name,
                "ping is switched off (icmp_echo_ignore_all=1); TCP and UDP work",
                "sudo sysctl net.ipv4.icmp_echo_ignore_all=0",
                evidence,
            )
        if not any(
            entry.prefix <= 8 and entry.address == IPv4Address("127.0.0.1")
            for entry in seen.network.addresses_on(link)
        ):
            return warned(
                name,
                f"127.0.0.1 is on {link.name} without /8: the rest of 127/8 leaves this device",
                f"sudo ip addr add 127.0.0.1/8 dev {link.name}",
                evidence,
            )
    return rung


def loopback_ipv6(seen: Observed) -> Rung:
    """::1: address, local route, TCP, UDP, ping."""
    name = "loopback-ipv6"
    part, link = seen.loopback6, seen.network.loopback
    evidence = _evidence("::1", part)
    if part.tcp.is_ok or link is None:
        rung = _answers(name, "::1", part, link, evidence)
        if rung.state == "pass" and seen.network.knob("ipv6/icmp/echo_ignore_all") == "1":
            fix = "sudo sysctl net.ipv6.icmp.echo_ignore_all=0"
            return warned(name, "ping is switched off; TCP and UDP work", fix, evidence)
        return rung
    off = seen.network.knob(f"ipv6/conf/{link.name}/disable_ipv6")
    if off == "":
        return warned(name, "this kernel has no IPv6", None, evidence)
    if off == "1":
        everywhere = seen.network.knob("ipv6/conf/all/disable_ipv6") == "1"
        where = "all" if everywhere else link.name
        return warned(
            name,
            f"IPv6 is switched off (disable_ipv6=1 on {where})",
            f"sudo sysctl net.ipv6.conf.{where}.disable_ipv6=0",
            evidence,
        )
    present = {entry.address for entry in seen.network.addresses_on(link)}
    if IPv6Address("::1") not in present:
        fix = f"sudo ip -6 addr add ::1/128 dev {link.name}"
        return failed(name, f"::1 is missing from {link.name}", fix, evidence)
    return _answers(name, "::1", part, link, evidence)


def _evidence(address: str, part: LoopbackSeen) -> list[str]:
    return [
        f"{address}: {part.route or 'no route'}",
        told("TCP", part.tcp),
        told("UDP", part.udp),
        told("ping", part.ping),
    ]


def _answers(
    name: str, address: str, part: LoopbackSeen, link: Link | None, evidence: list[str]
) -> Rung:
    """The judgement once the address itself is there."""
    device = "lo" if link is None else link.name
    if not part.is_local:
        return failed(
            name,
            f"the kernel does not deliver {address} here ({part.route or 'no route'})",
            f"sudo ip link set {device} down && sudo ip link set {device} up",
            evidence,
        )
    dead = [word for word, attempt in (("TCP", part.tcp), ("UDP", part.udp)) if not attempt.is_ok]
    if dead:
        return failed(
            name,
            f"a packet filter on {device} drops {' and '.join(dead)} to {address}",
            f'sudo nft list ruleset, and let iif "{device}" pass first',
            evidence,
        )
    if part.ping.is_silent:
        return passed(name, [*evidence, "ping alone proves nothing: TCP and UDP work"])
    return passed(name, evidence)


def localhost_name(seen: Observed) -> Rung:
    """localhost by the C library, compared with the hosts file."""
    name = "localhost-name"
    part = seen.localhost
    hosts = "missing" if part.hosts is None else ", ".join(part.hosts) or "no localhost in it"
    evidence = [
        f"/etc/hosts: {hosts}",
        f"resolver order: {' '.join(part.sources)}",
        f"localhost is {', '.join(part.addresses) or part.error or 'nothing'}",
    ]
    fix = r"printf '127.0.0.1 localhost\n::1 localhost\n' | sudo tee -a /etc/hosts"
    wrong = [text for text in part.addresses if not is_loopback(ip_address(text))]
    if wrong:
        where = "in /etc/hosts" if set(wrong) & set(part.hosts or ()) else "by DNS"
        cause = f"localhost means {wrong[0]}, which is not the loopback ({where})"
        return failed(name, cause, "correct the localhost lines of /etc/hosts", evidence)
    if not part.addresses:
        return failed(name, _why_no_localhost(seen), _how_localhost(seen, fix), evidence)
    return _localhost_warnings(seen, evidence, fix) or passed(name, evidence)


def _why_no_localhost(seen: Observed) -> str:
    part = seen.localhost
    if part.hosts is None:
        return "/etc/hosts is missing, and nothing else knows localhost"
    if part.hosts and "files" not in part.sources:
        return "nsswitch.conf does not ask the hosts file"
    if not part.hosts:
        return "/etc/hosts has no line for localhost"
    return f"the resolver does not answer for localhost: {part.error or 'no address'}"


def _how_localhost(seen: Observed, fix: str) -> str:
    if seen.localhost.hosts and "files" not in seen.localhost.sources:
        return "write `hosts: files dns` in /etc/nsswitch.conf"
    return fix


def _localhost_warnings(seen: Observed, evidence: list[str], fix: str) -> Rung | None:
    """What works and is worth a word all the same."""
    name, part = "localhost-name", seen.localhost
    own = {"myhostname", "resolve"} & set(part.sources)
    if not part.hosts and not own:
        what = "/etc/hosts is missing" if part.hosts is None else "/etc/hosts has no localhost"
        return warned(name, f"{what}: a DNS server was asked for it", fix, evidence)
    first = part.addresses[0]
    if ":" in first and not seen.loopback6.tcp.is_ok:
        only = all(":" in text for text in part.addresses)
        cause = f"localhost is {first}{'' if only else ' first'}, which does not answer here"
        advice = "put 127.0.0.1 localhost into /etc/hosts, or mend loopback-ipv6"
        make = failed if only else warned
        return make(name, cause, advice, evidence)
    if part.proxies:
        names = ", ".join(part.proxies)
        return warned(
            name,
            f"{names} set without NO_PROXY for localhost: requests to it go to the proxy",
            "export NO_PROXY=localhost,127.0.0.1,::1",
            evidence,
        )
    return None
