"""Whether an address may be added to, or taken off, the loopback interface, and what to warn of.

Owns: the traps of aliases on lo (research: a short prefix makes a whole network local, deleting a
primary takes its secondaries along, a global alias is reachable from the LAN and may become the
source address of an unnumbered host).

Must never: touch the kernel, print commands (rules/alias_plans), write files (rules/alias_files).

Example::

    judge_addition(IPv4Address("10.9.9.9"), None, network).prefix      # 32
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from loopbox.rules.addressing import Address, is_loopback, is_unspecified, text_of
from loopbox.rules.network import InterfaceAddress, Network
from loopbox.rules.registry import registered

OWN = frozenset({(IPv4Address("127.0.0.1"), 8), (IPv6Address("::1"), 128)})
"""What makes an interface the loopback: never deleted."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """May it be done, and what should the user know?"""

    address: Address
    prefix: int
    scope: str
    """rtnetlink scope to give a new address: host for 127/8 and ::1, else global."""
    done: bool = False
    """Nothing is left to do: it is already there (add), or not there (delete)."""
    refusal: str | None = None
    """The cause, for "cannot add `A/P` to `lo`: CAUSE"."""
    hint: str | None = None
    forcible: bool = False
    """A refusal that --force overrides."""
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """ADDRESS/PREFIX."""
        return f"{text_of(self.address)}/{self.prefix}"


def judge_addition(
    address: Address, prefix: int | None, network: Network, *, scope: str | None = None
) -> Judgement:
    """Whether `address` may be added to the loopback of `network`.

    `prefix` None means one address: /32 or /128. `scope` None means the kernel's usual one.
    """
    width = address.max_prefixlen
    prefix = width if prefix is None else prefix
    scope = scope or ("host" if is_loopback(address) else "global")
    present = _on_loopback(network)
    if any((entry.address, entry.prefix) == (address, prefix) for entry in present):
        return Judgement(address, prefix, scope, done=True)
    refusal = _unusable(address)
    if refusal is not None:
        return Judgement(address, prefix, scope, refusal=refusal, hint="choose one of 127.0.0.0/8")
    warnings = tuple(_warnings(address, prefix, scope, network, present))
    if address.version == 4 and prefix < width and (address, prefix) not in OWN:
        return Judgement(
            address,
            prefix,
            scope,
            refusal=f"/{prefix} on a loopback interface makes {2 ** (width - prefix)} "
            "addresses local, not one",
            hint=f"use {text_of(address)}/{width}, or --force",
            forcible=True,
            warnings=warnings,
        )
    return Judgement(address, prefix, scope, warnings=warnings)


def judge_deletion(address: Address, prefix: int | None, network: Network) -> Judgement:
    """Whether `address` may be taken off the loopback of `network`.

    `prefix` None means the one it has there.
    """
    present = _on_loopback(network)
    width = address.max_prefixlen
    having = [entry for entry in present if entry.address == address]
    if prefix is None and len({entry.prefix for entry in having}) > 1:
        choices = " and ".join(f"/{entry.prefix}" for entry in having)
        return Judgement(
            address,
            width,
            "global",
            refusal=f"it is there more than once, as {choices}",
            hint="name the prefix length",
        )
    wanted = prefix if prefix is not None else having[0].prefix if having else width
    if (address, wanted) in OWN or (address, prefix) in {(own, None) for own, _ in OWN}:
        return Judgement(
            address,
            wanted,
            "host",
            refusal="without it this device has no loopback, and packets for it leave the device",
            hint="keep it; loopbox doctor says what else may be wrong",
        )
    found = next((entry for entry in having if entry.prefix == wanted), None)
    if found is None:
        return Judgement(address, wanted, "global", done=True)
    lost = _secondaries(found, present, network)
    if lost:
        names = ", ".join(f"{text_of(entry.address)}/{entry.prefix}" for entry in lost)
        return Judgement(
            address,
            wanted,
            found.scope,
            refusal=f"the kernel would delete its secondary addresses with it: {names}",
            hint="delete those first, or --force",
            forcible=True,
        )
    return Judgement(address, wanted, found.scope)


def _on_loopback(network: Network) -> tuple[InterfaceAddress, ...]:
    link = network.loopback
    return () if link is None else network.addresses_on(link)


def _unusable(address: Address) -> str | None:
    """Why `address` can be no interface's address, or None."""
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return "a zone has no place in an interface's own address"
        if address.ipv4_mapped is not None:
            return f"it is IPv4-mapped; the address meant is {address.ipv4_mapped}"
    if is_unspecified(address):
        return "it means no address at all"
    kind = registered(address).kind
    if kind == "multicast":
        return "multicast groups are joined, not assigned"
    if address == IPv4Address("255.255.255.255"):
        return "it is the broadcast address of every network"
    return None


def _warnings(
    address: Address,
    prefix: int,
    scope: str,
    network: Network,
    present: tuple[InterfaceAddress, ...],
) -> list[str]:
    """What the user should know before `address` is added."""
    said: list[str] = []
    block = registered(address)
    if block.kind in ("public", "anycast"):
        said.append(
            f"{text_of(address)} is public address space and belongs to somebody: this machine "
            "will no longer reach the real one"
        )
    if is_loopback(address):
        if address.version == 4:
            said.append("all of 127.0.0.0/8 is local on Linux already: nothing needs this alias")
        return said
    if address.version == 4:
        said.append(
            "neighbours can reach it: Linux answers ARP for every local address on every "
            "interface (arp_ignore=0)"
            if network.knob("ipv4/conf/all/arp_ignore", "0") == "0"
            else "routed packets from the LAN reach it (weak host model)"
        )
    else:
        said.append("hosts with a route to it through this machine reach it (weak host model)")
    if address.version == 6 and prefix < address.max_prefixlen:
        said.append(
            f"/{prefix} adds an on-link route over lo: the rest of that network is unreachable"
        )
    if scope == "global" and _is_unnumbered(network, address.version):
        said.append(
            "an interface that is up has no address of its own, so the kernel may use this one "
            "as source of what it sends; --scope host prevents that"
        )
    if any(entry.address == address for entry in present):
        said.append("the same address is there with another prefix length")
    return said


def _is_unnumbered(network: Network, version: int) -> bool:
    """Whether an interface is up without a global address while none other has one."""
    outside = [link for link in network.links if link.is_up and not link.is_loopback]
    numbered = {
        entry.index
        for entry in network.addresses
        if entry.address.version == version and entry.scope == "global"
    }
    return any(link.index not in numbered for link in outside)


def _secondaries(
    primary: InterfaceAddress, present: tuple[InterfaceAddress, ...], network: Network
) -> list[InterfaceAddress]:
    """Addresses the kernel deletes along with `primary` (promote_secondaries=0)."""
    link = network.loopback
    name = "lo" if link is None else link.name
    promoted = {
        network.knob(f"ipv4/conf/{where}/promote_secondaries", "0") for where in ("all", name)
    }
    if primary.address.version == 6 or primary.secondary or "1" in promoted:
        return []
    return [
        entry
        for entry in present
        if entry.secondary and entry.prefix == primary.prefix and entry.network == primary.network
    ]
