"""The last step of an exact solution: the few pairs that can still be in an optimal assignment, in Python integers.

The exchange graph of these pairs falls into strongly connected components. A row that is alone in its component has
no choice. In every other component the least assignment is found by shortest augmenting paths from the duals 0.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sae_match.assignment.arrays import Int32, Int64
from sae_match.assignment.ties import TightPairs, canonical

if TYPE_CHECKING:
    from sae_match.assignment.lazy import LazyAssignment
    from sae_match.assignment.refine import ExactProblem

SPARES = -1
"""The spare rows as a node: all alike, each may hold any column at its spare cost."""


@dataclass(frozen=True)
class Remainders:
    """What is left to decide.

    Attributes:
        partner: [n] column of every row.
        cost: per row, the remainder of every column that it may take, its own among them.
        spare_cost: the remainder of every column that a spare row may take.
        n_columns: M.
        places: [n] of each row among all, the indifferent ones included.
        indifferent: as in `TightPairs`.
    """

    partner: Int32
    cost: list[dict[int, int]]
    spare_cost: dict[int, int]
    n_columns: int
    places: Int64
    indifferent: Int64

    @classmethod
    def collect(
        cls, problem: ExactProblem, lazy: LazyAssignment, near: tuple[Int64, Int64], deficit: int
    ) -> Remainders:
        """The exact remainders of pairs that are near to tight, as far as they do not exceed the deficit."""
        partner = lazy.held.partner
        rows = np.concatenate([near[0], np.arange(lazy.n)])
        columns = np.concatenate([near[1], partner.astype(np.int64)])
        if problem.private:
            rows = np.concatenate([rows, np.arange(lazy.n)])
            columns = np.concatenate([columns, lazy.m + np.arange(lazy.n)])
        cost: list[dict[int, int]] = [{} for _ in range(lazy.n)]
        pairs = zip(rows.tolist(), columns.tolist(), problem.remainders(rows, columns), strict=True)
        for i, j, value in pairs:
            if value <= deficit:
                cost[i][j] = value
        ceiling = problem.ceiling
        spare_cost = {
            j: ceiling - v for j, v in enumerate(problem.column) if problem.spares and ceiling - v <= deficit
        }  # fmt: skip
        return cls(partner, cost, spare_cost, len(problem.column), lazy.places, lazy.indifferent)


def finish(left: Remainders, most_steps: int) -> tuple[Int32, int] | None:
    """The canonical optimum among the pairs that are left, and the number of rows that had a choice.

    None where it would take too long.
    """
    n, partner = len(left.partner), left.partner.copy()
    label = _components(left)
    members: dict[int, list[int]] = {}
    for node in range(n + 1):
        members.setdefault(int(label[node]), []).append(node)
    groups = [Component(left, nodes) for nodes in members.values() if len(nodes) > 1 or nodes == [n]]
    if sum(group.work for group in groups) > most_steps:
        return None
    rows: list[int] = []
    columns: list[int] = []
    ceiling = np.zeros(left.n_columns, np.bool_)
    for group in groups:
        group.solve()
        for i, j in group.assigned():
            partner[i] = j
        for i, j in group.tight():
            rows.append(i)
            columns.append(j)
        ceiling[group.at_ceiling()] = True
    whole = np.empty(n + len(left.indifferent), np.int32)
    whole[left.places] = partner
    if len(left.indifferent):
        unused = np.setdiff1d(np.flatnonzero(ceiling), partner)
        whole[left.indifferent] = unused[: len(left.indifferent)]
    pairs = TightPairs(
        left.places[np.array(rows, np.int64)].astype(np.int32), np.array(columns, np.int32), ceiling, left.indifferent
    )
    return canonical(whole, pairs)


def _components(left: Remainders) -> Int64:
    """[n + 1] strongly connected components of "may take the column of"; the last node is the spare rows."""
    n = len(left.partner)
    owner = np.full(left.n_columns, n, np.int64)
    owner[left.partner] = np.arange(n)
    source = np.repeat(np.arange(n + 1), [*map(len, left.cost), len(left.spare_cost)])
    columns = np.array([j for row in (*left.cost, left.spare_cost) for j in row], np.int64)
    graph = coo_array((np.ones(len(source), np.int32), (source, owner[columns])), shape=(n + 1, n + 1))
    labels: Int64 = connected_components(graph, directed=True, connection="strong")[1].astype(np.int64)
    return labels


@dataclass
class Component:
    """One component: rows, and the spare rows where they belong to it, on the columns that these hold."""

    left: Remainders
    nodes: list[int]
    u: dict[int, int] = field(default_factory=dict)
    v: dict[int, int] = field(default_factory=dict)
    owner: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, left = len(self.left.partner), self.left
        self.rows = [node for node in self.nodes if node < n]
        held = {int(left.partner[i]): i for i in self.rows}
        self.spares = n in self.nodes
        if self.spares:
            taken = np.zeros(left.n_columns, np.bool_)
            taken[left.partner] = True
            held |= {j: SPARES for j in np.flatnonzero(~taken).tolist()}
        self.cost = {i: {j: c for j, c in left.cost[i].items() if j in held} for i in self.rows}
        if self.spares:
            self.cost[SPARES] = {j: c for j, c in left.spare_cost.items() if j in held}
        self.u = {i: min(row.values()) for i, row in self.cost.items() if row}
        self.v = dict.fromkeys(held, 0)
        # What is tight stays; every other holder looks for a column anew.
        self.owner = {j: i for j, i in held.items() if self.cost[i][j] == self.u[i]}
        self.free = [i for j, i in held.items() if j not in self.owner]
        self.work = len(self.free) * sum(map(len, self.cost.values()))

    def solve(self) -> None:
        """Shortest augmenting paths from every holder without a column."""
        self.partner = {i: j for j, i in self.owner.items() if i != SPARES}
        for node in self.free:
            self._augment(node)

    def _augment(self, source: int) -> None:
        distance: dict[int, int] = {}
        row_distance = {source: 0}
        came_from: dict[int, int] = {}
        entered: dict[int, int] = {}
        done: list[int] = []
        heap: list[tuple[int, int]] = []

        def scan(node: int, at: int) -> None:
            for j, c in self.cost[node].items():
                label = at + c - self.u[node] - self.v[j]
                if label < distance.get(j, label + 1):
                    distance[j], came_from[j] = label, node
                    heapq.heappush(heap, (label, j))

        scan(source, 0)
        settled: set[int] = set()
        while True:
            label, j = heapq.heappop(heap)
            if j in settled:
                continue
            settled.add(j)
            done.append(j)
            if j not in self.owner:
                break
            node = self.owner[j]
            if node not in row_distance:
                row_distance[node], entered[node] = label, j
                scan(node, label)
        for k in done:
            self.v[k] -= label - distance[k]
        for node, at in row_distance.items():
            self.u[node] += label - at
        while True:
            node = came_from[j]
            self.owner[j] = node
            before = -1 if node == source else entered[node]
            if node != SPARES:
                self.partner[node] = j
            if node == source:
                return
            j = before

    def assigned(self) -> list[tuple[int, int]]:
        """Rows and their columns."""
        return list(self.partner.items())

    def tight(self) -> list[tuple[int, int]]:
        """Other pairs that cost what their duals allow."""
        return [
            (i, j)
            for i in self.rows
            for j, c in self.cost[i].items()
            if c == self.u[i] + self.v[j] and self.partner[i] != j
        ]

    def at_ceiling(self) -> list[int]:
        """Columns that a spare row may hold."""
        spare = self.cost.get(SPARES, {})
        return [j for j, c in spare.items() if c == self.u[SPARES] + self.v[j]]
