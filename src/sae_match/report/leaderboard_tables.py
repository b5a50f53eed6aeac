"""Which matcher finds the feature that does the same: ranks, and similarity against assignment, from the functional
tests of a report's jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from .functional import AUSQC, RATIOS, REFERENCES, Scores, Tests, read_tests, similarity_of
from .records import Record, find_records
from .resampling import SAMPLES, Interval
from .tables import ABSENT, Cell, Table, format_row, format_value

ROLES = {
    "adjacent": "adjacent layers",
    "distant": "layers further apart",
    "seeds": "two seeds of one layer",
    "sources": "SAEs of two sources",
}
COLUMNS = {
    "coverage": "coverage",
    "deactivation": "drop",
    "deactivation_top1": "top-1",
    "deactivation_mrr": "drop MRR",
    "deactivation_silent": "silent ↓",
    "substitution": "substitution R",
    AUSQC: "AUSQC",
    "fingerprint": "fingerprint",
    "fingerprint_mrr": "fingerprint MRR",
    "matching_score": "matching score",
    "delta_loss": "Δ loss ↓",
    "solver_seconds": "solver seconds",
}
"""Numbers of the leaderboard and their headings."""
TESTED = (*RATIOS, AUSQC)
RANKED = [name for name in RATIOS if name != "deactivation_silent"]
COMPARED = ("deactivation", "substitution")
"""Numbers by which similarities and assignments are compared."""
CERTIFIED = ("certified", "dense")
"""Assignments of proven optimality."""
ENDS = ("", "_low", "_high")

NOTE = (
    "What a feature's partner does, over the sampled features of all jobs and pairs of layers. Drop: share of its "
    "activation that the partner loses when the feature is taken away; 0 without a partner or with one that is silent "
    "there. Top-1, drop MRR: the partner's rank among all features by lost activation. Substitution R: 1 - sum of KL "
    "with the partner in the feature's place / sum of KL without either; 1 = interchangeable, 0 = no better than "
    "removing. AUSQC: R of the top n pairs by the matcher's own confidence, averaged over n; confidences are compared "
    "within a pair of layers, points before the first effect of an ablation are left out, and a matcher without "
    "confidence has none. Fingerprint: correlation of the two features' first-order effects on the loss. "
    "[a, b]: 95 % intervals (bootstrap over features, the same draws for every matcher; texts are fixed). "
    "Coverage, matching score, Δ loss (splice along the pairs) and seconds: means over pairs of layers. "
    "Rank by {main}: 1 + the number of matchers that are better with an interval of the paired difference, on the "
    "features on which both were tested, that excludes 0. Rows without rank are references."
)
DECOMPOSITION_NOTE = (
    "What the similarity and what the assignment contributes. Differences: to the certified assignment of the same "
    "similarity, paired, on the features on which both were tested, with 95 % intervals. Loss in own objective: how "
    "far the pairs are from the certified optimum of their similarity, mean over pairs of layers; below 0 where "
    "features may share a partner, – where another number of pairs is matched."
)


def leaderboard(directory: Path | str, samples: int = SAMPLES) -> pd.DataFrame:
    """The leaderboard of all jobs at or below a directory: one row per role of a pair and matcher, the best first, then
    references.

    Columns: role, matcher, variant (its name in pairs.csv), rank, features (sampled), main (the number that ranks), and
    of every number in `COLUMNS` the value, and of those with resamples `_low`, `_high` (95 %, bootstrap over features)
    and, of those in `RANKED`, `_rank`.

    Args:
        samples: resamples of the features.

    Raises:
        UserError: no job, no finished job with functional tests, or a damaged file.
    """
    tests = read_tests(find_records([Path(directory)]))
    if tests is None:
        raise UserError(f"{directory}: no finished job holds functional tests. Run with evaluation.functional.")
    return Leaderboard(tests, samples).frame


@dataclass(frozen=True)
class Leaderboard:
    """The tests of a report's jobs, compared."""

    tests: Tests
    samples: int = SAMPLES

    @cached_property
    def roles(self) -> dict[str, Scores]:
        """The numbers on all sampled features, by role of the pair."""
        parts = dict(iter(self.tests.features.groupby("role")))
        return {role: Scores(parts[role], self.samples) for role in ROLES if role in parts}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """`leaderboard`."""
        return pd.concat([self._ranked(role, scores) for role, scores in self.roles.items()], ignore_index=True)

    def _ranked(self, role: str, scores: Scores) -> pd.DataFrame:
        competing = [name for name in scores.matchers if name not in REFERENCES]
        ranks = {metric: scores.ranks(metric, competing) for metric in RANKED}
        order = COMPARED[::-1] if role == "seeds" else COMPARED
        main = next((metric for metric in (*order, *RANKED) if ranks[metric]), order[0])
        plain = self._plain(role)
        rows = []
        for name in scores.matchers:
            row: dict[str, Any] = {"role": role, "matcher": self.tests.names[name], "variant": name}
            row |= {"rank": ranks[main].get(name), "features": scores.count(main, name), "main": main}
            for metric in COLUMNS:
                if metric in TESTED:
                    row |= with_ends(metric, scores.estimate(metric, name))
                    row |= {f"{metric}_rank": ranks[metric].get(name)} if metric in ranks else {}
                else:
                    row[metric] = plain.get((name, metric), np.nan)
            rows.append(row)
        place = list(REFERENCES)
        frame = pd.DataFrame(rows).astype({name: "Int64" for name in ("rank", *(f"{name}_rank" for name in RANKED))})
        frame["beneath"] = [place.index(name) + 1 if name in place else 0 for name in frame["variant"]]
        frame = frame.sort_values(["beneath", main], ascending=[True, False], kind="stable").drop(columns="beneath")
        return frame.reset_index(drop=True)

    def _plain(self, role: str) -> dict[tuple[str, str], float]:
        numbers = self.tests.numbers[self.tests.numbers["role"] == role]
        return dict(numbers.groupby(["matcher", "metric"])["value"].mean())

    @cached_property
    def decomposition(self) -> pd.DataFrame:
        """One row per role and matcher that says what it is made of, by similarity, the certified assignment first.

        Columns: role, similarity, folding, assignment, matcher, variant, coverage, and of each number in `COMPARED`
        value, interval and `_difference` to the certified assignment with its interval; `objective_loss` [%].
        """
        rows = []
        for role, scores in self.roles.items():
            plain, cells = self._plain(role), self._cells(scores)
            for (similarity, folding), group in cells.items():
                best = group[0][1] if group[0][0] in CERTIFIED else None
                for assignment, name in group:
                    row: dict[str, Any] = {"role": role, "similarity": similarity, "folding": folding}
                    row |= {"assignment": assignment, "matcher": self.tests.names[name], "variant": name}
                    row["coverage"] = plain.get((name, "coverage"), np.nan)
                    for metric in COMPARED:
                        row |= with_ends(metric, scores.estimate(metric, name))
                        against = best is not None and best != name
                        less = scores.difference(metric, name, str(best)) if against else Interval(*[np.nan] * 3)
                        row |= with_ends(f"{metric}_difference", less)
                    row["objective_loss"] = np.nan if best is None else self._objective_loss(role, name, best)
                    rows.append(row)
        return pd.DataFrame(rows)

    def _cells(self, scores: Scores) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Similarity and folding -> assignment and matcher, the certified one first."""
        cells: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for name in scores.matchers:
            if part := self.tests.parts.get(name):
                cells.setdefault((part["similarity"], part["folding"]), []).append((part["assignment"], name))
        order = list(CERTIFIED)
        return {
            key: sorted(group, key=lambda entry: (order.index(entry[0]) if entry[0] in order else len(order), *entry))
            for key, group in sorted(cells.items())
        }

    def _objective_loss(self, role: str, name: str, best: str) -> float:
        """By how many percent of the optimum the pairs of a matcher are worse in its similarity's own objective."""
        numbers = self.tests.numbers[self.tests.numbers["role"] == role]
        table = numbers.pivot_table(
            index=["matcher", "job", "layer", "layer_to"], columns="metric", values="value", sort=False
        ).reindex(columns=["objective", "mean_similarity", "matched_pairs"])
        there = table.index.get_level_values("matcher")
        if name not in there or best not in there:
            return float("nan")
        ours, optimum = (table.xs(matcher, level="matcher") for matcher in (name, best))
        similar = (optimum["mean_similarity"] - ours["mean_similarity"]) / optimum["mean_similarity"].abs()
        distant = (ours["objective"] - optimum["objective"]) / optimum["objective"].abs()
        loss = 100 * similar.fillna(distant).where(ours["matched_pairs"].eq(optimum["matched_pairs"]))
        return float(loss.replace([np.inf, -np.inf], np.nan).mean())

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """By the names of their CSV files."""
        parts = {"decomposition.csv": self.decomposition} if len(self.decomposition) else {}
        return {"leaderboard.csv": self.frame, **parts}

    @property
    def tables(self) -> dict[str, Table]:
        """By section of the report."""
        parts = {"decomposition": self._decomposition_table()} if len(self.decomposition) else {}
        return {"leaderboard": self._leaderboard_table(), **parts}

    def _leaderboard_table(self) -> Table:
        shown = [name for name in COLUMNS if self.frame[name].notna().any()]
        header = ["pairs", "rank", "matcher", *(COLUMNS[name] for name in shown)]
        rows = []
        for role, row in zip(self.frame["role"], self.frame.to_dict("records"), strict=True):
            place = Cell(ABSENT) if pd.isna(row["rank"]) else Cell(f"#{row['rank']}", float(row["rank"]))
            first = row["main"] if place.text == "#1" else ""
            numbers = [_cell(row, name, "first" if name == first else "") for name in shown]
            rows.append([Cell(ROLES[role]), place, Cell(row["matcher"], title=row["variant"]), *numbers])
        used = self.frame.drop_duplicates("role")
        mains = zip(used["main"].map(COLUMNS), used["role"].map(ROLES), strict=True)
        main = "; ".join(f"{name} ({pairs})" for name, pairs in mains)
        return Table(header, rows, header[3:], ["pairs"], NOTE.format(main=main))

    def _decomposition_table(self) -> Table:
        header = ["pairs", "similarity", "assignment", "coverage"]
        for name in COMPARED:
            header += [COLUMNS[name], f"{COLUMNS[name]} less certified"]
        header.append("loss in own objective, % ↓")
        rows = []
        for row in self.decomposition.to_dict("records"):
            parts = {key: str(row[key]) for key in ("similarity", "folding")}
            cells = [Cell(ROLES[row["role"]]), Cell(similarity_of(parts)), Cell(row["assignment"])]
            cells.append(_cell(row, "coverage"))
            for name in COMPARED:
                cells += [_cell(row, name), _cell(row, f"{name}_difference")]
            rows.append([*cells, _cell(row, "objective_loss")])
        return Table(header, rows, header[3:], header[:3], DECOMPOSITION_NOTE)


def with_ends(name: str, interval: Interval) -> dict[str, float]:
    """The value and the ends of the interval by column."""
    return {f"{name}{end}": number for end, number in zip(ENDS, interval, strict=True)}


def _cell(row: Mapping[Any, Any], name: str, kind: str = "") -> Cell:
    if pd.isna(row[name]):
        return Cell(ABSENT)
    plain = f"{name}_low" not in row
    text = format_value(float(row[name])) if plain else format_row(row, *(f"{name}{end}" for end in ENDS))
    return Cell(text, float(row[name]), kind=kind)


def make_leaderboard(jobs: Sequence[Record]) -> Leaderboard | None:
    """The leaderboard of a report's jobs; None where no finished one holds functional tests.

    Raises:
        UserError: a file is damaged.
    """
    tests = read_tests(jobs)
    return None if tests is None else Leaderboard(tests)
