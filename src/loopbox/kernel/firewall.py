"""Reading the packet filter of the calling thread's network namespace.

Owns: asking nft and iptables-save for what stands, and saying what could not be read. Where
nftables holds iptables rules whose details its JSON leaves out, iptables-save tells them.

Must never: change a rule; call a filter empty that it could not read.

Example::

    seen = read_firewall()
    seen.ruleset.chains, seen.is_complete
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loopbox.kernel import nft
from loopbox.kernel.netlink import KernelError, open_netlink
from loopbox.rules.firewall.iptables import parse_saved
from loopbox.rules.firewall.model import UNKNOWN, Chain, Ruleset
from loopbox.rules.firewall.nftables import has_extensions, parse_ruleset
from loopbox.wire.netlink import build_message, parse_attributes, parse_messages, text_of

_NETLINK_NETFILTER = 12
_GET_TABLES = 10 << 8 | 1
_GET_CHAINS = 10 << 8 | 4
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_REQUEST_DUMP = 0x301
_NLMSG_DONE = 3
_SECONDS = 5.0
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class SeenFirewall:
    """What was read."""

    ruleset: Ruleset
    is_complete: bool = True
    """False when there may be rules we were not allowed to see."""
    problem: str | None = None
    """Why not, for evidence."""


def read_firewall(*, ours_counts: bool = True) -> SeenFirewall:
    """Everything nftables and iptables hold here.

    With `ours_counts` false a namespace that has nothing but loopbox's own table is taken as
    without rules, and no program is started: that table only refuses what the kernel refuses too.
    """
    try:
        tables = _tables()
    except PermissionError:
        return SeenFirewall(Ruleset(), is_complete=False, problem="reading it takes root")
    except (OSError, KernelError):
        tables = []  # a kernel without nftables; iptables-legacy is asked all the same
    ours = {(1, nft.TABLE)}
    legacy = _legacy()
    if not {table[:2] for table in tables} - (set() if ours_counts else ours):
        return SeenFirewall(legacy)
    text = _output(["nft", "-j", "list", "ruleset"])
    if text is None:
        gap = "nftables rules stand, but the program nft is missing or failed"
        return SeenFirewall(replace(legacy, gaps=(gap,)), problem=gap)
    try:
        ruleset = parse_ruleset(text)
    except ValueError as error:
        gap = f"what nft printed cannot be read ({error})"
        return SeenFirewall(replace(legacy, gaps=(gap,)), problem=gap)
    asleep = {(_FAMILIES.get(family, ""), name) for family, name, flags in tables if flags & 1}
    awake = tuple(one for one in ruleset.chains if (one.family, one.table) not in asleep)
    ruleset = replace(ruleset, chains=awake)  # a dormant table's chains see nothing
    if any(chain.device == UNKNOWN for chain in ruleset.chains):
        ruleset = ruleset.hung_on(_devices())
    if has_extensions(text):
        ruleset = _with_iptables(ruleset)
    return SeenFirewall(ruleset.joined(legacy))


def _with_iptables(ruleset: Ruleset) -> Ruleset:
    """The ruleset with iptables' own tables as iptables-save tells them."""
    for version, family, program in (
        (4, "ip", "iptables-nft-save"),
        (6, "ip6", "ip6tables-nft-save"),
    ):
        text = _output([program])
        if text is None:
            continue  # the extensions stay impossible to evaluate
        told = parse_saved(text, version=version)
        ruleset = replace(ruleset, chains=with_saved(ruleset, told, family))
    return ruleset


def with_saved(ruleset: Ruleset, told: Ruleset, family: str) -> tuple[Chain, ...]:
    """The chains of `ruleset` with the rules of `family` as iptables-save tells them.

    Base chains that others put into iptables' tables are not iptables' to tell: it leaves them out,
    or prints them as if nothing led there. They stay as nft tells them.
    """
    rules = {chain.key: chain for chain in told.chains}
    kept = []
    for chain in ruleset.chains:
        other = rules.pop(chain.key, None) if chain.family == family else None
        is_same = other is not None and (chain.hook is None) == (other.hook is None)
        kept.append(replace(chain, rules=other.rules) if other is not None and is_same else chain)
    return (*kept, *rules.values())


def _legacy() -> Ruleset:
    """The rules of iptables-legacy, which nftables knows nothing of."""
    ruleset = Ruleset()
    for version, listing, program in (
        (4, "/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
        (6, "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
    ):
        try:
            with open(listing) as file:
                if not file.read().strip():
                    continue
        except OSError:
            continue
        text = _output([program])
        if text is None:
            gap = f"iptables-legacy rules stand, but {program} is missing or failed"
            ruleset = ruleset.joined(Ruleset(gaps=(gap,)))
        else:
            ruleset = ruleset.joined(parse_saved(text, version=version))
    return ruleset


def _tables() -> list[tuple[int, str, int]]:
    """(family number, name, flags) of every nftables table; PermissionError without privilege.

    Flag 1 is NFT_TABLE_F_DORMANT, which the JSON of nft 1.0.6 misspells.
    """
    found = []
    for payload in _dumped(_GET_TABLES):
        body = parse_attributes(payload[4:])
        flags = int.from_bytes(body.get(2, b"")[:4], "big")
        found.append((payload[0], text_of(body.get(1, b"")), flags))
    return found


def _devices() -> dict[tuple[str, str, str], tuple[str, ...]]:
    """(family, table, chain) to the interfaces its hook hangs on, which nft's JSON leaves out."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = {}
    try:
        for payload in _dumped(_GET_CHAINS):
            chain = parse_attributes(payload[4:])
            hook = parse_attributes(chain.get(4, b""))
            names = [hook[3]] if 3 in hook else []
            names += device_names(hook.get(4, b""))
            key = (_FAMILIES.get(payload[0], ""), text_of(chain.get(1, b"")))
            if names:
                found[*key, text_of(chain.get(3, b""))] = tuple(map(text_of, names))
    except OSError:
        return {}  # they stay unknown
    return found


def device_names(nested: bytes) -> list[bytes]:
    """NFTA_HOOK_DEVS: one attribute for each interface, or for a prefix of names (Linux 6.16)."""
    names: list[bytes] = []
    offset = 0
    while offset + 4 <= len(nested):
        length, kind = struct.unpack_from("=HH", nested, offset)
        if length < 4 or offset + length > len(nested):
            break
        value = nested[offset + 4 : offset + length]
        names.append(value.rstrip(b"\0") + b"*" if kind & 0x3FFF == 2 else value)
        offset += (length + 3) & ~3
    return names


def _dumped(kind: int) -> Iterator[bytes]:
    """The payloads of one nf_tables dump."""
    with open_netlink(_NETLINK_NETFILTER) as netlink:
        payload = struct.pack(">BBH", socket.AF_UNSPEC, 0, 0)
        netlink.send(build_message(kind, _REQUEST_DUMP, 1, payload))
        while True:
            for message in parse_messages(netlink.recv(1 << 18)):
                if message.error is not None:
                    number = message.error[0]
                    raise OSError(number, os.strerror(number))
                if message.kind == _NLMSG_DONE:
                    return
                yield message.payload


def _output(argv: list[str]) -> str | None:
    """What a system program prints; None when it is missing, fails, or takes too long."""
    program = shutil.which(argv[0], path=_SYSTEM_PATH)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            env={"PATH": _SYSTEM_PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
