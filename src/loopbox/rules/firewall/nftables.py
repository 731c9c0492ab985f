"""Reading `nft -j list ruleset` (libnftables-json(5)) into the model.

Owns: the JSON schema's matches and statements, named and anonymous sets, verdict maps. What is
not known, or is only named there (iptables' `xt` extensions), becomes a match or an action that
cannot be evaluated.

Must never: run nft, raise on odd rules. Text that is no JSON at all is a ValueError.

Example::

    parse_ruleset('{"nftables": [...]}').chains
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from loopbox.rules.firewall.model import (
    LIMITED,
    UNKNOWN,
    Action,
    Chain,
    Match,
    Range,
    Rule,
    Ruleset,
    Value,
)

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51,
    "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132, "udplite": 136, "vrrp": 112, "ospf": 89,
}  # fmt: skip
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50}
_SERVICES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "http": 80, "pop3": 110,
    "ntp": 123, "imap2": 143, "snmp": 161, "https": 443, "http-alt": 8080, "mysql": 3306,
    "postgresql": 5432, "bootps": 67, "bootpc": 68, "mdns": 5353,
}  # fmt: skip

_PAYLOAD_FIELDS = {
    ("ip", "saddr"): "saddr",
    ("ip", "daddr"): "daddr",
    ("ip6", "saddr"): "saddr",
    ("ip6", "daddr"): "daddr",
    ("ip", "protocol"): "protocol",
    ("ip6", "nexthdr"): "protocol",
    ("tcp", "flags"): "flags",
    **{(name, port): port for name in ("tcp", "udp", "th") for port in ("sport", "dport")},
    **{(name, port): port for name in ("sctp", "dccp", "udplite") for port in ("sport", "dport")},
}
_META_FIELDS = {
    "iif": "iif",
    "iifname": "iif",
    "oif": "oif",
    "oifname": "oif",
    "iiftype": "iif_type",
    "l4proto": "protocol",
    "nfproto": "version",
    "protocol": "version",
    "mark": "mark",
}
_ON_DEVICES = ("ingress", "egress")
_VERSIONS = {"ipv4": 4, "ipv6": 6, "ip": 4, "ip6": 6}
_FAMILY_WORDS = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}
_IGNORED = frozenset(
    {"counter", "log", "comment", "nftrace", "masquerade", "snat", "flow", "notrack"}
)
"""Statements that decide nothing at the hooks we look at."""
_VERDICTS = frozenset({"accept", "drop", "return", "continue"})
_IMPLIED = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136, "icmp": 1, "icmpv6": 58}
"""A payload match on one of these headers holds only for that protocol."""


def parse_ruleset(text: str) -> Ruleset:
    """The ruleset in nft's JSON. Raises ValueError when it is not that."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("nftables"), list):
        raise ValueError("not the output of nft -j list ruleset")
    entries = [entry for entry in document["nftables"] if isinstance(entry, dict)]
    sets = {
        _key(body): body.get("elem", [])
        for entry in entries
        for kind, body in entry.items()
        if kind in ("set", "map") and isinstance(body, dict)
    }
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for entry in entries:
        body = entry.get("rule")
        if isinstance(body, dict):
            place = (str(body.get("family")), str(body.get("table")), str(body.get("chain")))
            rules.setdefault(place, []).extend(_rule(body, sets))
    bodies = [entry["chain"] for entry in entries if isinstance(entry.get("chain"), dict)]
    return Ruleset(tuple(_chain(body, rules, on) for body in bodies for on in _devices(body)))


def has_extensions(text: str) -> bool:
    """Whether iptables rules are in it whose details only iptables-save tells."""
    return '"xt"' in text


def _key(body: dict[str, Any]) -> tuple[str, str, str]:
    return str(body.get("family")), str(body.get("table")), str(body.get("name"))


def _devices(body: dict[str, Any]) -> list[str | None]:
    """Where a chain hangs: an interface each; nft 1.0.6 tells nothing of several (`?`)."""
    told = body.get("dev")
    names = told if isinstance(told, list) else [told] if isinstance(told, str) else []
    return list(map(str, names)) or [UNKNOWN if body.get("hook") in _ON_DEVICES else None]


def _chain(
    body: dict[str, Any], rules: dict[tuple[str, str, str], list[Rule]], device: str | None
) -> Chain:
    priority = body.get("prio", 0)
    hook = body.get("hook")
    return Chain(
        family=str(body.get("family")),
        table=str(body.get("table")),
        name=str(body.get("name")),
        rules=tuple(rules.get(_key(body), ())),
        hook=None if hook is None else str(hook),
        priority=priority if isinstance(priority, int) else _PRIORITIES.get(str(priority), 0),
        policy=str(body.get("policy", "accept")),
        nat=body.get("type") == "nat",
        device=device,
    )


def _rule(body: dict[str, Any], sets: dict[tuple[str, str, str], Any]) -> list[Rule]:
    """One rule; several where it acts several times (mark set, then accept)."""
    family, table = str(body.get("family")), str(body.get("table"))
    text = f"rule {table} {body.get('chain')} handle {body.get('handle')}"
    reader = _Reader(family, table, sets)
    matches: list[Match] = []
    rules: list[Rule] = []
    for statement in body.get("expr", []):
        if not isinstance(statement, dict) or len(statement) != 1:
            matches.append(Match(UNKNOWN, text=str(statement)[:80]))
            continue
        ((kind, detail),) = statement.items()
        if kind == "match":
            matches += reader.match(detail)
        elif kind == "limit":
            over = isinstance(detail, dict) and bool(detail.get("inv"))
            matches.append(Match(LIMITED, negated=over, text="limit"))
        elif kind in _IGNORED:
            continue
        elif kind == "xt" and isinstance(detail, dict) and detail.get("type") == "match":
            matches.append(Match(UNKNOWN, text=f"-m {detail.get('name')}"))
        else:
            action = reader.action(kind, detail)
            matches += _implied_version(detail)
            if action is not None:
                rules.append(Rule(tuple(matches), action, text))
    return rules


def _implied_version(detail: Any) -> list[Match]:
    """The `meta nfproto` that nft leaves out because the statement implies it.

    `dnat ip to` and `reject with icmpv6` in an inet table see packets of their family only.
    """
    if not isinstance(detail, dict):
        return []
    words = (str(detail.get("family")), str(detail.get("type")))
    version = next((_FAMILY_WORDS[word] for word in words if word in _FAMILY_WORDS), None)
    return [] if version is None else [Match("version", (Range(version, version),), text=words[0])]


class _Reader:
    """Reads expressions with the sets of one table at hand."""

    def __init__(self, family: str, table: str, sets: dict[tuple[str, str, str], Any]) -> None:
        self._family = family
        self._table = table
        self._sets = sets

    def match(self, detail: Any) -> list[Match]:
        """A match statement, with the protocol its header implies."""
        text = json.dumps(detail, separators=(",", ":"))[:120]
        if not isinstance(detail, dict):
            return [Match(UNKNOWN, text=text)]
        field, implied, mask = self._field(detail.get("left"))
        values = self._values(field, detail.get("right"))
        if field == UNKNOWN or values is None:
            return [*implied, Match(UNKNOWN, text=text)]
        if field == "flags" and values != ("syn",):
            # Only `flags & (fin|syn|rst|ack) == syn` and its kin say something of a first packet.
            return [*implied, Match(UNKNOWN, text=text)]
        operation = detail.get("op", "==")
        if operation in ("<", ">", "<=", ">="):
            values = _compared(operation, values)
            if values is None:
                return [*implied, Match(UNKNOWN, text=text)]
        elif operation not in ("==", "in", "!="):
            return [*implied, Match(UNKNOWN, text=text)]
        return [*implied, Match(field, values, operation == "!=", mask, text)]

    def action(self, kind: str, detail: Any) -> Action | None:
        """A statement that decides; None for one that does not."""
        text = kind if detail is None else f"{kind} {json.dumps(detail)}"[:120]
        if kind in _VERDICTS:
            return Action(kind, text=kind)
        if kind == "reject":
            return Action("reject", text=kind)
        if kind in ("jump", "goto") and isinstance(detail, dict):
            return Action(kind, chain=str(detail.get("target")), text=text)
        if kind in ("dnat", "redirect", "tproxy"):
            return self._translation(kind, detail, text)
        if kind == "vmap" and isinstance(detail, dict):
            return self._map(detail, text)
        if kind == "mangle":
            target = detail.get("key") if isinstance(detail, dict) else None
            if target == {"meta": {"key": "mark"}}:
                return Action("mark", text=text)
            return Action("continue", text=text)
        return Action(UNKNOWN, text=text)

    def _translation(self, kind: str, detail: Any, text: str) -> Action:
        fields = detail if isinstance(detail, dict) else {}
        address = fields.get("addr")
        port = _number(fields.get("port"))
        known = set(fields) <= {"addr", "port", "family", "flags"}
        parsed = _address(address)
        if not known or (address is not None and parsed is None):
            return Action(UNKNOWN, text=text)
        if fields.get("port") is not None and port is None:
            return Action(UNKNOWN, text=text)
        return Action(kind, address=parsed, port=port, text=text)

    def _map(self, detail: dict[str, Any], text: str) -> Action:
        field, implied, _mask = self._field(detail.get("key"))
        data = detail.get("data")
        entries = self._elements(data)
        ways: list[tuple[tuple[Value, ...], Action]] = []
        for entry in entries if entries is not None else []:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)):
                return Action(UNKNOWN, text=text)
            values = self._values(field, entry[0])
            ((kind, inner),) = list(entry[1].items())[:1] or [("?", None)]
            then = self.action(kind, inner)
            if values is None or then is None or field == UNKNOWN:
                return Action(UNKNOWN, text=text)
            ways.append((values, then))
        if entries is None:
            return Action(UNKNOWN, text=text)
        protocols = implied[0].values if implied else ()
        if protocols:  # `tcp dport vmap` does not hold for udp: only then may a way be taken
            inner_map = Action("vmap", field=field, ways=tuple(ways), text=text)
            return Action("vmap", field="protocol", ways=((protocols, inner_map),), text=text)
        return Action("vmap", field=field, ways=tuple(ways), text=text)

    def _field(self, left: Any) -> tuple[str, list[Match], int]:
        """(field, matches its header implies, mask) of the left side of a comparison."""
        if not isinstance(left, dict) or len(left) != 1:
            return UNKNOWN, [], 0
        ((kind, detail),) = left.items()
        if kind == "&" and isinstance(detail, list) and len(detail) == 2:
            field, implied, _ = self._field(detail[0])
            if field == "mark" and isinstance(detail[1], int):
                return field, implied, detail[1]
            return (field if field == "flags" else UNKNOWN), implied, 0
        if not isinstance(detail, dict):
            return UNKNOWN, [], 0
        full = 0xFFFFFFFF
        if kind == "meta":
            return _META_FIELDS.get(str(detail.get("key")), UNKNOWN), [], full
        if kind == "payload":
            header = str(detail.get("protocol"))
            implied = []
            if header in _IMPLIED:
                number = _IMPLIED[header]
                implied = [Match("protocol", (Range(number, number),), text=header)]
            elif header in ("ip", "ip6"):
                version = 4 if header == "ip" else 6
                implied = [Match("version", (Range(version, version),), text=header)]
            return _PAYLOAD_FIELDS.get((header, str(detail.get("field"))), UNKNOWN), implied, full
        if kind == "ct":
            known = {"state": "state", "status": "status"}
            return known.get(str(detail.get("key")), UNKNOWN), [], full
        if kind == "fib" and detail.get("result") == "type":
            return (
                {("daddr",): "daddr_type", ("saddr",): "saddr_type"}.get(
                    tuple(detail.get("flags") or ()), UNKNOWN
                ),
                [],
                full,
            )
        return UNKNOWN, [], 0

    def _elements(self, right: Any) -> list[Any] | None:
        """The members of an anonymous or named set; None when there is no such set."""
        if isinstance(right, str) and right.startswith("@"):
            found = self._sets.get((self._family, self._table, right[1:]))
            return found if isinstance(found, list) else None
        if isinstance(right, dict) and isinstance(right.get("set"), list):
            return list(right["set"])
        return None

    def _values(self, field: str, right: Any) -> tuple[Value, ...] | None:
        """What a field is compared with; None when that cannot be read."""
        elements = self._elements(right)
        if elements is None:
            if isinstance(right, str) and right.startswith("@"):
                return None
            elements = right if isinstance(right, list) else [right]
        found = [self._value(field, element) for element in elements]
        return None if None in found else tuple(value for value in found if value is not None)

    def _value(self, field: str, element: Any) -> Value | None:
        if isinstance(element, dict) and isinstance(element.get("elem"), dict):
            element = element["elem"].get("val")  # with a timeout, counter or comment
        if field in ("saddr", "daddr"):
            return _addresses(element)
        if field in ("sport", "dport", "protocol", "mark"):
            return _number(element)
        if field == "version" and str(element) in _VERSIONS:
            return Range(_VERSIONS[str(element)], _VERSIONS[str(element)])
        if field in (
            "iif",
            "oif",
            "iif_type",
            "state",
            "status",
            "daddr_type",
            "saddr_type",
            "flags",
        ):
            return element if isinstance(element, str) else None
        return None


def _compared(operation: str, values: tuple[Value, ...]) -> tuple[Value, ...] | None:
    if len(values) != 1 or not isinstance(values[0], Range):
        return None
    bound = values[0]
    top = (1 << (32 if bound.version == 4 else 128 if bound.version == 6 else 32)) - 1
    low, high = {
        "<": (0, bound.low - 1),
        "<=": (0, bound.high),
        ">": (bound.high + 1, top),
        ">=": (bound.low, top),
    }[operation]
    return (Range(low, high, bound.version),)


def _number(element: Any) -> Range | None:
    """A port, protocol or mark: a number, a known word, or a range of them."""
    if isinstance(element, bool):
        return None
    if isinstance(element, int):
        return Range(element, element)
    if isinstance(element, str):
        number = PROTOCOLS.get(element, _SERVICES.get(element))
        return None if number is None else Range(number, number)
    if isinstance(element, dict) and isinstance(element.get("range"), list):
        ends = [_number(end) for end in element["range"]]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            return Range(ends[0].low, ends[1].high)
    return None


def _addresses(element: Any) -> Range | None:
    """An address, a prefix, or a range of addresses."""
    if isinstance(element, dict):
        prefix, ends = element.get("prefix"), element.get("range")
        if isinstance(prefix, dict):
            try:
                network = ip_network(
                    (str(prefix.get("addr")), int(prefix.get("len", -1))), strict=False
                )
            except (ValueError, TypeError):
                return None
            return Range(int(network[0]), int(network[-1]), network.version)
        if isinstance(ends, list) and len(ends) == 2:
            low, high = _address(ends[0]), _address(ends[1])
            if low is not None and high is not None and low.version == high.version:
                return Range(int(low), int(high), low.version)
        return None
    address = _address(element)
    return None if address is None else Range(int(address), int(address), address.version)


def _address(element: Any) -> IPv4Address | IPv6Address | None:
    if not isinstance(element, str):
        return None
    try:
        return ip_address(element)
    except ValueError:
        return None
