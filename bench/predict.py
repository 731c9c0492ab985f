"""Predicting every single link failure of 100 to 2,000 routers, against computing anew each time.

Owns: the graphs (random, seeded), the naive way (rustworkx: all pairs for every failure), a sample
of links where the naive way would take an hour. Must never: start a router.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import rustworkx as rx

from bench.harness import Goal, Group, Row, take_rounds
from loopbox.lab.predict import Predictor
from loopbox.lab.topology import Lab, parse

SIZES = (100, 500, 2000)
QUICK_SIZES = (100,)
SAMPLE = {100: 199, 500: 100, 2000: 40}
"""Links of each size that are failed in one sample."""
NAIVE_SAMPLE = 3
EXHAUSTIVE = 2000

TEXT = """Time for one failed link, over a random sample of links (seeded, the same for both): every
session, every loopback and every changed route. *naive* computes the distances of all pairs anew
for each failure, by rustworkx on all cores, and compares nothing yet. One iBGP session per router
and reflector; 2 reflectors. *Every single link* is the whole list of failures of the largest
graph, predicted one after the other; there the naive way is a sample times the number of links."""


def measure(*, rounds: int, seconds: float) -> Group:
    """Measure everything of this group; `seconds` plays no part."""
    group = Group("predict", "Predicting failures", TEXT)
    for size in QUICK_SIZES if rounds == 1 else SIZES:
        goals = [Goal("loopbox", "naive", 0.1)] if size == SIZES[-1] else []
        row = Row(f"{size:,} routers: one failed link", "ms", False, "naive", goals)
        group.rows.append(row)
        lab = random_lab(size)
        predictor = Predictor(lab)
        dice = random.Random(size)
        cuts = [link.name for link in dice.sample(lab.links, min(SAMPLE[size], len(lab.links)))]
        take_rounds(
            row,
            {
                "loopbox": lambda p=predictor, c=cuts: _ours(p, c),  # type: ignore[misc]
                "naive": lambda lab=lab, c=cuts: _naive(lab, c),  # type: ignore[misc]
            },
            rounds=min(rounds, 3),
        )
        if size == EXHAUSTIVE:
            _every_link(group, lab, predictor)
    return group


def _every_link(group: Group, lab: Lab, predictor: Predictor) -> None:
    """Once, since it takes minutes."""
    links = [link.name for link in lab.links]
    title = f"{len(lab.boxes):,} routers: every single link ({len(links):,})"
    row = Row(title, "s", False, "naive", [Goal("loopbox", "naive", 0.1)])
    group.rows.append(row)
    take_rounds(
        row,
        {
            "loopbox": lambda: _ours(predictor, links) * len(links) / 1000,
            "naive": lambda: _naive(lab, links) * len(links) / 1000,
        },
        rounds=1,
    )


def random_lab(size: int) -> Lab:
    """A random tree with as many links again, costs of 1, 5 and 10, two route reflectors."""
    dice = random.Random(7)
    pairs = {(dice.randrange(number), number) for number in range(1, size)}
    while len(pairs) < 2 * size - 1:
        left, right = sorted(dice.sample(range(size), 2))
        pairs.add((left, right))
    text = "".join(
        f'[box.r{number}]\nloopback = "auto"\nospf = true\n'
        f"bgp = {{ as = 65000, reflector = {str(number < 2).lower()} }}\n"
        for number in range(size)
    )
    text += "".join(
        f'[[link]]\nends = ["r{left}", "r{right}"]\ncost = {dice.choice([1, 5, 10])}\n'
        for left, right in sorted(pairs)
    )
    return parse(text, path=Path("random.toml"))


def _ours(predictor: Predictor, cuts: list[str]) -> float:
    started = time.perf_counter()
    for cut in cuts:
        predictor.scenario([cut])
    return (time.perf_counter() - started) * 1000 / len(cuts)


def _naive(lab: Lab, cuts: list[str]) -> float:
    """All pairs anew for each failure, which is the least any comparison would need."""
    number = {box.name: index for index, box in enumerate(lab.boxes)}
    started = time.perf_counter()
    for cut in cuts[:NAIVE_SAMPLE]:
        graph: rx.PyDiGraph[None, float] = rx.PyDiGraph()
        graph.add_nodes_from([None] * len(number))
        for link in lab.links:
            if link.name != cut:
                near, far = (number[end.box] for end in link.ends)
                graph.add_edge(near, far, float(link.ends[0].cost))
                graph.add_edge(far, near, float(link.ends[1].cost))
        rx.all_pairs_dijkstra_path_lengths(graph, float)
    return (time.perf_counter() - started) * 1000 / min(NAIVE_SAMPLE, len(cuts))
