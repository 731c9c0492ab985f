"""What is left of a listener nobody outside reaches: this device itself, or nobody.

Owns: the verdicts loopback and unreachable, and filters on the loopback interface; the first line
of every listener's evidence.

Must never: call a listener shut that an outer link leads to (reach.py asks those first).

Example::

    from_inside(view, ways, listener).level     # "loopback"
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from loopbox.rules.addressing import is_loopback, is_unspecified, text_of, unwrapped
from loopbox.rules.audit.hooks import doubt
from loopbox.rules.audit.paths import CLIENT_PORT, Ways
from loopbox.rules.audit.view import Verdict, View
from loopbox.rules.firewall.evaluate import outcomes
from loopbox.rules.firewall.model import Packet
from loopbox.rules.network import Address, Link, ListeningSocket

NUMBERS = {"tcp": 6, "udp": 17}
"""IP protocol numbers of the listeners that have ports."""


def from_inside(view: View, ways: Ways, listener: ListeningSocket) -> Verdict:
    """No way in from outside: what is left is this device itself."""
    network, address = view.network, unwrapped(listener.address)
    device = network.loopback
    what = bound(listener)
    link = network.link(listener.interface) if listener.interface else None
    if device is None or not device.is_up:
        return Verdict("unreachable", "loopback-down", (what, "the loopback interface is down"))
    if link is not None and not link.is_loopback and not address.is_link_local:
        why = f"bound to device {link.name}, where nobody can send to it"
        return Verdict("unreachable", "device", (what, why))
    for direction in ("ingress", "egress"):
        inner = doubt(view.hooks, device, direction)
        if inner:
            return Verdict("unknown", "rule", (what, inner))
    drops, doubts = _fate(view, ways, listener, device)
    if drops:
        return Verdict("blocked", "filter-on-loopback", (what, *drops))
    if doubts:
        return Verdict("unknown", "rule", (what, *doubts))
    return Verdict("loopback", "loopback", (what, *_no_way_in(ways, address)))


def _fate(
    view: View, ways: Ways, listener: ListeningSocket, device: Link
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(reasons, doubts) why not even this device itself gets through, all families shut."""
    reasons: list[str] = []
    for version in versions(listener):
        one: Address = IPv4Address("127.0.0.1") if version == 4 else IPv6Address("::1")
        address = unwrapped(listener.address)
        target = one if is_unspecified(address) else address
        packet = Packet(
            version=version,
            protocol=NUMBERS.get(listener.protocol, listener.port),
            source=target,
            target=target,
            sport=CLIENT_PORT,
            dport=listener.port,
            iif=device.name,
        )
        ends = outcomes(view.ruleset, "input", packet, ways.kind_of)
        if any(end.verdict == "accept" and end.sure for end in ends):
            return (), ()
        if any(not end.sure for end in ends):
            return (), tuple(end.because for end in ends if not end.sure)[:2]
        reasons += [f"on {device.name}: {end.because}" for end in ends]
    return tuple(dict.fromkeys(reasons)), ()


def _no_way_in(ways: Ways, address: Address) -> tuple[str, ...]:
    if is_loopback(address):
        return ("packets for loopback addresses are refused from every wire",)
    if not ways.outside:
        return ("no other interface is up",)
    return ("no interface leads to it",)


def versions(listener: ListeningSocket) -> tuple[int, ...]:
    """The IP versions it serves."""
    return {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}[listener.family]


def bound(listener: ListeningSocket) -> str:
    """The first line of evidence: what it is bound to, and what that means."""
    where = text_of(listener.address)
    device = f" on interface {listener.interface}" if listener.interface else ""
    if not is_unspecified(listener.address):
        return f"bound to {where}{device}"
    served = {"ipv4": "every IPv4 address", "ipv6": "every IPv6 address", "dual": "every address"}
    return f"bound to {where}{device}: {served[listener.family]} of this device"
