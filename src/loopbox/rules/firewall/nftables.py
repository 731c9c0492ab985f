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
from loopbox.rules.firewall.translations import AT_WILL, changed, translation
from loopbox.rules.firewall.values import addresses, bits, compared, number

_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50}
_PAYLOAD_FIELDS = {
    ("ip", "saddr"): "saddr",
    ("ip", "daddr"): "daddr",
    ("ip6", "saddr"): "saddr",
    ("ip6", "daddr"): "daddr",
    ("ip", "protocol"): "protocol",
    ("ip6", "nexthdr"): "next_header",
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
    "pkttype": "packet_type",
}
_ON_DEVICES = ("ingress", "egress")
_VERSIONS = {"ipv4": 4, "ipv6": 6, "ip": 4, "ip6": 6}
_FAMILY_WORDS = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}
_IGNORED = frozenset({"counter", "log", "comment", "nftrace", "flow", "dup"})
"""Statements that decide nothing at the hooks we look at."""
_LIMITS = frozenset({"limit", "ct count", "quota", "meter"})
"""Statements that hold now and then: whoever comes slowly, or first, is on the good side."""
_VERDICTS = frozenset({"accept", "drop", "return", "continue", "notrack"})
_FINAL = frozenset({"queue", "fwd", "synproxy", "xt"})
"""Statements nobody can evaluate that may end the packet's way here, or let it in."""
_WORDS = frozenset(
    {"iif", "oif", "iif_type", "state", "status", "daddr_type", "saddr_type", "packet_type"}
)
"""Fields that are compared with words."""
_IMPLIED = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136, "icmp": 1, "icmpv6": 58}
"""A payload match on one of these headers holds only for that protocol."""


def parse_ruleset(text: str) -> Ruleset:
    """The ruleset in nft's JSON. Raises ValueError when it is not that."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("nftables"), list):
        raise ValueError("not the output of nft -j list ruleset")
    entries = [entry for entry in document["nftables"] if isinstance(entry, dict)]
    changing = _changing(entries)
    sets = {
        _key(body): body.get("elem", [])
        for entry in entries
        for kind, body in entry.items()
        if kind in ("set", "map") and isinstance(body, dict) and _key(body) not in changing
    }
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for entry in entries:
        body = entry.get("rule")
        if isinstance(body, dict):
            place = (str(body.get("family")), str(body.get("table")), str(body.get("chain")))
            rules.setdefault(place, []).extend(_rule(body, sets))
    bodies = [entry["chain"] for entry in entries if isinstance(entry.get("chain"), dict)]
    return Ruleset(tuple(_chain(body, rules, on) for body in bodies for on in _devices(body)))


def _changing(entries: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """Sets that rules add to while packets pass: what stands in them now says little."""
    found: set[tuple[str, str, str]] = set()
    for entry in entries:
        body = entry.get("rule")
        if not isinstance(body, dict):
            continue
        for statement in body.get("expr", []):
            for kind in ("set", "map"):
                detail = statement.get(kind) if isinstance(statement, dict) else None
                if isinstance(detail, dict):
                    name = str(detail.get(kind, "")).removeprefix("@")
                    found.add((str(body.get("family")), str(body.get("table")), name))
    return found


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
    statements = body.get("expr", [])
    for place, statement in enumerate(statements):
        if not isinstance(statement, dict) or len(statement) != 1:
            matches.append(Match(UNKNOWN, text=str(statement)[:80]))
            continue
        ((kind, detail),) = statement.items()
        if kind == "match":
            matches += reader.match(detail)
        elif kind in _LIMITS:
            matches.append(Match(LIMITED, text=kind))
        elif kind in _IGNORED:
            continue
        elif kind == "xt" and isinstance(detail, dict) and detail.get("type") == "match":
            matches.append(Match(UNKNOWN, text=f"-m {detail.get('name')}"))
        else:
            action = reader.action(kind, detail)
            if action.kind == UNKNOWN and kind not in _FINAL and place + 1 < len(statements):
                # A quota, a meter, a count of connections: what follows happens, or not.
                matches.append(Match(UNKNOWN, text=action.text))
                continue
            matches += _implied_version(detail)
            rules.append(Rule(tuple(matches), action, text))
            if action.kind == UNKNOWN:
                matches.append(Match(UNKNOWN, text=action.text))
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
        operation = detail.get("op", "==")
        if field == LIMITED:
            return [*implied, Match(LIMITED, text=text)]
        values = self._values(field, detail.get("right"))
        if field == UNKNOWN or values is None:
            return [*implied, Match(UNKNOWN, text=text)]
        if field == "flags" and operation in ("in", "!"):  # any of these bits, or none
            tested = sum({value.low for value in values if isinstance(value, Range)})
            none = (Range(0, 0),)
            return [*implied, Match("flags", none, operation == "in", tested & mask, text)]
        if field in ("state", "status") and operation == "!":
            return [*implied, Match(field, values, negated=True, text=text)]
        if field == "status" and operation in ("==", "!="):
            # Compared as a whole: a status always has other bits beside the one named.
            return [*implied, Match(field, (), operation == "!=", text=text)]
        if operation in ("<", ">", "<=", ">="):
            values = compared(operation, values)
            if values is None:
                return [*implied, Match(UNKNOWN, text=text)]
        elif operation not in ("==", "in", "!="):
            return [*implied, Match(UNKNOWN, text=text)]
        return [*implied, Match(field, values, operation == "!=", mask, text)]

    def action(self, kind: str, detail: Any) -> Action:
        """A statement that decides."""
        text = kind if detail is None else f"{kind} {json.dumps(detail)}"[:120]
        if kind in _VERDICTS:
            return Action(kind, text=kind)
        if kind in ("snat", "masquerade"):
            return Action("accept", text=kind)  # ends the chain, like every translation
        if kind == "reject":
            return Action("reject", text=kind)
        if kind in ("jump", "goto") and isinstance(detail, dict):
            return Action(kind, chain=str(detail.get("target")), text=text)
        if kind in ("dnat", "redirect", "tproxy"):
            return translation(kind, detail, text, self._elements)
        if kind == "vmap" and isinstance(detail, dict):
            return self._map(detail, text)
        if kind == "mangle" and isinstance(detail, dict):
            return changed(detail, text)
        if kind in ("set", "map"):
            return Action("continue", text=text)
        return Action(UNKNOWN, text=text)

    def _map(self, detail: dict[str, Any], text: str) -> Action:
        field, implied, _mask = self._field(detail.get("key"))
        data = detail.get("data")
        entries = self._elements(data)
        if entries is None:
            return Action(UNKNOWN, text=text)
        ways: list[tuple[tuple[Value, ...], Action]] = []
        rest: list[tuple[tuple[Value, ...], Action]] = []
        for entry in entries:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)):
                return Action(UNKNOWN, text=text)
            ((kind, inner),) = list(entry[1].items())[:1] or [(UNKNOWN, None)]
            then = self.action(kind, inner)
            if entry[0] == "*":
                rest.append(((), then))  # whatever the other elements are not
                continue
            values = self._values(field, entry[0])
            # Where the key cannot be read, nobody can tell which way is taken.
            field = UNKNOWN if values is None else field
            ways.append((values or (), then))
        if rest:
            covered = tuple(value for values, _ in ways for value in values)
            ways += [(covered, then) for _, then in rest]
        found = Action("vmap", field=field, ways=tuple(ways), has_rest=bool(rest), text=text)
        protocols = implied[0].values if implied else ()
        if not protocols:
            return found
        # `tcp dport vmap` does not hold for udp: only then may a way be taken.
        return Action("vmap", field=implied[0].field, ways=((protocols, found),), text=text)

    def _field(self, left: Any) -> tuple[str, list[Match], int]:
        """(field, matches its header implies, mask) of the left side of a comparison."""
        if not isinstance(left, dict) or len(left) != 1:
            return UNKNOWN, [], 0
        ((kind, detail),) = left.items()
        if kind == "&" and isinstance(detail, list) and len(detail) == 2:
            field, implied, _ = self._field(detail[0])
            if field == "mark" and isinstance(detail[1], int):
                return field, implied, detail[1]
            some = bits(detail[1]) if field == "flags" else None
            return (UNKNOWN, implied, 0) if some is None else (field, implied, some.low)
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
            place = (header, str(detail.get("field")))
            field = LIMITED if place in AT_WILL else _PAYLOAD_FIELDS.get(place, UNKNOWN)
            return field, implied, 0xFF if field == "flags" else full
        if kind == "exthdr":
            return LIMITED, [], full  # an extension header the sender adds, or not
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
        if kind == "fib" and detail.get("result") == "oif":
            flags = set(detail.get("flags") or ())
            is_reverse = "saddr" in flags and flags <= {"saddr", "mark", "iif"}
            return ("way_back" if is_reverse and "iif" in flags else UNKNOWN), [], full
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
        if field == "flags" and isinstance(right, list):
            right = {"|": right}  # one value of several bits
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
            return addresses(element)
        if field in ("sport", "dport", "protocol", "next_header", "mark"):
            return number(element)
        if field == "version" and str(element) in _VERSIONS:
            return Range(_VERSIONS[str(element)], _VERSIONS[str(element)])
        if field == "flags":
            return bits(element)
        if field == "way_back" and isinstance(element, bool):
            return "straight" if element else "missing"
        if field in _WORDS:
            return element if isinstance(element, str) else None
        return None
