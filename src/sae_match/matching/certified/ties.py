"""One answer where several assignments are optimal: the lexicographically least, whatever path led to the optimum.

An assignment is optimal if and only if it uses tight pairs alone (complementary slackness), whichever optimal duals
are used. Two optimal assignments differ by cycles of tight pairs, so only rows inside a strongly connected component
of the exchange graph have a choice; within a component the least choice is made row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sae_match.matching.certified.arrays import Bool, Int32, Int64


@dataclass(frozen=True)
class TightPairs:
    """Pairs that an optimal assignment may use.

    Attributes:
        rows, columns: tight pairs outside the assignment in hand.
        at_ceiling: [M] columns whose price is the largest of all: those that may stay unmatched.
    """

    rows: Int32
    columns: Int32
    at_ceiling: Bool


def canonical(partner: Int32, tight: TightPairs) -> tuple[Int32, int]:
    """The lexicographically least optimal assignment and the number of rows that had a choice.

    Args:
        partner: [n] column of every row, an optimal assignment.
        tight: all other pairs that cost exactly their duals.
    """
    n, n_columns = len(partner), len(tight.at_ceiling)
    owner = np.full(n_columns, -1, np.int64)
    owner[partner] = np.arange(n)
    # One node per row; one per column that is left over, played by a spare row that may hold any column at the ceiling.
    left_over = np.flatnonzero((owner < 0) & tight.at_ceiling)
    owner[left_over] = n + np.arange(len(left_over))
    component = _components(partner, tight, owner, n, left_over)
    sizes = np.bincount(component)
    result = partner.copy()
    rows = np.flatnonzero(sizes[component[:n]] > 1)
    pairs = np.flatnonzero(sizes[component[tight.rows]] > 1)
    spare_label = component[n] if len(left_over) else -1
    inside = _groups(component[tight.rows[pairs]], pairs)
    for label, members in _groups(component[rows], rows).items():
        spares = left_over if label == spare_label else left_over[:0]
        _resolve(members, inside.get(label, pairs[:0]), result, tight, spares)
    return result, len(rows)


def _components(partner: Int32, tight: TightPairs, owner: Int64, n: int, left_over: Int64) -> Int64:
    """Strongly connected components of "this row could take that row's column"."""
    hub = n + len(left_over)  # stands for all spare rows at once, which are alike
    targets = owner[tight.columns]
    known = targets >= 0
    source = [tight.rows[known].astype(np.int64)]
    target = [np.where(targets[known] >= n, hub, targets[known])]
    if len(left_over):
        vacant = np.flatnonzero(tight.at_ceiling[partner])
        source += [np.full(len(vacant), hub)]
        target += [vacant]
    rows, columns = np.concatenate(source), np.concatenate(target)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(hub + 1, hub + 1))
    _, labels = connected_components(graph, directed=True, connection="strong")
    result = np.empty(hub, np.int64)
    result[:n], result[n:] = labels[:n], labels[hub]
    return result


def _groups(labels: Int64, values: Int64) -> dict[int, Int64]:
    """The values of every label, in order."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    return dict(zip(found.tolist(), np.split(values[order], starts[1:]), strict=False))  # no label: one empty part


def _resolve(rows: Int64, pairs: Int64, partner: Int32, tight: TightPairs, spares: Int64) -> None:
    """Make the least choice for every row of one component, in place."""
    n = len(partner)
    holder = {int(partner[i]): int(i) for i in rows}
    holder.update({int(j): n + k for k, j in enumerate(spares)})
    choices = {int(i): {int(partner[i])} for i in rows}
    for i, j in zip(tight.rows[pairs].tolist(), tight.columns[pairs].tolist(), strict=True):
        if j in holder:
            choices[i].add(j)
    ceiling = {j for j in holder if tight.at_ceiling[j]} if len(spares) else set()
    matching = Exchange(holder, choices, ceiling, n)
    for i in rows.tolist():
        partner[i] = matching.fix_least(i)


class Exchange:
    """A perfect matching of one component in which rows are given their least feasible column one after another.

    Args:
        holder: node that holds each column; nodes from `first_spare` on are spare rows.
        choices: columns of each row.
        ceiling: columns that a spare row may hold.
        first_spare: number of the first spare node.
    """

    def __init__(self, holder: dict[int, int], choices: dict[int, set[int]], ceiling: set[int], first_spare: int):
        self.holder, self.choices, self.ceiling, self.first_spare = holder, choices, ceiling, first_spare
        self.column = {node: j for j, node in holder.items()}
        self.fixed: set[int] = set()

    def fix_least(self, i: int) -> int:
        """Give row i the least column that leaves a complete matching of the others; it keeps it."""
        for j in sorted(self.choices[i]):
            if j == self.column[i] or self._reroute(i, j):
                break
        self.fixed.add(i)
        return self.column[i]

    def _reroute(self, i: int, j: int) -> bool:
        """Let row i take column j: whoever holds it must reach i's old column by exchanges among the others."""
        vacated, start = self.column[i], self.holder[j]
        if start in self.fixed:
            return False
        came_from: dict[int, int] = {start: -1}
        frontier = [start]
        spares_seen = False
        while frontier:
            node = frontier.pop()
            if self._may_hold(node, vacated):
                self._shift(node, vacated, came_from)
                self._set(i, j)
                return True
            if node >= self.first_spare:
                # Spare rows are alike: what one leads to, all lead to.
                if spares_seen:
                    continue
                spares_seen = True
            for other in self._neighbours(node):
                if other not in came_from and other not in self.fixed and other != i:
                    came_from[other] = node
                    frontier.append(other)
        return False

    def _may_hold(self, node: int, j: int) -> bool:
        return j in self.ceiling if node >= self.first_spare else j in self.choices[node]

    def _neighbours(self, node: int) -> list[int]:
        """Nodes whose column this node could hold."""
        columns = self.ceiling if node >= self.first_spare else self.choices[node]
        return [self.holder[j] for j in sorted(columns)]

    def _shift(self, node: int, column: int, came_from: dict[int, int]) -> None:
        """Move every node of the path one column on, the last into the vacated one."""
        while node >= 0:
            old = self.column[node]
            self._set(node, column)
            column, node = old, came_from[node]

    def _set(self, node: int, column: int) -> None:
        self.column[node], self.holder[column] = column, node
