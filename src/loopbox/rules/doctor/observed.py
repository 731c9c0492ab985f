"""What the doctor's probes saw, as values.

Owns: one record per kind of probe. `outcome` words: ok, refused, timeout, unreachable (no route),
no-host (nobody answers on the link, or a router says so), filtered (our own packet filter), \
prohibited and invalid (routes of that type), no-address, not-permitted (we may not try), not-tried
(trying could send loopback packets onto a wire), or the errno's name.

Must never: hold a judgement.

Example::

    Attempt("timeout", 700.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loopbox.rules.network import Address, Network


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try."""

    outcome: str = "not-tried"
    ms: float = 0.0

    @property
    def is_ok(self) -> bool:
        """It worked."""
        return self.outcome == "ok"

    @property
    def is_silent(self) -> bool:
        """Nothing came back."""
        return self.outcome == "timeout"


@dataclass(frozen=True, slots=True)
class LoopbackSeen:
    """One family of the loopback."""

    is_local: bool = False
    """The kernel would deliver it here (and not send it out)."""
    route: str = ""
    """What the kernel would do instead, in words."""
    tcp: Attempt = Attempt()
    udp: Attempt = Attempt()
    ping: Attempt = Attempt()


@dataclass(frozen=True, slots=True)
class LocalhostSeen:
    """The name localhost."""

    addresses: tuple[str, ...] = ()
    """What the C library answers, in its order."""
    error: str | None = None
    """Its words when it does not, or `timeout`; `not-tried` when that could leak."""
    hosts: tuple[str, ...] | None = None
    """Addresses of localhost in /etc/hosts; None when there is no such file."""
    sources: tuple[str, ...] = ("files", "dns")
    """The hosts line of nsswitch.conf."""
    proxies: tuple[str, ...] = ()
    """Proxy variables that would catch requests to localhost."""


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """One default route's gateway."""

    address: Address
    device: str
    state: str
    """Neighbour state at the end of the probe."""
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class RemoteSeen:
    """One target out there."""

    target: str
    route: str
    """The route really used: device, source, gateway."""
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """One name server."""

    address: str
    outcome: str
    """ok, timeout, refused, unreachable ..., or a DNS code: servfail, refused-by-policy ..."""
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name to addresses; absent when it did not answer that question."""
    codes: Mapping[str, str] = field(default_factory=dict)
    """Name to response code: noerror, nxdomain, servfail ..."""
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class NamesSeen:
    """Name resolution."""

    has_file: bool = True
    servers: tuple[ServerSeen, ...] = ()
    library: str = "not-tried"
    """What getaddrinfo(3) said of a known name: ok, or an error."""
    leaks: bool = False
    """A name server is on the loopback, which does not work: it was not asked."""
    asked: str | None = None
    """The name the user gave."""


@dataclass(frozen=True, slots=True)
class BoxesSeen:
    """Whether this machine lets this user make boxes."""

    problem: str | None = None
    fix: str | None = None
    lacks: tuple[str, ...] = ()
    """What boxes would have to do without, in words."""
    is_wsl: bool = False
    is_root: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything."""

    network: Network
    loopback4: LoopbackSeen = LoopbackSeen()
    loopback6: LoopbackSeen = LoopbackSeen()
    localhost: LocalhostSeen = LocalhostSeen()
    own: tuple[tuple[str, str, Attempt], ...] = ()
    """(address, interface, attempt)."""
    gateways: tuple[GatewaySeen, ...] = ()
    remote: tuple[RemoteSeen, ...] = ()
    chosen: bool = False
    """The user chose the remote target, so a refusal is an answer."""
    names: NamesSeen = NamesSeen()
    boxes: BoxesSeen | None = None
    is_box: bool = False
    egress: str = "open"
    """A box's policy for its way out."""
    offline: bool = False
    """Nobody beyond the gateway was asked, by the user's wish."""
    system: str = "linux"
    """linux, or a name of rules/alias_systems."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """Rung id to the time its probes took."""
