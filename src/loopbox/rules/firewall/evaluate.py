"""Every outcome a packet can have at a hook of a ruleset.

Owns: walking chains. A match that cannot be evaluated is followed both ways and makes what comes
of it unsure; a rate limit is followed both ways too, but what comes of it does happen.

Must never: touch the system; decide what an outcome means for a listener (rules/audit does).

Example::

    {outcome.verdict for outcome in outcomes(ruleset, "input", packet, kinds)}      # {"drop"}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from loopbox.rules.firewall.matching import AddressKind, holds, is_true, narrowed
from loopbox.rules.firewall.model import (
    LIMITED,
    UNKNOWN,
    Action,
    Chain,
    Match,
    Outcome,
    Packet,
    Rule,
    Ruleset,
)

_DEPTH = 16  # the kernel's own limit of nested jumps (NFT_JUMP_STACK_SIZE)
_MOST = 256
_TRACKING = -200  # NF_IP_PRI_CONNTRACK


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a walk stands: a verdict, or None to carry on with the next rule."""

    verdict: str | None
    packet: Packet
    sure: bool = True
    because: str = ""


class _TooManyError(Exception):
    """More ways through the rules than anybody can follow."""


def outcomes(
    ruleset: Ruleset, hook: str, packet: Packet, kind_of: AddressKind
) -> tuple[Outcome, ...]:
    """All that can happen to `packet` at `hook` (prerouting, input, forward, output ...)."""
    walker = _Walker(ruleset, kind_of)
    passing = [Outcome("accept", packet, not ruleset.gaps, "; ".join(ruleset.gaps))]
    ended: list[Outcome] = []
    try:
        for chain in ruleset.base(hook, packet.version):
            passing = _passed(walker, chain, hook, passing, ended)
    except _TooManyError:
        return (Outcome("accept", packet, sure=False, because="too many rules hang together"),)
    return tuple(dict.fromkeys([*passing, *ended]))


def _passed(
    walker: _Walker, chain: Chain, hook: str, passing: list[Outcome], ended: list[Outcome]
) -> list[Outcome]:
    """What comes out of one base chain; what was dropped there goes to `ended`."""
    following: list[Outcome] = []
    for before in passing:
        packet = before.packet
        if not _goes_through(chain, hook, packet):
            following.append(before)
            continue
        seen = replace(packet, state=_state_at(chain, hook, packet))
        for step in walker.walk(walker.narrowed(chain, seen), seen, _DEPTH):
            outcome = Outcome(
                _base_verdict(step, chain),
                replace(step.packet, state=packet.state),
                before.sure and step.sure,
                step.because or before.because or _policy_text(step, chain),
            )
            (following if outcome.verdict == "accept" else ended).append(outcome)
    if chain.device == UNKNOWN and any(outcome.verdict != "accept" for outcome in ended):
        why = f"cannot tell on which interfaces chain {chain.table} {chain.name} hangs"
        ended[:] = [replace(outcome, sure=False, because=why) for outcome in ended]
        following += [replace(one, sure=False, because=why) for one in passing]
    kept = list(dict.fromkeys(following))
    if len(kept) + len(ended) > _MOST:
        raise _TooManyError
    return kept


def _goes_through(chain: Chain, hook: str, packet: Packet) -> bool:
    """Whether a packet passes a base chain: its device, and for translations its connection.

    Translations see a tracked connection's first packet only, and no more once one of them
    translated it (nf_nat_inet_fn()).
    """
    if chain.device not in (None, UNKNOWN) and not holds(
        chain.device, packet.iif or packet.oif, packet.version
    ):
        return False
    if not chain.nat:
        return True
    is_done = hook in ("prerouting", "output") and packet.natted
    return packet.state != "established" and packet.is_tracked and not is_done


def _state_at(chain: Chain, hook: str, packet: Packet) -> str | None:
    """The connection's state as rules of this chain see it.

    Before tracking (priority -200) there is none, which rules read as invalid (nft_ct.c,
    xt_conntrack.c); what is not tracked says so, and its answers may be anything.
    """
    if hook == "ingress":
        return "invalid"
    if hook in ("prerouting", "output") and chain.priority <= _TRACKING:
        return "invalid" if chain.priority < _TRACKING else None
    if not packet.is_tracked:
        return None if packet.oif else "untracked"
    return packet.state


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
        self._ruleset = ruleset
        self._chains: Mapping[tuple[str, str, str], Chain] = {}
        self._kind_of = kind_of

    def narrowed(self, chain: Chain, packet: Packet) -> Chain:
        """The chain with what matters to this packet; what it jumps to is narrowed alike."""
        fixed = None if self._ruleset.rewrites else packet.dport
        facts = (packet.version, packet.protocol, fixed, packet.sport, packet.iif, packet.oif)
        self._chains = narrowed(self._ruleset, facts)
        return replace(chain, rules=self._chains[chain.key].rules)

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
            going = list(dict.fromkeys(following))
            if len(going) + len(done) > _MOST:
                done = list(dict.fromkeys(done))
                if len(going) + len(done) > _MOST:
                    raise _TooManyError
            if not going:
                break
        return list(dict.fromkeys([*done, *going]))

    def _apply(self, chain: Chain, rule: Rule, packet: Packet, depth: int) -> Iterator[_Step]:
        """All that one rule can do."""
        unsure: Match | None = None
        limited = False
        for match in rule.matches:
            truth = is_true(match, packet, self._kind_of)
            if truth == LIMITED:
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
            case "continue":
                return [_Step(None, packet)]
            case "notrack":
                if packet.state != "invalid":
                    return [_Step(None, packet)]  # what is tracked already stays so
                return [_Step(None, replace(packet, is_tracked=False, state="untracked"))]
            case "mark":
                return [_Step(None, replace(packet, mark=None))]
            case "dnat" | "redirect" | "tproxy" | "rewrite":
                return _translations(action, packet, rule)
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
        for place, (values, then) in enumerate(action.ways, 1):
            is_rest = action.has_rest and place == len(action.ways)
            choice = Match(action.field, values, is_rest, text=action.text)
            truth = is_true(choice, packet, self._kind_of)
            if truth is False:
                continue
            followed = self._act(chain, rule, then, packet, depth)
            if truth is True:
                return [*steps, *followed]
            if truth is None:
                followed = [replace(step, sure=False, because=why) for step in followed]
            steps += followed
        if any(not step.sure for step in steps):
            return [*steps, _Step(None, packet, sure=False, because=why)]
        return [*steps, _Step(None, packet)]


def _either_way(packet: Packet, because: str) -> list[_Step]:
    """On with the next rule, let in at once, or dropped: nobody can tell."""
    return [
        _Step(verdict, packet, sure=False, because=because) for verdict in (None, "accept", "drop")
    ]


def _translations(action: Action, packet: Packet, rule: Rule) -> list[_Step]:
    """Where dnat, redirect, tproxy or a rewrite may send a packet.

    What is looked up in a map may be any of its results, or none.
    """
    why = f"cannot evaluate `{action.text}` in {rule.text}"
    verdict = None if action.kind == "rewrite" else "accept"
    if action.is_open:
        moved = replace(packet, natted=action.kind != "rewrite", anywhere=True)
        return [_Step(end, one, False, why) for end, one in ((verdict, moved), (None, packet))]
    if action.choices:
        ends = [
            replace(action, address=address, port=port, choices=())
            for address, port in action.choices
        ]
        found = [_Step(verdict, translated(end, packet), False, why) for end in ends]
        return [*found, _Step(None, packet, False, why)]
    after = translated(action, packet)
    return [_Step(verdict, after, sure=after.top is None, because="" if after.top is None else why)]


def translated(action: Action, packet: Packet) -> Packet:
    """The packet after dnat, redirect, tproxy or a rewrite.

    A port range keeps a port that lies in it; else the kernel draws one.
    """
    port, top = packet.dport, None
    if action.port is not None and not action.port.low <= port <= action.port.high:
        port = action.port.low
        top = action.port.high if action.port.high > port else None
    if action.kind == "tproxy":
        return replace(packet, proxy=(action.address, port))
    if action.kind == "redirect":
        return replace(packet, dport=port, top=top, natted=True, redirected=True)
    target = action.address or packet.target
    return replace(
        packet, target=target, dport=port, top=top, natted=packet.natted or action.kind == "dnat"
    )
