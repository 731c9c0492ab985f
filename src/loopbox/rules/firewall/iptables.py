"""Reading `iptables-save` and `ip6tables-save` (iptables(8), iptables-extensions(8)).

Owns: the options and targets that decide who reaches a listener. An option or target that is not
in the tables below makes its rule impossible to evaluate, never wrong.

Must never: run iptables, raise on odd lines.

Example::

    parse_saved(text, version=4).base("input", 4)
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from loopbox.rules.firewall.model import (
    LIMITED,
    UNKNOWN,
    Action,
    Address,
    Chain,
    Match,
    Range,
    Rule,
    Ruleset,
    Value,
)
from loopbox.rules.firewall.values import PROTOCOLS, TCP_FLAGS

_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_SILENT_MODULES = frozenset(
    {"tcp", "udp", "multiport", "conntrack", "state", "addrtype", "comment", "mark", "iprange",
     "limit", "set", "hashlimit", "icmp", "icmp6", "recent", "connlimit", "owner", "physdev",
     "pkttype", "rpfilter", "rt", "ttl", "hl", "tos", "dscp", "ecn", "hbh", "dst", "frag"}
)  # fmt: skip
"""Their names say nothing; their own options do."""
_AT_WILL = frozenset(
    {"--rt-type", "--rt-segsleft", "--rt-len", "--ttl-eq", "--ttl-lt", "--ttl-gt", "--hl-eq",
     "--hl-lt", "--hl-gt", "--tos", "--dscp", "--dscp-class", "--ecn-ip-ect", "--hbh-len",
     "--dst-len", "--fragid", "--fraglen", "--fragfirst", "--fraglast", "--fragmore"}
)  # fmt: skip
"""Options about what a sender sets as it likes."""
_REVERSE_PATH = frozenset({"--loose", "--validmark", "--accept-local", "--invert"})
"""Options of -m rpfilter."""
_RECENT = frozenset(
    {"--set", "--update", "--rcheck", "--remove", "--seconds", "--reap", "--hitcount", "--rttl",
     "--name", "--mask", "--rsource", "--rdest"}
)  # fmt: skip
"""Options of -m recent."""
_NOW_AND_THEN = ("--hashlimit", "--connlimit")
"""What options of limits by sender begin with."""


def parse_saved(text: str, *, version: int) -> Ruleset:
    """The ruleset of one IP version."""
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table = "filter"
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            chain = _chain(line, table, version)
            chains[table, chain.name] = chain
        elif line.startswith("-A "):
            name, rule = _rule(line, table, version)
            rules.setdefault((table, name), []).append(rule)
    return Ruleset(
        tuple(replace(chain, rules=tuple(rules.get(key, ()))) for key, chain in chains.items())
    )


def _chain(line: str, table: str, version: int) -> Chain:
    name, _, policy = line[1:].partition(" ")
    policy = policy.split(" ")[0].lower()
    hook = _HOOKS.get(name)
    return Chain(
        family="ip" if version == 4 else "ip6",
        table=table,
        name=name,
        hook=hook,
        priority=100 if (table, hook) == ("nat", "input") else _PRIORITIES.get(table, 0),
        policy=policy if policy in ("accept", "drop") else "accept",
        nat=table == "nat",
    )


def _rule(line: str, table: str, version: int) -> tuple[str, Rule]:
    """(chain, rule) of one -A line."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    name = words[1] if len(words) > 1 else ""
    text = f"iptables rule `-t {table} {line[:120]}`"
    matches: list[Match] = []
    target, options = "", {}
    rest = words[2:]
    while rest:
        negated = rest[0] == "!"
        if negated:
            rest = rest[1:]
        option, values = _taken(rest)
        rest = rest[1 + len(values) :]
        if option in ("-j", "-g"):
            target = values[0] if values else ""
            options = _options(rest)
            if option == "-g":
                options["goto"] = "1"
            break
        if option == "-m":
            if values == ["rpfilter"]:
                matches.append(_way_back(words))
            elif values == ["recent"]:
                matches += _recent(words)
            elif values and values[0] not in _SILENT_MODULES:
                matches.append(Match(UNKNOWN, text=f"-m {values[0]}"))
        elif option not in _REVERSE_PATH | _RECENT:
            matches += _match(option, values, negated=negated, version=version)
    return name, Rule(tuple(matches), _action(target, options), text)


def _taken(words: list[str]) -> tuple[str, list[str]]:
    """An option and its arguments: everything up to the next option or `!`."""
    option, values = words[0] if words else "", []
    for word in words[1:]:
        if word == "!" or (word.startswith("-") and len(word) > 1):
            break
        values.append(word)
        if option == "--comment":
            break
    return option, values


def _options(words: list[str]) -> dict[str, str]:
    """A target's options."""
    found: dict[str, str] = {}
    while words:
        option, values = _taken(words)
        found[option] = " ".join(values)
        words = words[1 + len(values) :]
    return found


def _match(option: str, values: list[str], *, negated: bool, version: int) -> list[Match]:
    text = f"{'! ' if negated else ''}{option} {' '.join(values)}"
    if option == "--comment":
        return []
    if option == "--limit-burst":
        return []
    if option == "--limit" or option in _AT_WILL or option.startswith(_NOW_AND_THEN):
        return [Match(LIMITED, text=text)]
    if option == "--tcp-flags":
        return [_flags(values, negated=negated, text=text)]
    reader = _READERS.get(option)
    if option == "--ctstate" and values and "DNAT" in values[0].split(","):
        return _with_dnat(values[0].split(","), negated=negated, text=text)
    if reader is None or not values or "SNAT" in values[0]:
        return [Match(UNKNOWN, text=text)]  # --ctstate SNAT is a status, not a state
    field, read = reader
    if field == "mark":
        value, _, mask = values[0].partition("/")
        number = _number(value)
        wide = _number(mask) if mask else Range(0xFFFFFFFF, 0xFFFFFFFF)
        if number is None or wide is None:
            return [Match(UNKNOWN, text=text)]
        return [Match("mark", (number,), negated, wide.low, text)]
    if values == ["all"] and field == "protocol":
        return []
    found = [read(word) for word in values[0].split(",")]
    if None in found:
        return [Match(UNKNOWN, text=text)]
    known = tuple(value for value in found if value is not None)
    if field in ("saddr", "daddr"):
        known = tuple(v for v in known if isinstance(v, Range) and v.version == version)
    return [Match(field, known, negated, text=text)]


def _flags(values: list[str], *, negated: bool, text: str) -> Match:
    """--tcp-flags MASK FLAGS."""
    sums = []
    for words in (word.split(",") for word in values):
        bits = [0 if word == "NONE" else TCP_FLAGS.get(word.lower()) for word in words]
        sums.append(None if None in bits else sum({bit for bit in bits if bit}))
    if len(sums) != 2 or sums[0] is None or sums[1] is None:
        return Match(UNKNOWN, text=text)
    return Match("flags", (Range(sums[1], sums[1]),), negated, sums[0], text)


def _way_back(words: list[str]) -> Match:
    """-m rpfilter: true of packets whose answers leave by the way they came; --loose by any."""
    is_inverted = "--invert" in words
    if "--loose" in words:
        return Match("version", (Range(4, 6),), is_inverted, text="-m rpfilter --loose")
    return Match("way_back", ("straight",), is_inverted, text="-m rpfilter")


def _recent(words: list[str]) -> list[Match]:
    """-m recent: notes who came (--set), or tells how often (--hitcount): a limit on senders.

    Without a count it is a list that others may fill, which nobody can tell from here.
    """
    if "--set" in words:
        return []
    return [Match(LIMITED if "--hitcount" in words else UNKNOWN, text="-m recent")]


def _with_dnat(words: list[str], *, negated: bool, text: str) -> list[Match]:
    """--ctstate with DNAT, which is a status beside the state: none of all, or DNAT alone."""
    states = tuple(word.lower() for word in words if word != "DNAT")
    status = Match("status", ("dnat",), negated, text=text)
    if not states:
        return [status]
    if not negated or "snat" in states:
        return [Match(UNKNOWN, text=text)]
    return [Match("state", states, negated, text=text), status]


def _interface(word: str) -> Value:
    return word[:-1] + "*" if word.endswith("+") else word


def _network(word: str) -> Value | None:
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        return None
    return Range(int(network[0]), int(network[-1]), network.version)


def _between(word: str) -> Value | None:
    low, _, high = word.partition("-")
    ends = _address(low), _address(high)
    if ends[0] is None or ends[1] is None or ends[0].version != ends[1].version:
        return None
    return Range(int(ends[0]), int(ends[1]), ends[0].version)


def _ports(word: str) -> Value | None:
    low, colon, high = word.partition(":")
    if not colon:
        return _number(low)
    bottom, top = _number(low or "0"), _number(high or "65535")
    return None if bottom is None or top is None else Range(bottom.low, top.high)


def _number(word: str) -> Range | None:
    try:
        number = PROTOCOLS[word] if word in PROTOCOLS else int(word, 0)
    except ValueError:
        return None
    return Range(number, number)


def _word(word: str) -> Value:
    return word.lower()


def _packet_type(word: str) -> Value:
    return "host" if word == "unicast" else word


def _address(word: str) -> Address | None:
    try:
        return ip_address(word.strip("[]"))
    except ValueError:
        return None


_READERS: dict[str, tuple[str, Callable[[str], Value | None]]] = {
    "-i": ("iif", _interface),
    "-o": ("oif", _interface),
    "-s": ("saddr", _network),
    "-d": ("daddr", _network),
    "-p": ("protocol", _number),
    "--dport": ("dport", _ports),
    "--sport": ("sport", _ports),
    "--dports": ("dport", _ports),
    "--sports": ("sport", _ports),
    "--src-range": ("saddr", _between),
    "--dst-range": ("daddr", _between),
    "--state": ("state", _word),
    "--ctstate": ("state", _word),
    "--dst-type": ("daddr_type", _word),
    "--src-type": ("saddr_type", _word),
    "--mark": ("mark", _number),
    "--pkt-type": ("packet_type", _packet_type),
}
"""Option to the field it compares and how its argument is read."""


_DECIDES_NOTHING = frozenset(
    {"", "LOG", "NFLOG", "AUDIT", "TRACE", "CHECKSUM", "TCPMSS", "CLASSIFY", "DSCP", "TOS", "TTL",
     "HL", "ECN", "SECMARK", "CONNSECMARK", "LED", "IDLETIMER", "SET", "TEE"}
)  # fmt: skip


def _action(target: str, options: dict[str, str]) -> Action:
    text = f"-j {target}"
    match target:
        case "ACCEPT" | "DROP" | "RETURN" | "REJECT":
            return Action(target.lower(), text=text)
        case "NOTRACK":
            return Action("notrack", text=text)
        case "CT":
            return Action("notrack" if "--notrack" in options else "continue", text=text)
        case _ if target in _DECIDES_NOTHING:
            return Action("continue", text=text)
        case "MARK" | "CONNMARK":
            return Action("mark", text=text)
        case "MASQUERADE" | "SNAT":
            return Action("accept", text=text)
        case "DNAT":
            return _translation("dnat", options.get("--to-destination", ""), text)
        case "REDIRECT":
            return _translation("redirect", ":" + options.get("--to-ports", ""), text)
        case "TPROXY":
            place = f"{options.get('--on-ip', '')}:{options.get('--on-port', '')}"
            return _translation("tproxy", place, text)
        case _ if target.isupper() and set(options) - {"goto"}:
            return Action(UNKNOWN, text=text)  # an extension's target, with options of its own
    return Action("goto" if "goto" in options else "jump", chain=target, text=text)


def _translation(kind: str, place: str, text: str) -> Action:
    """ADDRESS, ADDRESS:PORT, :PORT or :LOW-HIGH."""
    host, colon, port = place.rpartition(":")
    if not colon or (place.count(":") > 1 and not place.startswith("[")):
        host, port = place, ""
    address = _address(host) if host else None
    ports = _ports(port.replace("-", ":")) if port else None
    if (host and address is None) or (port and not isinstance(ports, Range)):
        return Action(UNKNOWN, text=f"{text} {place}")
    return Action(
        kind, address=address, port=ports if isinstance(ports, Range) else None, text=text
    )
