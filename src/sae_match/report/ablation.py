"""Ranks of the jobs of a sweep, metric by metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..metrics.bootstrap import MIN_DOCUMENTS
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
