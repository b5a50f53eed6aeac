"""Ranks of the jobs of a sweep, metric by metric; the effect of each factor with the others held fixed, and where it
depends on another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..metrics.bootstrap import MIN_DOCUMENTS, Estimate
from ..record.labels import BUILT_IN_LABELS, Labels
from .records import Record, comparison_keys, setting
from .resampling import Mean, means

Resampled = Mapping[Path, Mapping[str, Mean]]
"""A record's path -> headline number -> its mean on shared resamples, where the record has sums per document."""


def compared_metrics(
    records: Sequence[Record], asked: Sequence[str] | None = None, labels: Labels = BUILT_IN_LABELS
) -> list[str]:
    """The headline numbers (those asked for, or the usual ones) in which at least two finished jobs differ."""
    values = {name: [record.number(name) for record in records] for name in asked or labels.compared}
    return [name for name, found in values.items() if len(set(found) - {None}) > 1]


def resample(records: Sequence[Record], names: Sequence[str], labels: Labels = BUILT_IN_LABELS) -> Resampled:
    """The headline numbers of every record on resamples that all of them share."""
    return {record.path: means(record.sources, names, labels) for record in records}


class Ranking(NamedTuple):
    """Ranks of one metric, 1 for the best, by the record's place; whether ties are those of paired intervals; and
    whether there are jobs over other layers, among which they do not count."""

    ranks: dict[int, int]
    paired: bool
    several: bool = False


def rank(records: Sequence[Record], name: str, resampled: Resampled, labels: Labels = BUILT_IN_LABELS) -> Ranking:
    """1 + the number of jobs that are better, where better means: the 95 % interval of the paired difference excludes
    0. Without paired differences between all of the jobs: 1 + the number of jobs with a better value. No ranks where
    the documents are too few for an interval. Jobs are compared with those over the same layers only: others are
    easier or harder, whatever the method."""
    spans: dict[str, dict[int, float]] = {}
    for place, record in enumerate(records):
        if (value := record.number(name)) is not None:
            spans.setdefault(repr(record.config.get("layers")), {})[place] = value
    sign = -1.0 if labels.of_number(name).better == "lower" else 1.0
    found = [_rank(records, name, values, sign, resampled) for values in spans.values() if len(values) > 1]
    ranks = {place: number for one in found for place, number in one.ranks.items()}
    return Ranking(ranks, bool(found) and all(one.paired for one in found), len(spans) > 1)


def _rank(
    records: Sequence[Record], name: str, values: Mapping[int, float], sign: float, resampled: Resampled
) -> Ranking:
    known = [mean for place in values if (mean := resampled[records[place].path].get(name)) is not None]
    paired = len(known) == len(values) > 1 and len({mean.over for mean in known}) == 1
    if paired:
        replicates = sign * np.stack([mean.estimate.replicates for mean in known])
        if np.isnan(replicates).all():
            return Ranking({}, paired)
        better = [_lower_ends(replicates - row) > 0 for row in replicates]
    else:
        signed = sign * np.array(list(values.values()))
        better = [signed > value for value in signed]
    return Ranking({place: 1 + int(np.sum(row)) for place, row in zip(values, better, strict=True)}, paired)


def _lower_ends(differences: np.ndarray) -> np.ndarray:
    """The lower end of the 95 % interval of each row; resamples without a value are left out."""
    if np.isfinite(differences).all():
        return np.quantile(differences, 0.025, axis=1)
    finite = [row[np.isfinite(row)] for row in differences]
    return np.array([np.quantile(row, 0.025) if len(row) else -np.inf for row in finite])


def ranking_note(rankings: Mapping[str, Ranking]) -> str:
    """How the ranks were made."""
    none = [name for name, ranking in rankings.items() if ranking.paired and not ranking.ranks]
    paired = [name for name, ranking in rankings.items() if ranking.paired and name not in none]
    plain = [name for name, ranking in rankings.items() if ranking.ranks and not ranking.paired]
    text = "#1 is the best; ↓ marks numbers of which the lower is better."
    if paired:
        text += (
            f" Ranks of {', '.join(paired)}: 1 + the number of jobs that are better with a 95 % interval of the paired "
            "difference (same documents, resampled together) that excludes 0."
        )
    if plain:
        text += f" Ranks of {', '.join(plain)}: of the plain values, without paired differences between all jobs."
    if any(ranking.several for ranking in rankings.values()):
        text += " Ranks are among the jobs over the same layers."
    if none:
        text += (
            f" No ranks of {', '.join(none)}: fewer than {MIN_DOCUMENTS} documents give no interval, so no difference "
            "is decided."
        )
    return text


def ablation_frame(records: Sequence[Record], rankings: Mapping[str, Ranking]) -> pd.DataFrame:
    """One row per job: its name and state, the settings that vary, and per metric (a key of `rankings`) the value, the
    ends of its 95 % interval and its rank, empty where the job has none."""
    keys = comparison_keys(records)
    rows: list[dict[str, Any]] = []
    for place, record in enumerate(records):
        row: dict[str, Any] = {"job": record.name, "state": record.state}
        row |= {key: setting(record, key) for key in keys}
        for name, ranking in rankings.items():
            row |= {f"{name}{end}": record.number(f"{name}{end}") for end in ("", "_low", "_high")}
            row[f"{name}_rank"] = ranking.ranks.get(place)
        rows.append(row)
    return pd.DataFrame(rows).astype({f"{name}_rank": "Int64" for name in rankings})


EFFECT_NUMBERS = ("effect", "smallest", "largest", "low", "high")
EFFECT_COLUMNS = (
    "factor", "level", "reference", "where", "metric", *EFFECT_NUMBERS, "cells", "unmatched", "depends_on", "jobs",
)  # fmt: skip


def factors(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """The settings that vary; those that split the jobs in the same way are one factor, since nothing tells their
    effects apart."""
    configured = [record for record in records if record.config]
    splits: dict[tuple[int, ...], list[str]] = {}
    for key in comparison_keys(records):
        values = [repr(setting(record, key)) for record in configured]
        splits.setdefault(tuple(map(values.index, values)), []).append(key)
    return [tuple(keys) for keys in splits.values()]


def effects_frame(records: Sequence[Record], metrics: Sequence[str], resampled: Resampled) -> pd.DataFrame:
    """The mean difference of each level of a factor but the first to the first level, over the cells (pairs of finished
    jobs that differ in nothing else), by metric; and where it depends on another factor, at each level of that one.

    It depends on another factor where two levels of that one give effects that differ (`_differ`).

    Columns: factor, level, reference, where (`key=level` of the other factor; empty for the mean over all cells),
    metric, effect, smallest, largest (of the cells), low, high (the 95 % interval of the mean where every cell has a
    paired difference over documents), cells, unmatched (jobs of the level without a finished partner), depends_on (in
    rows of the mean over all cells: the other factors), jobs (the pairs subtracted). A level without a cell keeps its
    rows, without numbers.
    """
    rows: list[dict[str, Any]] = []
    every = factors(records)
    for keys in every:
        rest = [other for other in every if other is not keys]
        others = [key for other in rest for key in other]
        levels: dict[str, list[Record]] = {}
        for record in records:
            if record.config:
                levels.setdefault(_values(record, keys), []).append(record)
        first, *further = levels.values()
        references = {_values(record, others): record for record in first if record.state == "done"}
        for there in further:
            contrast = Contrast([(job, references.get(_values(job, others))) for job in there], resampled)
            about = {
                "factor": " + ".join(keys), "level": _named(there[0], keys), "reference": _named(first[0], keys),
            }  # fmt: skip
            splits = {other: contrast.split(other) for other in rest}
            dependent = {
                name: [other for other, parts in splits.items() if _differ(parts.values(), name)] for name in metrics
            }
            rows += contrast.rows(about, metrics, {name: _joined(found) for name, found in dependent.items()})
            for other in rest:
                if any(other in found for found in dependent.values()):
                    for where, part in splits[other].items():
                        rows += part.rows({**about, "where": where}, metrics)
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


@dataclass(frozen=True)
class Contrast:
    """Jobs of one level of a factor, each with the finished job that differs from it in nothing else, if there is
    one."""

    jobs: Sequence[tuple[Record, Record | None]]
    resampled: Resampled

    @property
    def cells(self) -> list[tuple[Record, Record]]:
        """The pairs of finished jobs."""
        return [(ours, theirs) for ours, theirs in self.jobs if ours.state == "done" and theirs is not None]

    def split(self, keys: Sequence[str]) -> dict[str, Contrast]:
        """The jobs at each level of another factor, by `key=level`."""
        parts: dict[str, list[tuple[Record, Record | None]]] = {}
        for ours, theirs in self.jobs:
            named = ", ".join(f"{key}={setting(ours, key)}" for key in keys)
            parts.setdefault(named, []).append((ours, theirs))
        return {where: Contrast(jobs, self.resampled) for where, jobs in parts.items()}

    def effect(self, name: str) -> Effect:
        """The effect on one metric."""
        differences: list[float] = []
        estimates: list[Estimate] = []
        for ours, theirs in self.cells:
            a, b = ours.number(name), theirs.number(name)
            if a is not None and b is not None:
                differences.append(a - b)
                mean = self.resampled[ours.path].get(name)
                difference = mean.less(self.resampled[theirs.path].get(name)) if mean is not None else None
                estimates += [] if difference is None else [difference]
        paired = len(estimates) == len(differences) > 0
        return Effect(differences, Estimate.mean(estimates) if paired else None)

    def rows(
        self, about: Mapping[str, str], metrics: Sequence[str], depends: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """A row per metric of `effects_frame`."""
        cells = self.cells
        shared = {"where": "", **about, "unmatched": len(self.jobs) - len(cells)}
        shared["jobs"] = "; ".join(f"{ours.name} - {theirs.name}" for ours, theirs in cells)
        return [
            {**shared, "metric": name, "depends_on": (depends or {}).get(name, ""), **self.effect(name).numbers}
            for name in metrics
        ]


@dataclass(frozen=True)
class Effect:
    """Differences of one metric between jobs, and the paired estimate of their mean where documents give one."""

    differences: Sequence[float]
    estimate: Estimate | None

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of a row of `effects_frame`."""
        if not self.differences:
            return dict.fromkeys(EFFECT_NUMBERS) | {"cells": 0}
        low, high = self.estimate.interval if self.estimate is not None else (None, None)
        mean = float(np.mean(self.differences))
        numbers = mean, min(self.differences), max(self.differences), low, high
        return dict(zip(EFFECT_NUMBERS, numbers, strict=True)) | {"cells": len(self.differences)}


def _differ(parts: Iterable[Contrast], name: str) -> bool:
    """Whether the effect on a metric depends on the factor at whose levels these contrasts are.

    With paired estimates: the interval of the difference between two of the effects excludes 0, at 95 % for all pairs
    of levels together (Bonferroni). Without, for numbers that are exact, such as those of weights: their signs differ,
    or one is more than twice another.
    """
    found = [effect for effect in (part.effect(name) for part in parts) if effect.differences]
    if len(found) < 2:
        return False
    estimates = [effect.estimate for effect in found if effect.estimate is not None]
    if len(estimates) < len(found):
        means = [float(np.mean(effect.differences)) for effect in found]
        sizes = np.abs(means)
        return len(set(np.sign(means))) > 1 or bool(sizes.max() > 2 * sizes.min())
    pairs = list(combinations(estimates, 2))
    tail = 0.025 / len(pairs)
    differences = [(a - b).replicates for a, b in pairs]
    ends = [np.quantile(row[np.isfinite(row)], (tail, 1 - tail)) for row in differences if np.isfinite(row).any()]
    return any(low > 0 or high < 0 for low, high in ends)


def _named(record: Record, keys: Sequence[str]) -> str:
    return ", ".join(str(setting(record, key)) for key in keys)


def _joined(factors: Sequence[Sequence[str]]) -> str:
    return ", ".join(" + ".join(keys) for keys in factors)


def _values(record: Record, keys: Sequence[str]) -> str:
    return repr([setting(record, key) for key in keys])


def effects_note(frame: pd.DataFrame) -> str:
    """How the effects were made."""
    text = (
        "Mean difference over the jobs that differ in this factor alone; the first level that was run is the reference."
    )
    with_interval = frame["low"].notna()
    if with_interval.any():
        text += " [a, b]: 95 % interval of the mean over documents (the same documents resampled in both jobs)."
    if (~with_interval & frame["cells"].gt(1)).any():
        text += " (a … b): the smallest and the largest difference; no interval, plain differences of the jobs' means."
    if frame["depends_on"].ne("").any():
        text += (
            " *: no one effect, it depends on another factor, at whose levels the rows below give it. That is so where "
            "the effects at two of the levels differ: the interval of their paired difference excludes 0 (95 % for all "
            "pairs of levels together); for exact numbers, which have no interval, their signs differ or one is more "
            "than twice the other."
        )
    return text
