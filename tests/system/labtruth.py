"""Labs of every kind, and the comparison of what is predicted for a failure with what FRR does.

Used by test_frr_predict (a sample) and by `python -m bench truth` (all of them, every single
failure; a few minutes). One lab: `PYTHONPATH=tests python tests/system/labtruth.py triangle`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from labworld import LabWorld, until

from loopbox.lab.outcomes import Scenario
from loopbox.lab.predict import Predictor, elements
from loopbox.lab.topology import Lab, load, parse

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "labs"


def internal(count: int, links: Iterable[str], *, extra: str = "", source: str = "both") -> str:
    """`count` routers r1…, OSPF and internal BGP, joined by `links` such as "12" or "12 cost=5"."""
    text = "".join(
        f'[box.r{n}]\nloopback = ["10.255.0.{n}/32"]\nospf = true\n'
        f'bgp = {{ as = 65000, source = "{source}" }}\n'
        for n in range(1, count + 1)
    )
    for link in links:
        ends, _, options = link.partition(" ")
        text += "[[link]]\nends = [" + ", ".join(f'"r{end}"' for end in ends) + "]\n"
        text += "".join(f"{option}\n" for option in options.split())
    return text + extra


def external(asns: Sequence[int], links: Iterable[tuple[int, int]]) -> str:
    """Routers of the given ASes that tell their loopbacks over link sessions; no OSPF."""
    text = "".join(
        f'[box.r{n}]\nloopback = ["10.255.0.{n}/32"]\n'
        f'bgp = {{ as = {asn}, advertise = ["loopback"] }}\n'
        for n, asn in enumerate(asns, 1)
    )
    return text + "".join(f'[[link]]\nends = ["r{a}", "r{b}"]\n' for a, b in links)


LABS: dict[str, Callable[[], Lab]] = {
    **{
        name: partial(load, EXAMPLES / f"{name}.toml")
        for name in ("triangle", "reflector", "leaf-spine", "two-as", "anycast")
    },
    **{
        name: partial(parse, text, path=Path(f"{name}.toml"))
        for name, text in {
            "chain": internal(4, ["12", "23", "34"]),
            "ring": internal(5, ["12", "23", "34", "45", "51"], source="loopback"),
            "star": internal(5, ["12", "13", "14", "15"], source="loopback"),
            "square": internal(4, ["12 cost=5", "23", "34 cost=20", "41", "13 cost=100"]),
            "parallel": internal(3, ["12", "12", "23"]),
            "lan": internal(4, ["123", "34", "14 cost=50"]),
            "islands": internal(4, ["12", "34"], source="loopback"),
            "unnumbered": internal(
                3, ["12 unnumbered=true", "23 unnumbered=true", "13"], source="loopback"
            ),
            "external-ring": external(
                [65001, 65002, 65003, 65004], [(1, 2), (2, 3), (3, 4), (4, 1)]
            ),
            "transit": external([65001, 65002, 65003], [(1, 2), (2, 3)]),
            "border": internal(
                3,
                ["12", "23", "13"],
                source="loopback",
                extra='[box.x]\nloopback = ["10.9.0.1/32"]\n'
                'bgp = { as = 65009, advertise = ["loopback"] }\n'
                '[[link]]\nends = ["x", "r1"]\n[[link]]\nends = ["x", "r2"]\n',
            ),
        }.items()
    },
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One failure, as predicted and as it was."""

    lab: str
    cut: str
    disagreements: tuple[str, ...]
    seconds: float


def compare(world: LabWorld, predictor: Predictor, cut: str) -> Verdict:
    """Let `cut` fail in a converged lab, look at everything, mend, and wait for recovery."""
    started = time.monotonic()
    scenario = predictor.scenario([cut])
    lab = world.lab
    before = world.sessions()
    is_box = cut in {box.name for box in lab.boxes}
    # A box that fails takes both ends of its wires along, but only its own port of a bridge.
    ends = [
        (link, end)
        for link in (lab.links_of(cut) if is_box else (lab.link(cut),))
        for end in link.ends
        if not is_box or not link.is_bridge or end.box == cut
    ]
    lost = {session.name for session in scenario.sessions_lost}
    stands = predictor.standing - lost
    world.cut_ends(ends)
    wrong = []
    hold = lab.timers.hold
    try:
        until(lambda: world.established() == stands, seconds=hold + 6)
    except AssertionError:
        found = world.established()
        wrong += [f"{name} fell" for name in stands - found]
        wrong += [f"{name} stands" for name in found - stands]
    # Held means held: for a whole hold time nothing of it may fall.
    until(lambda: time.monotonic() > started + hold + 1, seconds=hold + 10)
    after = world.sessions()
    wrong += [
        f"{name} flapped"
        for name in stands - {item.name for item in scenario.sessions_flapping}
        if [end.established for end in before[name]] != [end.established for end in after[name]]
    ]
    wrong += _reachability(world, predictor, scenario, down={cut} if is_box else set())
    world.mend_ends(ends)
    try:
        until(lambda: world.established() == predictor.standing, seconds=20)
    except AssertionError:
        wrong += [f"{name} did not return" for name in predictor.standing - world.established()]
    return Verdict(lab.name, cut, tuple(sorted(wrong)), time.monotonic() - started)


def _reachability(
    world: LabWorld, predictor: Predictor, scenario: Scenario, *, down: set[str]
) -> list[str]:
    """What the real lab reaches other than predicted, as words."""
    gone = {
        (source, IPv4Address(address))
        for item in scenario.unreachable
        for source in item.sources
        for address in item.loopbacks
    }
    wanted = {
        (source, address)
        for source, _, address in predictor.reached_before
        if source not in down and (source, address) not in gone
    }
    pairs = {(source, address) for source, _, address in predictor.reached_before} - {
        pair for pair in gone if pair in wanted
    }
    sources = {source for source, _ in pairs if source not in down}

    def mismatch() -> list[str]:
        found = []
        for source in sorted(sources):
            targets = {address for start, address in pairs if start == source}
            reached = world.reach(source, targets)
            found += [
                f"{source} {'reaches' if address in reached else 'misses'} {address}"
                for address in targets
                if (address in reached) != ((source, address) in wanted)
            ]
        return found

    try:
        until(lambda: not mismatch(), seconds=4)
    except AssertionError:
        return mismatch()
    return []


def compare_patiently(world: LabWorld, predictor: Predictor, cut: str) -> Verdict:
    """`compare`, and once more where sessions fell that should be held, and nothing else.

    A machine that starves the daemons for longer than the hold time ends sessions: that is no rule
    of routing. It brings none up, loses no address and keeps nothing from returning.
    """
    first = compare(world, predictor, cut)
    starved = all(item.endswith((" fell", " flapped")) for item in first.disagreements)
    return compare(world, predictor, cut) if first.disagreements and starved else first


def judge(name: str, *, cuts: Sequence[str] | None = None) -> list[Verdict]:
    """Run lab `name` and compare `cuts`, or every single failure."""
    lab = LABS[name]()
    predictor = Predictor(lab)
    with LabWorld(lab) as world:
        until(lambda: world.established() == predictor.standing, seconds=30)
        return [compare_patiently(world, predictor, cut) for cut in cuts or elements(lab)]


def main(names: Sequence[str], *, as_json: bool = False) -> int:
    """Judge labs side by side and print one line per disagreement and a summary.

    As JSON: one document per lab and line, for bench/truth.py.
    """
    bad = 0
    with ThreadPoolExecutor(3) as pool:
        for name, verdicts in zip(names, pool.map(judge, names), strict=True):
            wrong = [verdict for verdict in verdicts if verdict.disagreements]
            bad += len(wrong)
            if as_json:
                said = {verdict.cut: verdict.disagreements for verdict in wrong}
                document = {"lab": name, "failures": len(verdicts), "wrong": said}
                print(json.dumps(document), flush=True)
                continue
            print(f"{name}: {len(verdicts)} failures, {len(wrong)} predicted wrongly", flush=True)
            for verdict in wrong:
                print(f"  {verdict.cut}: {'; '.join(verdict.disagreements)}")
    return 1 if bad else 0


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if word != "--json"]
    sys.exit(main(asked or sorted(LABS), as_json="--json" in sys.argv[1:]))
