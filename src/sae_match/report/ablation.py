"""Statistics of a factorial design: ranks of the jobs, and the effect of each factor with the others held fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
EFFECT_NUMBERS = ("effect", "smallest", "largest", "low", "high")


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
    """Ranks of one metric, 1 for the best, by the record's place; and whether ties are those of paired intervals."""

    ranks: dict[int, int]
    paired: bool


def rank(records: Sequence[Record], name: str, resampled: Resampled, labels: Labels = BUILT_IN_LABELS) -> Ranking:
    """1 + the number of jobs that are better, where better means: the 95 % interval of the paired difference excludes
    0. Without paired differences between all of the jobs: 1 + the number of jobs with a better value. No ranks where
    the documents are too few for an interval."""
    values = {place: value for place, record in enumerate(records) if (value := record.number(name)) is not None}
    sign = -1.0 if labels.of_number(name).better == "lower" else 1.0
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
    plain = [name for name, ranking in rankings.items() if not ranking.paired]
    text = "#1 is the best; ↓ marks numbers of which the lower is better."
    if paired:
        text += (
            f" Ranks of {', '.join(paired)}: 1 + the number of jobs that are better with a 95 % interval of the paired "
            "difference (same documents, resampled together) that excludes 0."
        )
    if plain:
        text += f" Ranks of {', '.join(plain)}: of the plain values, without paired differences between all jobs."
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
    """One row per factor, level but the first, and metric: the mean difference to the first level over the cells (pairs
    of finished jobs that differ in nothing else), the smallest and the largest, and the 95 % interval of the mean where
    every cell has a paired difference over documents.

    Columns: factor, level, reference, metric, effect, smallest, largest, low, high, cells, unmatched (jobs of the level
    without a finished partner), jobs (the pairs subtracted). A level without a cell keeps its rows, without numbers.
    """
    rows = []
    every = factors(records)
    for keys in every:
        others = [key for other in every if other is not keys for key in other]
        levels: dict[str, list[Record]] = {}
        for record in records:
            if record.config:
                levels.setdefault(_values(record, keys), []).append(record)
        first, *further = levels.values()
        references = {_values(record, others): record for record in first if record.state == "done"}
        for there in further:
            done = [(record, references.get(_values(record, others))) for record in there if record.state == "done"]
            cells = [(ours, theirs) for ours, theirs in done if theirs is not None]
            names = [", ".join(str(setting(found[0], key)) for key in keys) for found in (there, first)]
            about = {"factor": " + ".join(keys), "level": names[0], "reference": names[1]}
            pairs = "; ".join(f"{ours.name} - {theirs.name}" for ours, theirs in cells)
            rows += [
                {**about, "metric": name, **_effect(cells, name, resampled), "unmatched": len(there) - len(cells),
                 "jobs": pairs}
                for name in metrics
            ]  # fmt: skip
    columns = ["factor", "level", "reference", "metric", *EFFECT_NUMBERS, "cells", "unmatched", "jobs"]
    return pd.DataFrame(rows, columns=columns)


def _values(record: Record, keys: Sequence[str]) -> str:
    return repr([setting(record, key) for key in keys])


def _effect(cells: Sequence[tuple[Record, Record]], name: str, resampled: Resampled) -> dict[str, Any]:
    differences: list[float] = []
    estimates: list[Estimate] = []
    for ours, theirs in cells:
        a, b = ours.number(name), theirs.number(name)
        if a is not None and b is not None:
            differences.append(a - b)
            mean = resampled[ours.path].get(name)
            difference = mean.less(resampled[theirs.path].get(name)) if mean is not None else None
            estimates += [] if difference is None else [difference]
    if not differences:
        return dict.fromkeys(EFFECT_NUMBERS) | {"cells": 0}
    low, high = Estimate.mean(estimates).interval if len(estimates) == len(differences) else (None, None)
    numbers = float(np.mean(differences)), min(differences), max(differences), low, high
    return dict(zip(EFFECT_NUMBERS, numbers, strict=True)) | {"cells": len(differences)}


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
    return text
