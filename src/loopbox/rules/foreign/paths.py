"""What the tools of macOS and the BSDs tell of ways, neighbours, pings and name servers.

Owns: `route -n get`, `arp -an`, `ndp -an`, `ping -c 1` and `scutil --dns`, in the dialects of
macOS, FreeBSD, OpenBSD and NetBSD.

Must never: raise on a line; take an entry for a live neighbour because it has an address: those
tables keep entries for minutes after the last word, so such a neighbour is `stale`.

Example::

    parse_route_get("   route to: 127.0.0.1\\n  interface: lo0\\n").interface      # "lo0"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from loopbox.rules.doctor.observed import Attempt
from loopbox.rules.network import Address, Neighbour

_ARP = re.compile(r"^\S+ \(([0-9.]+)\) at (\S+) on (\S+)(.*)$")
_TIME = re.compile(r"\btime[=<]\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*ms")
_RECEIVED = re.compile(r"\b([0-9]{1,6}) (?:packets )?received\b")
_SERVER = re.compile(r"^\s*nameserver\[\d+\]\s*:\s*(\S+)\s*$")
_ND_STATES = {
    "I": "incomplete",
    "R": "reachable",
    "S": "stale",
    "D": "delay",
    "P": "probe",
    "N": "none",
    "W": "none",
}
"""ndp(8), the column S."""


@dataclass(frozen=True, slots=True)
class WayTaken:
    """What the kernel would do with a packet."""

    interface: str
    gateway: Address | None = None
    flags: frozenset[str] = frozenset()
    """RTF_* words: UP, GATEWAY, HOST, LOCAL, REJECT, BLACKHOLE ..."""


def parse_route_get(text: str) -> WayTaken | None:
    """The answer of `route -n get ADDRESS`; None when there is no route (it prints none)."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        if colon:
            found.setdefault(name.strip(), value.strip())
    interface = found.get("interface", "")
    if not interface:
        return None
    words = found.get("flags", "").strip("<>").split(",")
    return WayTaken(
        interface, _plain(found.get("gateway", "")), frozenset(word for word in words if word)
    )


def parse_neighbours(text: str, indexes: dict[str, int]) -> list[Neighbour]:
    """Entries of `arp -an` or `ndp -an`; `indexes` are interface numbers by name."""
    found: list[Neighbour] = []
    for line in text.splitlines():
        arp = _ARP.match(line)
        if arp is not None:
            entry = _neighbour(arp[1], arp[2], arp[3], arp[4].split(), indexes)
        else:
            words = line.split()
            if len(words) < 3:
                continue
            entry = _neighbour(words[0], words[1], words[2], words[3:], indexes)
        if entry is not None:
            found.append(entry)
    return found


def _neighbour(
    host: str, hardware: str, interface: str, rest: list[str], indexes: dict[str, int]
) -> Neighbour | None:
    address = _plain(host)
    if address is None or interface not in indexes:
        return None
    if hardware in ("(incomplete)", "incomplete"):
        return Neighbour(indexes[interface], address, "incomplete")
    if "permanent" in rest:
        return Neighbour(indexes[interface], address, "permanent")
    letter = next((word for word in rest if word in _ND_STATES), "S")
    return Neighbour(indexes[interface], address, _ND_STATES[letter])


def parse_ping(text: str) -> Attempt:
    """How one echo request ended, from ping's own count."""
    received = _RECEIVED.search(text)
    if received is None:
        return Attempt("not-permitted" if "not permitted" in text.lower() else "not-tried")
    if int(received[1]) == 0:
        return Attempt("timeout")
    spent = _TIME.search(text)
    return Attempt("ok", float(spent[1]) if spent else 0.0)


def parse_scutil(text: str) -> list[str]:
    """Name servers of the default resolvers of `scutil --dns`, in order, each once.

    Resolvers for one domain only (`domain : local`) and those scoped to an interface are left out:
    an ordinary look-up does not ask them.
    """
    found: dict[str, None] = {}
    block: list[str] = []
    is_default = True
    for line in [*text.splitlines(), "resolver #end"]:
        if line.startswith(("resolver", "DNS configuration")):
            if is_default:
                found.update(dict.fromkeys(block))
            block, is_default = [], True
            if "scoped" in line:
                break
            continue
        if re.match(r"^\s*domain\s*:", line):
            is_default = False
        server = _SERVER.match(line)
        if server is not None and _plain(server[1]) is not None:
            block.append(server[1])
    return list(found)


def _plain(text: str) -> Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
