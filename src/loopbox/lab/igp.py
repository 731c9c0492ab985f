"""Shortest paths of a whole area, kept true while links fail and come back.

Owns: distances between all routers (as OSPF counts them, SPF of RFC 2328 section 16.1 with equal
paths), what each failure changes, and next hops. A failure costs work in proportion to the pairs
whose paths used what failed, never a computation of all pairs anew.

Must never: know boxes or sessions: nodes and edges are numbers here.

How: with all distances D known, the pairs (s, t) whose shortest paths use edge u→v of cost w are
those with D[s,u] + w + D[v,t] = D[s,t]. Of these only the ones left without any other tight edge
into t are set to infinity and relaxed again from their unchanged surroundings (the idea of
Ramalingam and Reps, on lists of pairs in numpy). Changes are written into D and remembered, so
that failures nest and undo exactly.

Example::

    igp = Igp(3, [(0, 1, 10), (1, 0, 10), (1, 2, 10), (2, 1, 10)])
    undo = igp.fail([0, 1])         # edges by number
    assert not igp.reaches(0, 2)
    igp.restore(undo)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import rustworkx as rx
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Indexes = NDArray[np.intp]

INFINITE = 1 << 29
"""Farther than any path; two of them still fit an int32."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs (source, target) whose shortest paths used one edge."""

    sources: Indexes
    targets: Indexes
    before: Ints
    """Their distances before the edge failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What `fail` did, for `restore` and for comparing."""

    edges: tuple[int, ...]
    pairs: tuple[Pairs, ...] = field(repr=False)


class Igp:
    """All-pairs distances of a directed graph with positive costs, under failures.

    Memory: 8 bytes per pair (32 MB for 2,000 routers).
    """

    def __init__(self, nodes: int, edges: Sequence[tuple[int, int, int]]) -> None:
        """`edges`: (from, to, cost); their position is their number."""
        self.nodes = nodes
        self.tails = np.array([edge[0] for edge in edges], dtype=np.intp)
        self.heads = np.array([edge[1] for edge in edges], dtype=np.intp)
        self.costs = np.array([edge[2] for edge in edges], dtype=np.int32)
        self.alive = np.ones(len(edges), dtype=np.bool_)
        self.distances = _all_pairs(nodes, edges)
        self.base = self.distances.copy()
        """Distances without any failure."""
        self._into = _Edges(self.heads, nodes)
        self._out_of = _Edges(self.tails, nodes)

    def reaches(self, source: int, target: int) -> bool:
        """Whether a path remains."""
        return bool(self.distances[source, target] < INFINITE)

    def fail(self, edges: Iterable[int]) -> Failure:
        """Take edges away and bring the distances up to date."""
        taken, pairs = [], []
        for edge in edges:
            if self.alive[edge]:
                taken.append(edge)
                pairs.append(self._remove(edge))
        return Failure(tuple(taken), tuple(pairs))

    def restore(self, failure: Failure) -> None:
        """Undo `fail`; the last failure first."""
        for pairs in reversed(failure.pairs):
            self.distances[pairs.sources, pairs.targets] = pairs.before
        self.alive[list(failure.edges)] = True

    def next_hops(self, source: int, target: int, *, base: bool = False) -> set[int]:
        """Nodes to which `source` sends what is for `target`: all equal paths."""
        distances = self.base if base else self.distances
        if distances[source, target] >= INFINITE or source == target:
            return set()
        edges = self._out_of.of(source)
        heads = self.heads[edges]
        tight = self.costs[edges] + distances[heads, target] == distances[source, target]
        if not base:
            tight &= self.alive[edges]
        return {int(head) for head in heads[tight]}

    def uses(self, edges: Iterable[int], source: int, target: int) -> bool:
        """Whether a shortest path without failures goes over one of `edges`."""
        return any(
            self.base[source, self.tails[edge]]
            + self.costs[edge]
            + self.base[self.heads[edge], target]
            == self.base[source, target]
            for edge in edges
        )

    def rerouted(
        self, *failures: Failure
    ) -> list[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
        """(source, target, next hops before, now) of pairs whose next hops are other nodes now.

        `failures`: all that are in force. Pairs that are no longer reached are left out.
        """
        parts = [pairs for failure in failures for pairs in failure.pairs]
        if not parts:
            return []
        keys = np.unique(
            np.concatenate([pairs.sources * self.nodes + pairs.targets for pairs in parts])
        )
        sources, targets = np.divmod(keys, self.nodes)
        reached = self.distances[sources, targets] < INFINITE
        sources, targets = sources[reached], targets[reached]
        if not sources.size:
            return []
        edges, starts, owner = self._out_of.expand(sources)
        heads, costs, ends = self.heads[edges], self.costs[edges], targets[owner]
        was_on = costs + self.base[heads, ends] == self.base[sources, targets][owner]
        is_on = costs + self.distances[heads, ends] == self.distances[sources, targets][owner]
        is_on &= self.alive[edges]
        differ = np.flatnonzero(np.logical_or.reduceat(was_on != is_on, starts))
        bounds = np.append(starts, len(edges))
        found = []
        for source, target, low, high in zip(
            sources[differ].tolist(),
            targets[differ].tolist(),
            bounds[differ].tolist(),
            bounds[differ + 1].tolist(),
            strict=True,
        ):
            nodes = heads[low:high]
            was = tuple(sorted(set(nodes[was_on[low:high]].tolist())))
            now = tuple(sorted(set(nodes[is_on[low:high]].tolist())))
            if was != now:  # another of two parallel edges is no other way
                found.append((source, target, was, now))
        return found

    # --- one edge --------------------------------------------------------------------------

    def _remove(self, edge: int) -> Pairs:
        tail, head, cost = int(self.tails[edge]), int(self.heads[edge]), int(self.costs[edge])
        self.alive[edge] = False
        now = self.distances
        to_tail, from_head = now[:, tail], now[head]
        rows = np.flatnonzero((to_tail + cost == now[:, head]) & (to_tail < INFINITE))
        columns = np.flatnonzero((cost + from_head == now[tail]) & (from_head < INFINITE))
        through = (to_tail[rows] + cost)[:, None] + from_head[columns][None, :]
        row, column = np.nonzero(through == now[np.ix_(rows, columns)])
        sources, targets = rows[row], columns[column]
        pairs = Pairs(sources, targets, now[sources, targets])
        if sources.size:
            self._relax(*self._orphans(sources, targets, from_head[targets]))
        return pairs

    def _orphans(self, sources: Indexes, targets: Indexes, depths: Ints) -> tuple[Indexes, Indexes]:
        """Those of the pairs that no longer have a path of the old length, set to infinity.

        A pair is one when each tight edge into its target is gone or comes from an orphan. With
        positive costs a parent is always nearer, so in the order of `depths` (how far the target
        is behind the failed edge) each pair is looked at once.
        """
        order = np.argsort(depths, kind="stable")
        sources, targets, depths = sources[order], targets[order], depths[order]
        now = self.distances
        edges, starts, owner = self._into.expand(targets)
        rows, tails, costs = sources[owner], self.tails[edges], self.costs[edges]
        alive, old = self.alive[edges], now[sources, targets]
        lost = np.zeros(len(sources), dtype=np.bool_)
        levels = np.flatnonzero(np.diff(depths)) + 1
        bounds = [0, *levels.tolist(), len(sources)]
        ends = [*starts[bounds[:-1]].tolist(), len(edges)]
        for level in range(len(bounds) - 1):
            low, high = bounds[level], bounds[level + 1]
            first, last = ends[level], ends[level + 1]
            reached = now[rows[first:last], tails[first:last]] + costs[first:last]
            tight = (reached == old[owner[first:last]]) & alive[first:last]
            gone = ~np.logical_or.reduceat(tight, starts[low:high] - first)
            lost[low:high] = gone
            now[sources[low:high][gone], targets[low:high][gone]] = INFINITE
        return sources[lost], targets[lost]

    def _relax(self, sources: Indexes, targets: Indexes) -> None:
        """Find the distances of orphaned pairs anew; those around them are right."""
        now = self.distances
        if not sources.size:
            return
        edges, starts, owner = self._into.expand(targets)
        tails, ways = self.tails[edges], sources[owner]
        costs = np.where(self.alive[edges], self.costs[edges], INFINITE).astype(np.int32)
        while True:
            found = np.minimum.reduceat(now[ways, tails] + costs, starts)
            better = found < now[sources, targets]
            if not better.any():
                return
            now[sources[better], targets[better]] = found[better]


class _Edges:
    """Edges by one of their ends, laid out for expanding many nodes at once."""

    def __init__(self, ends: Indexes, nodes: int) -> None:
        self._order = np.argsort(ends, kind="stable")
        self._bounds = np.searchsorted(ends[self._order], np.arange(nodes + 1))

    def of(self, node: int) -> Indexes:
        """Edge numbers of one node."""
        return self._order[self._bounds[node] : self._bounds[node + 1]]

    def expand(self, nodes: Indexes) -> tuple[Indexes, Indexes, Indexes]:
        """Edges of `nodes` (each has some) in a row, where each node's begin, whose each is."""
        lengths = self._bounds[nodes + 1] - self._bounds[nodes]
        starts = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(nodes)), lengths)
        offsets = np.arange(len(owner)) - starts[owner]
        return self._order[self._bounds[nodes][owner] + offsets], starts, owner


def _all_pairs(nodes: int, edges: Sequence[tuple[int, int, int]]) -> Ints:
    """Distances between all nodes, by rustworkx's Dijkstra on all cores."""
    graph: rx.PyDiGraph[None, float] = rx.PyDiGraph(multigraph=True)
    graph.add_nodes_from([None] * nodes)
    graph.add_edges_from([(tail, head, float(cost)) for tail, head, cost in edges])
    found = np.full((nodes, nodes), INFINITE, dtype=np.int32)
    np.fill_diagonal(found, 0)
    for source, lengths in rx.all_pairs_dijkstra_path_lengths(graph, float).items():
        if len(lengths):
            found[source, np.array(list(lengths.keys()))] = np.array(list(lengths.values()))
    return found
