"""One answer where several assignments are optimal: the lexicographically least, whatever path led to the optimum.

An assignment is optimal if and only if it uses tight pairs alone (complementary slackness), whichever optimal duals
are used. Two optimal assignments differ by cycles of tight pairs, so only rows inside a strongly connected component
of the exchange graph have a choice; within a component the least choice is made row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sae_match.assignment.arrays import Bool, Int32, Int64


@dataclass(frozen=True)
class TightPairs:
    """Pairs that an optimal assignment may use.

    Attributes:
        rows, columns: tight pairs outside the assignment in hand.
        at_ceiling: [M] columns whose price is the largest of all: those that may stay unmatched.
        indifferent: rows to which all columns cost the same, ascending. They have no pairs of their own: like a spare
            row, each may hold any column at the ceiling.
        alike: columns that cost each row the same, all at the ceiling, ascending; no pairs name them.
        eligible_rows: rows for which these are tight, in any order, repeated or not.
        like: [n] the row that stands for each row in `rows`: rows whose costs are equal have equal tight pairs, their
            own columns among them. None = each for itself.
    """

    rows: Int32
    columns: Int32
    at_ceiling: Bool
    indifferent: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    alike: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    eligible_rows: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    like: Int32 | None = None


def canonical(partner: Int32, tight: TightPairs) -> tuple[Int32, int]:
    """The lexicographically least optimal assignment and the number of rows that had a choice.

    Args:
        partner: [n] column of every row, an optimal assignment.
        tight: all other pairs that cost exactly their duals.
    """
    n, n_columns = len(partner), len(tight.at_ceiling)
    owner = np.full(n_columns, -1, np.int64)
    owner[partner] = np.arange(n)
    # One node per row; one per column that is left over, held by a spare row that may hold any column at the ceiling.
    left_over = np.flatnonzero((owner < 0) & tight.at_ceiling)
    owner[left_over] = n + np.arange(len(left_over))
    component = _components(partner, tight, owner, n, left_over)
    sizes = np.bincount(component)
    like_spares = np.concatenate([tight.indifferent, np.arange(n, n + len(left_over))])
    like = np.arange(n, dtype=np.int32) if tight.like is None else tight.like
    result = partner.copy()
    rows = np.flatnonzero(sizes[component[:n]] > 1)
    pairs = np.flatnonzero(sizes[component[tight.rows]] > 1)
    spare_label = component[like_spares[0]] if len(like_spares) else -1
    inside = _groups(component[tight.rows[pairs]], pairs)
    pool = set(tight.alike.tolist()), set(tight.eligible_rows.tolist())
    for label, members in _groups(component[rows], rows).items():
        spares = left_over if label == spare_label else None
        _resolve(members, inside.get(label, pairs[:0]), result, tight, spares, pool, like)
    return result, len(rows)


def _components(partner: Int32, tight: TightPairs, owner: Int64, n: int, left_over: Int64) -> Int64:
    """Strongly connected components of "this row could take that row's column"."""
    hub = n + len(left_over)  # stands for all spare rows at once, which are alike, and for the indifferent ones
    pool = hub + 1  # stands for all columns that are alike
    node = np.arange(hub)
    if tight.like is not None:
        node[:n] = tight.like  # rows that are alike may take each other's columns
    node[n:] = node[tight.indifferent] = hub
    targets = owner[tight.columns]
    known = targets >= 0
    source = [tight.rows[known].astype(np.int64), tight.eligible_rows, np.full(len(tight.alike), pool)]
    target = [node[targets[known]], np.full(len(tight.eligible_rows), pool), node[owner[tight.alike]]]
    if len(left_over) or len(tight.indifferent):
        vacant = np.flatnonzero(tight.at_ceiling[partner])
        source += [np.full(len(vacant), hub)]
        target += [node[vacant]]
    rows, columns = np.concatenate(source), np.concatenate(target)
    graph = coo_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(pool + 1, pool + 1))
    _, labels = connected_components(graph, directed=True, connection="strong")
    return labels[node].astype(np.int64)


def _groups(labels: Int64, values: Int64) -> dict[int, Int64]:
    """The values of every label, in order."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    return dict(zip(found.tolist(), np.split(values[order], starts[1:]), strict=False))  # no label: one empty part


def _resolve(
    rows: Int64,
    pairs: Int64,
    partner: Int32,
    tight: TightPairs,
    spares: Int64 | None,
    pool: tuple[set[int], set[int]],
    like: Int32,
) -> None:
    """Make the least choice for every row of one component, in place.

    Args:
        spares: columns left over, where the component is that of the spare and indifferent rows.
        pool: columns that are alike and rows that may take them, of all components.
        like: [n] as in `TightPairs`.
    """
    n = len(partner)
    holder = {int(partner[i]): int(i) for i in rows}
    holder.update({int(j): n + k for k, j in enumerate([] if spares is None else spares)})
    of_class: dict[int, set[int]] = {}
    for i in rows:
        of_class.setdefault(int(like[i]), set()).add(int(partner[i]))
    for i, j in zip(tight.rows[pairs].tolist(), tight.columns[pairs].tolist(), strict=True):
        if j in holder:
            of_class[i].add(j)
    choices = {int(i): of_class[int(like[i])] for i in rows}
    ceiling = set() if spares is None else {j for j in holder if tight.at_ceiling[j]}
    indifferent = set() if spares is None else set(tight.indifferent.tolist())
    alike = sorted(j for j in holder if j in pool[0])
    matching = Exchange(holder, choices, ceiling, n, indifferent, alike, pool[1])
    for i in rows.tolist():
        partner[i] = matching.fix_smallest_column(i)


class Exchange:
    """A perfect matching of one component in which rows are given their least feasible column one after another.

    Args:
        holder: node that holds each column; nodes from `first_spare` on are spare rows.
        choices: columns of each row; rows that are alike share one set.
        ceiling: columns that a spare row may hold.
        first_spare: number of the first spare node.
        indifferent: rows that may hold what a spare row may.
        alike: columns that every one of the `eligible_rows` may hold beside its choices, ascending.
        eligible_rows: rows.
    """

    def __init__(
        self,
        holder: dict[int, int],
        choices: dict[int, set[int]],
        ceiling: set[int],
        first_spare: int,
        indifferent: set[int],
        alike: list[int],
        eligible_rows: set[int],
    ) -> None:
        self.holder, self.choices, self.first_spare, self.indifferent = holder, choices, first_spare, indifferent
        self.ceiling, self.ascending = ceiling, sorted(ceiling)
        self.alike, self.any_alike, self.eligible_rows = alike, set(alike), eligible_rows
        self.column = {node: j for j, node in holder.items()}
        self.fixed: set[int] = set()
        self.passed = self.alike_passed = 0
        # Rows with the same choices are alike: features that are equal to each other, above all.
        frozen = {id(own): frozenset(own) for own in choices.values()}
        groups: dict[tuple[frozenset[int], bool], int] = {}
        self.group = {
            i: groups.setdefault((frozen[id(own)], i in eligible_rows), len(groups)) for i, own in choices.items()
        }  # fmt: skip
        self.sorted_choices = [sorted(own) for own, _ in groups]
        self.group_passed = [0] * len(groups)

    def fix_smallest_column(self, i: int) -> int:
        """Give row i the least column that leaves a complete matching of the others; it keeps it."""
        if i in self.indifferent:
            # What one of them could not have, the next cannot either: they could change places.
            while not self._can_take(i, self.ascending[self.passed]):
                self.passed += 1
        elif i not in self.eligible_rows:
            group = self.group[i]
            while not self._can_take(i, self.sorted_choices[group][self.group_passed[group]]):
                self.group_passed[group] += 1
        else:
            for j in sorted(self.choices[i] | self._least_alike(i)):
                if self._can_take(i, j):
                    break
        self.fixed.add(i)
        return self.column[i]

    def _least_alike(self, i: int) -> set[int]:
        """The least column of those alike that is not fixed: a row that can have any of them can have this one."""
        if i not in self.eligible_rows:
            return set()
        while self.alike_passed < len(self.alike) and self.holder[self.alike[self.alike_passed]] in self.fixed:
            self.alike_passed += 1
        return set(self.alike[self.alike_passed : self.alike_passed + 1])

    def _can_take(self, i: int, j: int) -> bool:
        return j == self.column[i] or self._reroute(i, j)

    def _reroute(self, i: int, j: int) -> bool:
        """Let row i take column j: whoever holds it must reach i's old column by exchanges among the others."""
        vacated, start = self.column[i], self.holder[j]
        if start in self.fixed:
            return False
        came_from: dict[int, int] = {start: -1}
        frontier = [start]
        spares_seen = alike_seen = False
        groups_seen: set[int] = set()
        while frontier:
            node = frontier.pop()
            if self._may_hold(node, vacated):
                self._shift(node, vacated, came_from)
                self._set(i, j)
                return True
            if self._like_spare(node):
                # Spare rows are alike: what one leads to, all lead to.
                if spares_seen:
                    continue
                spares_seen = True
            elif self.group[node] in groups_seen:
                continue
            else:
                groups_seen.add(self.group[node])
            neighbors = self._neighbors(node)
            if node in self.eligible_rows and not alike_seen:
                alike_seen = True
                neighbors += [self.holder[j] for j in self.alike]
            for other in neighbors:
                if other not in came_from and other not in self.fixed and other != i:
                    came_from[other] = node
                    frontier.append(other)
        return False

    def _like_spare(self, node: int) -> bool:
        return node >= self.first_spare or node in self.indifferent

    def _may_hold(self, node: int, j: int) -> bool:
        if self._like_spare(node):
            return j in self.ceiling
        return j in self.choices[node] or (node in self.eligible_rows and j in self.any_alike)

    def _neighbors(self, node: int) -> list[int]:
        """Nodes whose column this node could hold."""
        columns = self.ascending if self._like_spare(node) else self.sorted_choices[self.group[node]]
        return [self.holder[j] for j in columns]

    def _shift(self, node: int, column: int, came_from: dict[int, int]) -> None:
        """Move every node of the path one column on, the last into the vacated one."""
        while node >= 0:
            old = self.column[node]
            self._set(node, column)
            column, node = old, came_from[node]

    def _set(self, node: int, column: int) -> None:
        self.column[node], self.holder[column] = column, node
