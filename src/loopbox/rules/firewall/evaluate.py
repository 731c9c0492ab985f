"""Every outcome a packet can have at a hook of a ruleset.

Owns: walking chains. A match that cannot be evaluated is followed both ways and makes what comes
of it unsure; a rate limit is followed both ways too, but what comes of it does happen.

Must never: touch the system; decide what an outcome means for a listener (rules/audit does).

Example::

    {outcome.verdict for outcome in outcomes(ruleset, "input", packet, kinds)}      # {"drop"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from loopbox.rules.firewall.model import (
    LIMITED,
    UNKNOWN,
    Action,
    Address,
    Chain,
    Match,
    Outcome,
    Packet,
    Range,
    Rule,
    Ruleset,
    Value,
)

AddressKind = Callable[[Address], str]
"""The route type of an address in this namespace: local, broadcast, multicast or unicast."""

_DEPTH = 16  # the kernel's own limit of nested jumps (NFT_JUMP_STACK_SIZE)
_MOST = 256


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a walk stands: a verdict, or None to carry on with the next rule."""

    verdict: str | None
    packet: Packet
    sure: bool = True
    because: str = ""


def outcomes(
    ruleset: Ruleset, hook: str, packet: Packet, kind_of: AddressKind
) -> tuple[Outcome, ...]:
    """All that can happen to `packet` at `hook` (prerouting, input, forward, output ...)."""
    walker = _Walker(ruleset, kind_of)
    passing = [Outcome("accept", packet, not ruleset.gaps, "; ".join(ruleset.gaps))]
    ended: list[Outcome] = []
    for chain in ruleset.base(hook, packet.version):
        if chain.device not in (None, UNKNOWN) and not _holds(
            chain.device, packet.iif or packet.oif, packet.version
        ):
            continue
        if chain.nat and packet.state == "established":
            continue  # translations see a connection's first packet only
        following: list[Outcome] = []
        for before in passing:
            for step in walker.walk(chain, before.packet, _DEPTH):
                outcome = Outcome(
                    _base_verdict(step, chain),
                    step.packet,
                    before.sure and step.sure,
                    step.because or before.because or _policy_text(step, chain),
                )
                (following if outcome.verdict == "accept" else ended).append(outcome)
        if chain.device == UNKNOWN and any(outcome.verdict != "accept" for outcome in ended):
            why = f"cannot tell on which interfaces chain {chain.table} {chain.name} hangs"
            ended = [replace(outcome, sure=False, because=why) for outcome in ended]
            following += [replace(one, sure=False, because=why) for one in passing]
        passing = list(dict.fromkeys(following))[:_MOST]
    if len(ended) + len(passing) >= _MOST:
        return (Outcome("accept", packet, sure=False, because="too many rules hang together"),)
    return tuple(dict.fromkeys([*passing, *ended]))


def _base_verdict(step: _Step, chain: Chain) -> str:
    verdict = step.verdict or "return"
    return chain.policy if verdict == "return" else verdict


def _policy_text(step: _Step, chain: Chain) -> str:
    if step.verdict in (None, "return") and chain.policy != "accept":
        return f"policy {chain.policy} of chain {chain.table} {chain.name}"
    return ""


class _Walker:
    """Walks the chains of one ruleset in one namespace."""

    def __init__(self, ruleset: Ruleset, kind_of: AddressKind) -> None:
        self._chains = {chain.key: chain for chain in ruleset.chains}
        self._kind_of = kind_of

    def walk(self, chain: Chain, packet: Packet, depth: int) -> list[_Step]:
        """All ways through one chain; verdict None means its end was reached."""
        if depth == 0:
            return [_Step("accept", packet, sure=False, because="jumps nested too deep")]
        going = [_Step(None, packet)]
        done: list[_Step] = []
        for rule in chain.rules:
            following: list[_Step] = []
            for step in going:
                for after in self._apply(chain, rule, step.packet, depth):
                    merged = replace(
                        after,
                        sure=step.sure and after.sure,
                        because=after.because or step.because,
                    )
                    (following if merged.verdict is None else done).append(merged)
            going = list(dict.fromkeys(following))[:_MOST]
            if not going:
                break
        return list(dict.fromkeys([*done, *going]))[:_MOST]

    def _apply(self, chain: Chain, rule: Rule, packet: Packet, depth: int) -> Iterator[_Step]:
        """All that one rule can do."""
        unsure: Match | None = None
        limited = False
        for match in rule.matches:
            truth = _is_true(match, packet, self._kind_of)
            if match.field == LIMITED:
                limited = True
            elif truth is None:
                unsure = match
            elif not truth:
                yield _Step(None, packet)
                return
        because = "" if unsure is None else f"cannot evaluate `{unsure.text}` in {rule.text}"
        if unsure is not None or limited:
            yield _Step(None, packet, sure=unsure is None, because=because)
        for step in self._act(chain, rule, rule.action, packet, depth):
            yield replace(step, sure=step.sure and unsure is None, because=because or step.because)

    def _act(
        self, chain: Chain, rule: Rule, action: Action, packet: Packet, depth: int
    ) -> list[_Step]:
        """What an action does to a packet for which all matches hold."""
        match action.kind:
            case "accept" | "return":
                return [_Step(action.kind, packet)]
            case "drop" | "reject":
                return [_Step(action.kind, packet, because=rule.text)]
            case "continue" | "notrack":
                return [_Step(None, packet)]
            case "mark":
                return [_Step(None, replace(packet, mark=None))]
            case "dnat" | "redirect" | "tproxy":
                return [_Step("accept", translated(action, packet))]
            case "jump" | "goto":
                return self._jump(chain, action, packet, depth)
            case "vmap":
                return self._choose(chain, rule, action, packet, depth)
            case _:
                return _either_way(packet, f"cannot evaluate `{action.text}` in {rule.text}")

    def _jump(self, chain: Chain, action: Action, packet: Packet, depth: int) -> list[_Step]:
        target = self._chains.get((chain.family, chain.table, action.chain))
        if target is None:
            return _either_way(packet, f"chain {action.chain} is missing")
        end = None if action.kind == "jump" else "return"
        return [
            replace(step, verdict=end) if step.verdict in (None, "return") else step
            for step in self.walk(target, packet, depth - 1)
        ]

    def _choose(
        self, chain: Chain, rule: Rule, action: Action, packet: Packet, depth: int
    ) -> list[_Step]:
        """A verdict map: the way whose values hold; every way when the field is unknown."""
        steps: list[_Step] = []
        why = f"cannot evaluate `{action.text}` in {rule.text}"
        for values, then in action.ways:
            choice = Match(action.field, values, text=action.text)
            truth = _is_true(choice, packet, self._kind_of)
            if truth is False:
                continue
            followed = self._act(chain, rule, then, packet, depth)
            if truth:
                return [*steps, *followed]
            steps += [replace(step, sure=False, because=why) for step in followed]
        return [*steps, _Step(None, packet, sure=not steps)]


def _either_way(packet: Packet, because: str) -> list[_Step]:
    """On with the next rule, or dropped: nobody can tell."""
    return [_Step(verdict, packet, sure=False, because=because) for verdict in (None, "drop")]


def translated(action: Action, packet: Packet) -> Packet:
    """The packet after dnat, redirect or tproxy. A port range keeps a port that lies in it."""
    port = packet.dport
    if action.port is not None and not action.port.low <= port <= action.port.high:
        port = action.port.low
    if action.kind == "tproxy":
        return replace(packet, target=action.address or packet.target, dport=port, proxied=True)
    if action.kind == "redirect":
        return replace(packet, dport=port, natted=True, redirected=True)
    return replace(packet, target=action.address or packet.target, dport=port, natted=True)


def _is_true(match: Match, packet: Packet, kind_of: AddressKind) -> bool | None:
    """Whether a match holds; None when that cannot be told."""
    if match.field in (UNKNOWN, LIMITED) or match.field not in _FIELDS:
        return None
    actual = _FIELDS[match.field](packet, kind_of)
    if actual is None:
        return None
    if isinstance(actual, int) and match.field == "mark":
        actual &= match.mask
    truths = [_holds(value, actual, packet.version) for value in match.values]
    if match.field in ("saddr", "daddr") and all(truth is None for truth in truths) and truths:
        return False  # a rule of the other family: it does not see this packet at all
    return any(truths) != match.negated


def _holds(value: Value, actual: int | str, version: int) -> bool | None:
    if isinstance(value, Range):
        if value.version not in (0, version):
            return None
        return isinstance(actual, int) and value.low <= actual <= value.high
    if not isinstance(actual, str):
        return False
    return actual.startswith(value[:-1]) if value.endswith("*") else actual == value


def _syn(packet: Packet, _kind_of: AddressKind) -> str:
    return "syn" if packet.state == "new" else "ack"


_FIELDS: dict[str, Callable[[Packet, AddressKind], int | str | None]] = {
    "iif": lambda packet, _: packet.iif,
    "oif": lambda packet, _: packet.oif,
    "iif_type": lambda packet, _: "loopback" if packet.iif == "lo" else "ether",
    "saddr": lambda packet, _: int(packet.source),
    "daddr": lambda packet, _: int(packet.target),
    "sport": lambda packet, _: packet.sport,
    "dport": lambda packet, _: packet.dport,
    "protocol": lambda packet, _: packet.protocol,
    "version": lambda packet, _: packet.version,
    "state": lambda packet, _: packet.state,
    "status": lambda packet, _: "dnat" if packet.natted else "none",
    "mark": lambda packet, _: packet.mark,
    "saddr_type": lambda packet, kind_of: kind_of(packet.source),
    "daddr_type": lambda packet, kind_of: kind_of(packet.target),
    "flags": _syn,
}
"""Field to how it is read off a packet."""
