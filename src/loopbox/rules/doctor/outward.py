"""The middle rungs: own address, link, gateway, remote.

Owns: which interface matters (the one the default route uses), and what each kind of silence means.

Must never: take an answer from one's own address as proof of a cable, or a silent gateway as an
absent one while its neighbour entry says it is there.

Example::

    gateway(observed).cause      # "192.168.1.1 does not answer ARP on eth0"
"""

from __future__ import annotations

from loopbox.rules.doctor.inward import told
from loopbox.rules.doctor.observed import GatewaySeen, Observed, RemoteSeen
from loopbox.rules.doctor.rung import Rung, failed, passed, skipped, unasked, warned
from loopbox.rules.network import Link, Route

_INERT = frozenset({"ifb", "dummy", "sit", "ip6tnl", "gre", "gretap", "erspan", "ip_vti", "ip6gre"})
"""Kinds that are there on many machines and carry nothing."""
_THERE = frozenset({"reachable", "permanent", "noarp"})
_MAYBE = frozenset({"stale", "delay", "probe"})
_FORBIDDING = frozenset({"prohibit", "blackhole", "unreachable", "throw"})


def candidates(seen: Observed) -> tuple[Link, ...]:
    """The interfaces that matter: those of default routes, else all that could carry something."""
    network = seen.network
    used = {route.index for version in (4, 6) for route in _defaults(seen, version)}
    links = [link for link in network.links if not link.is_loopback and link.kind not in _INERT]
    chosen = [link for link in links if link.index in used]
    return tuple(chosen or [link for link in links if link.is_up and not link.master] or links)


def _defaults(seen: Observed, version: int) -> tuple[Route, ...]:
    """Default routes of the main tables; IPv6's own unreachable fallback is no route."""
    return tuple(
        route
        for route in seen.network.default_routes(version)
        if route.table != 255 and not (route.metric >= 0xFFFFFFFF and route.type == "unreachable")
    )


def own_address(seen: Observed) -> Rung:
    """An address besides the loopback's, answering."""
    name = "own-address"
    links = candidates(seen)
    if seen.is_box and not links:
        return skipped(name, ["a box has no address but its loopback's"])
    indexes = {link.index for link in links}
    entries = [
        entry
        for entry in seen.network.addresses
        if entry.index in indexes and not entry.address.is_link_local
    ]
    evidence = [told(f"{address} on {device}", attempt) for address, device, attempt in seen.own]
    if not entries:
        return _without_address(name, links, evidence)
    dead = [
        (address, attempt)
        for address, _device, attempt in seen.own
        # Own addresses are reached over the loopback: a family that is out there is out here too.
        if not attempt.is_ok and not (":" in address and not seen.loopback6.tcp.is_ok)
    ]
    if dead and len(dead) == len(seen.own):
        cause = told(f"own address {dead[0][0]}", dead[0][1])
        return failed(name, cause, 'sudo nft list ruleset, and let iif "lo" pass', evidence)
    tentative = [entry for entry in entries if entry.tentative]
    if tentative:
        cause = f"{tentative[0].address} is tentative: another host may use it, or it is new"
        return warned(name, cause, "ip -6 addr show tentative", evidence)
    if dead and any(entry.is_up for entry in links):  # else that is what `link` is about
        cause = told(f"own address {dead[0][0]}", dead[0][1])
        return warned(name, cause, "sudo nft list ruleset", evidence)
    return passed(name, [*evidence, "this proves nothing of cable or card: see link"])


def _without_address(name: str, links: tuple[Link, ...], evidence: list[str]) -> Rung:
    if not links:
        return failed(name, "no interface could bear one", None, evidence)
    device = links[0].name
    return failed(
        name,
        f"{device} has no address",
        f"sudo dhclient {device}, or: sudo ip addr add ADDRESS/PREFIX dev {device}",
        evidence,
    )


def link(seen: Observed) -> Rung:
    """Carrier of the interface that matters."""
    name = "link"
    links = candidates(seen)
    if seen.is_box and not links:
        return skipped(name, ["a box has no cable: its way out begins on its loopback"])
    evidence = [
        f"{entry.name}: {'up' if entry.is_up else 'down'}, "
        f"{'carrier' if entry.carrier else 'no carrier'}, {entry.operstate}"
        for entry in links
    ]
    if not links:
        return failed(name, "there is no network interface besides the loopback", None, evidence)
    if any(entry.is_up and entry.carrier for entry in links):
        return passed(name, evidence)
    up = [entry for entry in links if entry.is_up]
    if seen.is_box:
        ends = ", ".join(entry.name for entry in links)
        return failed(
            name, f"no link is up: {ends}", "loopbox link ls, loopbox link mend", evidence
        )
    if up:
        device = up[0].name
        fix = f"plug in the cable, or join the wireless network ({device})"
        return failed(name, f"no carrier on {device}", fix, evidence)
    device = links[0].name
    return failed(name, f"{device} is switched off", f"sudo ip link set {device} up", evidence)


def gateway(seen: Observed) -> Rung:
    """The gateway of the default route is on the link."""
    name = "gateway"
    if seen.is_box:
        return skipped(name, ["a box has no gateway: its way out begins on its loopback"])
    routes = [route for version in (4, 6) for route in _defaults(seen, version)[:1]]
    evidence = [_route_text(seen, route) for route in routes]
    evidence += [_gateway_text(entry) for entry in seen.gateways]
    if not routes:
        fix = "sudo dhclient, or: sudo ip route add default via GATEWAY"
        return failed(name, "there is no default route", fix, evidence)
    usable = [route for route in routes if route.type == "unicast"]
    if not usable:
        kind = next((route.type for route in routes if route.type in _FORBIDDING), routes[0].type)
        fix = f"sudo ip route del {kind} default, then add one via the gateway"
        return failed(name, f"the default route is `{kind}`", fix, evidence)
    if all(route.dead for route in usable):
        cause = "the default route leads over an interface without a carrier"
        return failed(name, cause, "plug in the cable", evidence)
    there = [entry for entry in seen.gateways if _is_there(entry)]
    absent = [entry for entry in seen.gateways if not _is_there(entry) and not _is_maybe(entry)]
    if there or len(usable) > len(seen.gateways):
        if absent:
            cause = f"{absent[0].address} on {absent[0].device} is not there; another gateway is"
            device = absent[0].device
            fix = f"take that default route away, or ask why: ip neigh show dev {device}"
            return warned(name, cause, fix, evidence)
        return passed(name, evidence)
    if absent:
        entry = absent[0]
        how = "ARP" if entry.address.version == 4 else "neighbour discovery"
        cause = f"{entry.address} does not answer {how} on {entry.device}"
        fix = "check the address in the default route, and whether the gateway is on"
        return failed(name, cause, fix, evidence)
    entry = seen.gateways[0]
    cause = f"{entry.address} was there lately and is silent now"
    return warned(name, cause, f"ping {entry.address}", evidence)


def _is_there(entry: GatewaySeen) -> bool:
    return entry.attempt.outcome in ("ok", "refused") or entry.state in _THERE


def _is_maybe(entry: GatewaySeen) -> bool:
    return entry.state in _MAYBE


def _gateway_text(entry: GatewaySeen) -> str:
    return f"{entry.address} on {entry.device}: {entry.state}, {told('a datagram', entry.attempt)}"


def _route_text(seen: Observed, route: Route) -> str:
    device = seen.network.link(route.index)
    via = f" via {route.gateway}" if route.gateway is not None else ""
    kind = "" if route.type == "unicast" else f" {route.type}"
    return f"default route{kind}{via} dev {device.name if device else 'none'}"


_REMOTE_CAUSES = {
    "timeout": "packets to {target} are lost beyond the gateway: filtered, or no way onward",
    "unreachable": "there is no route to {target}",
    "no-host": "a router says {target} is unreachable",
    "filtered": "this machine's own packet filter refuses packets to {target}",
    "prohibited": "a route prohibits {target}",
    "invalid": "a route black-holes {target}",
    "refused": "something refuses connections to {target} in its stead",
    "no-address": "this device has no address to reach {target} from",
    "reset": "the way out does not reach {target}",
}
_SHUT = {
    "none": "this box has no way out: its egress policy is `none`",
    "local": "this box reaches other boxes only: its egress policy is `local`",
    "filter": "this box reaches only what its rules allow: its egress policy is `filter`",
}
"""What is as it should be, by the box's policy."""
_REMOTE_FIXES = {
    "filtered": "sudo nft list ruleset",
    "prohibited": "ip route get {target}",
    "invalid": "ip route get {target}",
    "unreachable": "ip route get {target}",
    "refused": "look for a filter that rejects: sudo nft list ruleset",
    "timeout": "ask who runs the network, or try --remote HOST",
    "reset": "loopbox doctor --host --remote {target} tells whether the host reaches it",
}


def no_way_out(seen: Observed) -> str | None:
    """Why nobody outside answers in this box, and why that is no fault; None where it would be."""
    if not seen.is_box or seen.chosen:
        return None
    if not any(_defaults_of_box(seen, version) for version in (4, 6)):
        return "this box has no way out: boxes of labs reach one another only"
    return _SHUT.get(seen.egress)


def _defaults_of_box(seen: Observed, version: int) -> tuple[Route, ...]:
    """The default route of a way out leads to the loopback, so it is of type local."""
    return tuple(
        route
        for route in seen.network.default_routes(version)
        if route.type in ("local", "unicast") and route.table != 255
    )


def remote(seen: Observed) -> Rung:
    """Somebody beyond the gateway answers."""
    name = "remote"
    if seen.offline:
        return unasked(name)
    evidence = [f"{told(entry.target, entry.attempt)}, {entry.route}" for entry in seen.remote]
    if not seen.remote:
        return failed(name, "no target could be looked up", "name an address: --remote", evidence)
    good = [entry for entry in seen.remote if _is_alive(entry, chosen=seen.chosen)]
    if good:
        return passed(name, evidence)
    closed = no_way_out(seen)
    if closed is not None:
        return skipped(name, [closed, *evidence])
    # Prefer the outcome that says most: a plain timeout only when nothing else was said.
    entry = min(seen.remote, key=lambda one: one.attempt.is_silent)
    outcome = entry.attempt.outcome
    host = entry.target.rpartition(":")[0].strip("[]")
    cause = _REMOTE_CAUSES.get(outcome, "{target}: " + outcome).format(target=entry.target)
    if seen.is_box and seen.chosen and outcome == "timeout":
        cause = f"{entry.target} says nothing; in a box only an answer proves that it is there"
    if seen.egress in _SHUT and outcome == "reset":
        cause = f"{_SHUT[seen.egress]}, which refuses {entry.target}"
    fix = _REMOTE_FIXES.get(outcome, "ip route get {target}").format(target=host)
    return failed(name, cause, fix, evidence)


def _is_alive(entry: RemoteSeen, *, chosen: bool) -> bool:
    """A refusal is an answer too, when the user chose the target; the usual ones never refuse."""
    return entry.attempt.is_ok or (chosen and entry.attempt.outcome == "refused")
