"""What FRR says of itself, as values: neighbours, sessions, routes.

Owns: reading the JSON of FRR's `show` commands (8.4 and later), tolerant of what a release adds.

Must never: ask a daemon (`frr_daemons` does), guess what is missing: it stays None.

Example::

    parse_neighbours(router.ask_json("ospfd", QUESTIONS["neighbours"][1]))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QUESTIONS: Mapping[str, tuple[str, str]] = {
    "ospf": ("ospfd", "show ip ospf json"),
    "neighbours": ("ospfd", "show ip ospf neighbor json"),
    "bgp": ("bgpd", "show bgp ipv4 unicast summary json"),
    "sessions": ("bgpd", "show bgp neighbors json"),
    "routes": ("zebra", "show ip route json"),
    "routes6": ("zebra", "show ipv6 route json"),
}
"""What to ask, and whom."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An OSPF neighbour."""

    router_id: str
    address: str
    interface: str
    state: str
    """`Full`, `2-Way`, `ExStart`, …; without the DR role that FRR appends."""

    def as_json(self) -> dict[str, Any]:
        """For `loopbox router`."""
        return {
            "router_id": self.router_id,
            "address": self.address,
            "interface": self.interface,
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class SessionState:
    """A BGP session as one side sees it."""

    peer: str
    """Address, or device of an unnumbered session."""
    state: str
    """`Established`, `Active`, `Connect`, `Idle`, …"""
    source: str | None
    """Local address the session runs from."""
    epoch: int | None
    """When it was last established, seconds since 1970; FRR computes it anew each time, so that it
    may be one second off. Whether a session was held is told by `established`."""
    uptime_s: int | None
    established: int
    """How often it came up: unchanged, and up, means it was held."""
    drops: int
    prefixes: int | None

    def as_json(self) -> dict[str, Any]:
        """The contract's session."""
        return {
            "peer": self.peer,
            "source": self.source,
            "state": self.state,
            "uptime_s": self.uptime_s,
            "drops": self.drops,
            "prefixes": self.prefixes,
        }


@dataclass(frozen=True, slots=True)
class RouteState:
    """A route that is in use."""

    prefix: str
    protocol: str
    metric: int
    via: tuple[tuple[str | None, str | None], ...]
    """(gateway, device) of each next hop in use, sorted."""

    def as_json(self) -> dict[str, Any]:
        """For `loopbox router`."""
        return {
            "prefix": self.prefix,
            "protocol": self.protocol,
            "metric": self.metric,
            "via": [{"gateway": gateway, "device": device} for gateway, device in self.via],
        }


def parse_router_id(document: Mapping[str, Any]) -> str | None:
    """The ID a daemon runs under, from `show ip ospf json` or a summary of BGP."""
    value = document.get("routerId")
    return str(value) if value else None


def parse_neighbours(document: Mapping[str, Any]) -> list[Neighbour]:
    """From `show ip ospf neighbor json`."""
    found = []
    for router_id, entries in (document.get("neighbors") or {}).items():
        for entry in entries if isinstance(entries, list) else [entries]:
            state = str(entry.get("nbrState") or entry.get("state") or "").partition("/")[0]
            device = str(entry.get("ifaceName") or "").split(":")[0]
            address = str(entry.get("ifaceAddress") or entry.get("address") or "")
            found.append(Neighbour(str(router_id), address, device, state))
    return sorted(found, key=lambda item: (item.interface, item.router_id))


def parse_sessions(document: Mapping[str, Any]) -> list[SessionState]:
    """From `show bgp neighbors json`."""
    found = []
    for peer, entry in document.items():
        if not isinstance(entry, dict) or "bgpState" not in entry:
            continue
        is_up = entry["bgpState"] == "Established"
        family = (entry.get("addressFamilyInfo") or {}).get("ipv4Unicast") or {}
        milliseconds = entry.get("bgpTimerUpMsec")
        found.append(
            SessionState(
                str(peer),
                str(entry["bgpState"]),
                entry.get("hostLocal"),
                entry.get("bgpTimerUpEstablishedEpoch") if is_up else None,
                milliseconds // 1000 if is_up and milliseconds is not None else None,
                int(entry.get("connectionsEstablished", 0)),
                int(entry.get("connectionsDropped", 0)),
                family.get("acceptedPrefixCounter"),
            )
        )
    return found


def parse_routes(document: Mapping[str, Any]) -> list[RouteState]:
    """From `show ip route json` or `show ipv6 route json`: selected routes only."""
    found = []
    for prefix, entries in document.items():
        for entry in entries:
            if not entry.get("selected"):
                continue
            via = tuple(
                sorted(
                    (
                        (hop.get("ip"), hop.get("interfaceName"))
                        for hop in entry.get("nexthops", ())
                        if hop.get("fib") or hop.get("active")
                    ),
                    key=str,
                )
            )
            found.append(
                RouteState(prefix, str(entry.get("protocol")), int(entry.get("metric", 0)), via)
            )
    return found
