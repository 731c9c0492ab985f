"""What BGP makes of a lab: which routes each router ends up with.

Owns: the path-vector computation for one set of sessions: origin, loop detection, reflection
(RFC 4456), next hops, best path and multipath as FRR chooses them with this project's
configuration (multipath-relax, maximum-paths not limited).

Must never: know links or OSPF: whether a next hop can be reached is asked of `Resolve`.

Example::

    tables = converge(speakers, sessions, resolve=lambda router, hop: 10)
    tables["leaf1"][IPv4Network("10.255.0.9/32")].hops
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

Hop = IPv4Address | tuple[str, str]
"""A next hop: an address, or (link, box) of an unnumbered neighbour."""
Resolve = Callable[[str, Hop], int | None]
"""(router, hop) to the IGP's metric there, None when it cannot be reached."""

MAX_ROUNDS = 400
"""Rounds before giving up on a configuration that never settles (RFC 3345 describes some)."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A router as BGP sees it."""

    name: str
    asn: int
    router_id: IPv4Address
    originates: tuple[IPv4Network, ...] = ()
    """Networks it advertises and has at the moment."""
    next_hop_self: bool = False
    """On internal sessions, for what it learned outside."""


@dataclass(frozen=True, slots=True)
class Peering:
    """A session that is up, from one side."""

    own: str
    peer: str
    hop_here: Hop
    """What the peer will see as next hop when `own` puts itself there."""
    external: bool
    client: bool = False
    """`own` reflects for the peer."""


@dataclass(frozen=True, slots=True)
class Path:
    """One route as a router holds it."""

    as_path: tuple[int, ...]
    hop: Hop | None
    """None: originated here."""
    external: bool = False
    learned_from: str | None = None
    from_client: bool = False
    originator: IPv4Address | None = None
    clusters: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a router uses for one network."""

    best: Path
    hops: frozenset[Hop]
    """All equal next hops; empty for what it originates."""


Table = Mapping[IPv4Network, Chosen]


def converge(
    speakers: Mapping[str, Speaker], peerings: Iterable[Peering], *, resolve: Resolve
) -> dict[str, dict[IPv4Network, Chosen]]:
    """The tables of all routers when nothing changes any more."""
    peerings = list(peerings)
    clients = {(item.own, item.peer) for item in peerings if item.client}
    outgoing: dict[str, list[Peering]] = {name: [] for name in speakers}
    for peering in peerings:
        outgoing[peering.own].append(peering)
    networks = {network for speaker in speakers.values() for network in speaker.originates}
    tables: dict[str, dict[IPv4Network, Chosen]] = {name: {} for name in speakers}
    for network in sorted(networks):
        for name, chosen in _settle(network, speakers, outgoing, clients, resolve).items():
            tables[name][network] = chosen
    return tables


def _settle(
    network: IPv4Network,
    speakers: Mapping[str, Speaker],
    outgoing: Mapping[str, list[Peering]],
    clients: set[tuple[str, str]],
    resolve: Resolve,
) -> dict[str, Chosen]:
    chosen = {
        name: Chosen(Path((), None), frozenset())
        for name, speaker in speakers.items()
        if network in speaker.originates
    }
    own = dict(chosen)
    for _ in range(MAX_ROUNDS):
        heard: dict[str, list[Path]] = {}
        for name, current in chosen.items():
            for peering in outgoing[name]:
                path = _told(current.best, speakers[name], peering)
                if path is not None and _accepted(path, speakers[peering.peer]):
                    if (peering.peer, name) in clients:
                        path = replace(path, from_client=True)
                    heard.setdefault(peering.peer, []).append(path)
        following = dict(own)
        for name, paths in heard.items():
            if name not in own:
                usable = [path for path in paths if not _is_own_hop(path, network)]
                best = _choose(name, usable, speakers, resolve)
                if best is not None:
                    following[name] = best
        if following == chosen:
            break
        chosen = following
    return chosen


def _told(path: Path, speaker: Speaker, peering: Peering) -> Path | None:
    """What `speaker` tells one peer of its best path, as the peer will hold it; None: nothing."""
    if path.learned_from == peering.peer:
        return None
    if peering.external:
        return Path((speaker.asn, *path.as_path), peering.hop_here, True, speaker.name)
    internal = path.hop is not None and not path.external
    if internal and not (path.from_client or peering.client):
        return None
    hop = path.hop
    if hop is None or (speaker.next_hop_self and path.external):
        hop = peering.hop_here
    told = Path(path.as_path, hop, False, speaker.name)
    if internal:
        originator = path.originator
        told = replace(told, originator=originator, clusters=(speaker.router_id, *path.clusters))
    return replace(told, originator=told.originator or speaker.router_id)


def _accepted(path: Path, listener: Speaker) -> bool:
    if path.external:
        return listener.asn not in path.as_path
    return path.originator != listener.router_id and listener.router_id not in path.clusters


def _is_own_hop(path: Path, network: IPv4Network) -> bool:
    """Whether a host route is its own next hop, which would resolve through itself (FRR: invalid).

    So it is with a loopback that is advertised over a session between loopbacks.
    """
    return network.prefixlen == 32 and path.hop == network.network_address


def _choose(
    name: str, paths: list[Path], speakers: Mapping[str, Speaker], resolve: Resolve
) -> Chosen | None:
    """Best path and its equals (RFC 4271 section 9.1.2.2, in FRR's order)."""
    reachable = []
    for path in paths:
        metric = resolve(name, path.hop) if path.hop is not None else 0
        if metric is not None:
            rank = (len(path.as_path), 0 if path.external else 1, 0 if path.external else metric)
            reachable.append((rank, path))
    if not reachable:
        return None
    top = min(rank for rank, _ in reachable)
    equal = [path for rank, path in reachable if rank == top]

    def last_resort(path: Path) -> tuple[int, int, str]:
        sender = speakers[str(path.learned_from)]
        who = path.originator or sender.router_id
        return int(who), len(path.clusters), sender.name

    best = min(equal, key=last_resort)
    return Chosen(best, frozenset(path.hop for path in equal if path.hop is not None))
