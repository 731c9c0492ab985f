"""Which address names a router, and what a failure does to a session: rules as tables.

Owns: the router ID rules of several makers with the reason for each choice, the timer profiles of
a lab, the test whether two OSPF interfaces become neighbours, and the outcome of a failure for a
BGP session (held, flaps, lost).

Must never: read a clock, a file or a socket; know how a lab file is written.

Example::

    choice = choose_router_id("frr", loopbacks=[ip("10.255.0.1")], physical=[ip("192.168.0.1")])
    assert choice.reason == "highest loopback address"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

Outcome = Literal["held", "flaps", "lost"]
FailureKind = Literal["carrier", "silent"]

INELIGIBLE: tuple[tuple[IPv4Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "means no address"),
    (IPv4Network("127.0.0.0/8"), "host loopback, the same on every device"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
)
"""Addresses no rule may take as a router ID (FRR zebra_check_addr, checked on 8.4.4)."""


@dataclass(frozen=True, slots=True)
class RouterIdRule:
    """How one maker picks a router ID when none is configured."""

    maker: str
    prefers_loopback: bool
    """False: a loopback address competes with all others (BIRD)."""
    pick: Literal["highest", "lowest"]
    note: str
    """When the choice is made again, and what surprises people."""


RULES: dict[str, RouterIdRule] = {
    "cisco": RouterIdRule(
        "Cisco IOS",
        True,
        "highest",
        "chosen when the process starts; changes only on reload or `clear ip ospf process`",
    ),
    "frr": RouterIdRule(
        "FRR",
        True,
        "highest",
        "only the kernel's lo counts as loopback; releases differ in when they choose again",
    ),
    "junos": RouterIdRule(
        "Junos", True, "lowest", "the primary (lowest) address of lo0, else the lowest physical"
    ),
    "bird": RouterIdRule(
        "BIRD 2", False, "lowest", "the lowest address of any interface; loopback has no privilege"
    ),
    "aruba": RouterIdRule(
        "ArubaOS-Switch", True, "lowest", "lowest loopback address, else lowest of the VLANs"
    ),
    "aruba-cx": RouterIdRule(
        "Aruba CX", True, "highest", "highest loopback address, else highest of the interfaces"
    ),
    "comware": RouterIdRule(
        "Comware", True, "highest", "highest loopback address, else highest of the interfaces"
    ),
}
RULES["ios"] = RULES["cisco"]


@dataclass(frozen=True, slots=True)
class RouterIdChoice:
    """A router ID and why it is that one."""

    value: IPv4Address | None
    """None: nothing eligible; the routing process would not start (Cisco: OSPF-4-NORTRID)."""
    reason: str


def why_ineligible(address: IPv4Address) -> str | None:
    """Why `address` can never be a router ID, or None when it can."""
    return next((why for network, why in INELIGIBLE if address in network), None)


def choose_router_id(
    rule: str,
    *,
    loopbacks: Iterable[IPv4Address],
    physical: Iterable[IPv4Address],
    explicit: IPv4Address | None = None,
) -> RouterIdChoice:
    """Pick the router ID by `rule` (a key of RULES; KeyError otherwise).

    Addresses compare as numbers (10.0.0.1 is above 9.255.255.255), those of interfaces that are
    down must be left out by the caller. RFC 2328 appendix C.1 leaves the algorithm open.
    """
    maker = RULES[rule]
    if explicit is not None:
        return RouterIdChoice(explicit, "configured explicitly")
    lo = [address for address in loopbacks if why_ineligible(address) is None]
    wires = [address for address in physical if why_ineligible(address) is None]
    choose: Callable[[Sequence[IPv4Address]], IPv4Address]
    choose = max if maker.pick == "highest" else min
    if not maker.prefers_loopback:
        pool = [*lo, *wires]
        if not pool:
            return RouterIdChoice(None, "no eligible address")
        return RouterIdChoice(choose(pool), f"{maker.pick} address of all interfaces")
    if lo:
        return RouterIdChoice(choose(lo), f"{maker.pick} loopback address")
    if wires:
        return RouterIdChoice(choose(wires), f"no loopback; {maker.pick} interface address")
    return RouterIdChoice(None, "no eligible address")


@dataclass(frozen=True, slots=True)
class Timers:
    """How fast routers of a lab notice, tell and recompute. Seconds unless said otherwise."""

    name: str
    hello: float
    dead: float
    keepalive: int
    hold: int
    connect: int
    """Seconds between two attempts to open a BGP session."""
    retransmit: int = 5
    lsa_throttle: float = 5.0
    """Least time between two versions of one router's LSA: what delays the second bad news."""
    spf: tuple[int, int, int] | None = None
    """Initial delay, first hold, longest hold of an SPF run, in ms. None: the daemon's own."""
    point_to_point: bool = True
    """Links with two ends are OSPF point-to-point: no 40 s wait for a designated router."""
    tuned: bool = True
    """False: nothing is written, the daemons' defaults are in force."""


PROFILES: dict[str, Timers] = {
    "fast": Timers(
        "fast", 0.2, 1, 1, 3, 1, retransmit=1, lsa_throttle=0.0, spf=(0, 50, 500)
    ),
    "classic": Timers(
        "classic", 1, 4, 3, 9, 1, retransmit=1, lsa_throttle=0.0, spf=(0, 50, 500)
    ),
    "stock": Timers("stock", 10, 40, 60, 180, 120, point_to_point=False, tuned=False),
}  # fmt: skip

BFD_DETECTION = 0.9
"""Three packets lost at 300 ms each: the default of RFC 5880 implementations, FRR's included."""

REROUTE = 0.1
"""Time to flood, compute and install after a failure is noticed, in seconds (measured: 16 ms)."""


@dataclass(frozen=True, slots=True)
class OspfInterface:
    """What one end of a link tells in its hello packets (RFC 2328 section 10.5)."""

    area: str
    hello: float
    dead: float
    mtu: int


NEIGHBOUR_CONDITIONS: tuple[tuple[str, Callable[[OspfInterface], object]], ...] = (
    ("area", lambda end: end.area),
    ("hello interval", lambda end: max(end.hello, 1)),
    ("dead interval", lambda end: end.dead),
    ("MTU", lambda end: end.mtu),
)
"""What must be equal at both ends; below one second FRR sends hello 0 and does not compare it."""


def why_not_neighbours(left: OspfInterface, right: OspfInterface) -> str | None:
    """The first thing that keeps two OSPF interfaces on one link from becoming Full, or None."""
    for what, of in NEIGHBOUR_CONDITIONS:
        if of(left) != of(right):
            return f"{what} differs: {of(left)} and {of(right)}"
    return None


def outage(kind: FailureKind, *, timers: Timers, dead: float, bfd: bool) -> float:
    """Longest time in seconds a path through a failed link swallows packets.

    A carrier loss is noticed at once at both ends; a silent failure when the dead interval (or
    BFD) has run out. After that the LSA may have to wait for its throttle.
    """
    noticed = 0.0 if kind == "carrier" else (min(dead, BFD_DETECTION) if bfd else dead)
    spf = (timers.spf[2] / 1000) if timers.spf else 1.0
    return noticed + timers.lsa_throttle + spf + 2 * REROUTE


def session_outcome(
    *, path_remains: bool, path_hit: bool, outage: float, hold: float, keepalive: float
) -> Outcome:
    """What a failure does to a loopback-sourced BGP session.

    `path_hit`: a shortest path between the ends used what failed. The last keepalive may have
    arrived almost one interval before the failure, so that much of the hold time is already gone
    (RFC 4271 section 4.4; times in seconds).
    """
    if not path_remains:
        return "lost"
    if path_hit and outage >= hold - keepalive:
        return "flaps"
    return "held"
