"""The ablation table: every combination of the factors that vary, with its numbers, their intervals and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..metrics.bootstrap import MIN_DOCUMENTS
from ..record.labels import BUILT_IN_LABELS, Labels
from .compare import comparison_keys, setting
from .records import Record
from .resampling import Resamples
from .tables import ABSENT, compared_names, format_value, markdown_table, metric_value, titled


@dataclass(frozen=True)
class Ranking:
    """Ranks of one metric, 1 for the best, by the record's place; and whether ties are those of paired intervals."""

    ranks: dict[int, int]
    paired: bool


def rank(records: Sequence[Record], name: str, resamples: Resamples) -> Ranking:
    """1 + the number of jobs that are better, where better means: the 95 % interval of the paired difference excludes
    0. Without paired differences between all of the jobs: 1 + the number of jobs with a better value. None where the
    documents are too few for an interval."""
    values = {place: value for place, record in enumerate(records) if (value := metric_value(record, name)) is not None}
    places, sign = list(values), -1.0 if resamples.labels.of_number(name).better == "lower" else 1.0
    means = [resamples.mean(records[place], name) for place in places]
    known = [mean for mean in means if mean is not None]
    paired = len(known) == len(places) > 1 and len({mean.over for mean in known}) == 1
    if paired:
        replicates = sign * np.stack([mean.estimate.replicates for mean in known])
        if np.isnan(replicates).all():
            return Ranking({}, paired)
        better = [_lower_ends(replicates - row) > 0 for row in replicates]
    else:
        signed = sign * np.array([values[place] for place in places])
        better = [signed > value for value in signed]
    return Ranking({place: 1 + int(np.sum(row)) for place, row in zip(places, better, strict=True)}, paired)


def _lower_ends(differences: np.ndarray) -> np.ndarray:
    """The lower end of the 95 % interval of each row; resamples without a value are left out."""
    if np.isfinite(differences).all():
        return np.quantile(differences, 0.025, axis=1)
    ends = [np.quantile(row[np.isfinite(row)], 0.025) if np.isfinite(row).any() else -np.inf for row in differences]
    return np.array(ends)


def ablation_frame(records: Sequence[Record], rankings: Mapping[str, Ranking]) -> pd.DataFrame:
    """One row per job: its name and state, the settings that vary, and per metric the value, the ends of its 95 %
    interval and its rank (empty where the job has none).

    Args:
        rankings: the metrics, in column order, with their ranks.
    """
    keys = comparison_keys(records)
    rows: list[dict[str, Any]] = []
    for place, record in enumerate(records):
        row: dict[str, Any] = {"job": record.name, "state": record.state}
        row |= {key: setting(record, key) for key in keys}
        for name, ranking in rankings.items():
            for suffix in ("", "_low", "_high"):
                row[f"{name}{suffix}"] = metric_value(record, f"{name}{suffix}")
            row[f"{name}_rank"] = ranking.ranks.get(place)
        rows.append(row)
    ranks = {f"{name}_rank": "Int64" for name in rankings}
    return pd.DataFrame(rows).astype(ranks)


def ablation_cells(frame: pd.DataFrame, metrics: Sequence[str]) -> list[list[str]]:
    """The metrics' columns as text, one list per row: value, interval and rank, or the state of a job without."""
    return [[_cell(row, name) for name in metrics] for row in frame.to_dict("records")]


def ablation_table(
    records: Sequence[Record], frame: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS
) -> str:
    """The ablation table as Markdown."""
    keys = comparison_keys(records)
    settings = [[str(value) for value in row] for row in frame[keys].astype(object).to_numpy().tolist()]
    titles = [titled(name, labels) for name in metrics]
    cells = ablation_cells(frame, metrics)
    rows = [[*s, *c, job] for s, c, job in zip(settings, cells, frame["job"], strict=True)]
    return markdown_table([*keys, *titles, "job"], rows, right=titles)


def ranking_note(rankings: Mapping[str, Ranking]) -> str:
    """How the ranks came to be."""
    none = [name for name, ranking in rankings.items() if ranking.paired and not ranking.ranks]
    paired = [name for name, ranking in rankings.items() if ranking.paired and name not in none]
    plain = [name for name in rankings if name not in (*paired, *none)]
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


def _cell(row: dict[Any, Any], name: str) -> str:
    value = row[name]
    if value is None or pd.isna(value):
        return str(row["state"]) if row["state"] != "done" else ABSENT
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = (None, None) if low is None or pd.isna(low) else (low, high)
    place = row[f"{name}_rank"]
    return f"{format_value(value, *ends)} {'(no interval)' if pd.isna(place) else f'#{place}'}"


def ablation_metrics(
    records: Sequence[Record], asked: Sequence[str] | None = None, labels: Labels = BUILT_IN_LABELS
) -> list[str]:
    """The metrics of the table: of those compared (or asked for), the ones in which finished jobs differ."""
    names = compared_names(records, labels, asked)
    return [name for name in names if len({metric_value(record, name) for record in records} - {None}) > 1]
