"""What each factor does with all others held fixed: matched cells of the design, level against level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..metrics.bootstrap import Estimate
from ..record.labels import BUILT_IN_LABELS, Labels
from .compare import comparison_keys, setting
from .records import Record
from .resampling import Resamples
from .tables import ABSENT, format_value, markdown_table, metric_value, titled


@dataclass(frozen=True)
class Factor:
    """One or several settings that move together, with their levels in the order of the jobs; the first is the
    reference."""

    keys: tuple[str, ...]
    levels: tuple[tuple[Any, ...], ...]

    @property
    def name(self) -> str:
        """The keys, joined."""
        return " + ".join(self.keys)

    def level(self, record: Record) -> tuple[Any, ...]:
        """The record's values."""
        return tuple(setting(record, key) for key in self.keys)


@dataclass(frozen=True)
class Contrast:
    """One level of a factor against the reference, with the pairs of jobs that differ in nothing else.

    `unmatched` counts the jobs of the level without a finished partner (one of the two failed, or was never run).
    """

    factor: Factor
    level: tuple[Any, ...]
    cells: tuple[tuple[Record, Record], ...]
    unmatched: int


def factors(records: Sequence[Record]) -> list[Factor]:
    """The settings that vary; those that split the jobs in the same way are one factor, since nothing tells their
    effects apart."""
    configured = [record for record in records if record.config]
    splits: dict[tuple[int, ...], list[str]] = {}
    for key in comparison_keys(records):
        seen: dict[str, int] = {}
        split = tuple(seen.setdefault(repr(setting(record, key)), len(seen)) for record in configured)
        splits.setdefault(split, []).append(key)
    found = []
    for keys in splits.values():
        values = {repr(level): level for r in configured if (level := tuple(setting(r, key) for key in keys))}
        found.append(Factor(tuple(keys), tuple(values.values())))
    return found


def contrasts(records: Sequence[Record]) -> list[Contrast]:
    """Every level of every factor against the factor's first level."""
    every = factors(records)
    configured = [record for record in records if record.config]
    return [_contrast(configured, every, factor, level) for factor in every for level in factor.levels[1:]]


def _contrast(records: Sequence[Record], every: Sequence[Factor], factor: Factor, level: tuple[Any, ...]) -> Contrast:
    def others(record: Record) -> str:
        return repr([other.level(record) for other in every if other is not factor])

    references = {others(r): r for r in records if r.state == "done" and factor.level(r) == factor.levels[0]}
    there = [record for record in records if repr(factor.level(record)) == repr(level)]
    cells = tuple((r, references[others(r)]) for r in there if r.state == "done" and others(r) in references)
    return Contrast(factor, level, cells, len(there) - len(cells))


def effects_frame(records: Sequence[Record], metrics: Sequence[str], resamples: Resamples) -> pd.DataFrame:
    """One row per contrast and metric: the mean difference over the matched cells, the smallest and the largest, and
    the 95 % interval of the mean where every cell has a paired difference over documents.

    Columns: factor, level, reference, metric, effect, smallest, largest, low, high, cells, unmatched, jobs (the pairs
    of jobs subtracted). Contrasts without a matched cell keep a row, without numbers.
    """
    rows = [
        {
            "factor": contrast.factor.name,
            "level": _text(contrast.level),
            "reference": _text(contrast.factor.levels[0]),
            "metric": name,
            **_numbers(contrast, name, resamples),
            "unmatched": contrast.unmatched,
            "jobs": "; ".join(f"{ours.name} - {theirs.name}" for ours, theirs in contrast.cells),
        }
        for contrast in contrasts(records)
        for name in metrics
    ]
    columns = ["factor", "level", "reference", "metric", "effect", "smallest", "largest", "low", "high", "cells",
               "unmatched", "jobs"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _numbers(contrast: Contrast, name: str, resamples: Resamples) -> dict[str, Any]:
    differences: list[float] = []
    estimates: list[Estimate] = []
    for ours, theirs in contrast.cells:
        a, b = metric_value(ours, name), metric_value(theirs, name)
        if a is not None and b is not None:
            differences.append(a - b)
            if (estimate := resamples.difference(ours, theirs, name)) is not None:
                estimates.append(estimate)
    if not differences:
        return dict.fromkeys(("effect", "smallest", "largest", "low", "high")) | {"cells": 0}
    like = len(estimates) == len(differences) and len({e.replicates.shape for e in estimates}) == 1
    low, high = Estimate.mean(estimates).interval if like else (None, None)
    return {
        "effect": float(np.mean(differences)),
        "smallest": min(differences),
        "largest": max(differences),
        "low": low,
        "high": high,
        "cells": len(differences),
    }


def effects_table(frame: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS) -> str:
    """The effects as Markdown: one row per contrast, one column per metric."""
    header, rows = effects_rows(frame, metrics, labels)
    return markdown_table(header, rows, right=header[3:])


def effects_rows(
    frame: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text."""
    titles = [titled(name, labels) for name in metrics]
    rows = []
    for (factor, level, reference), group in frame.groupby(["factor", "level", "reference"], sort=False):
        cells = int(group["cells"].max())
        missing = int(group["unmatched"].iloc[0])
        count = f"{cells} (+{missing} without partner)" if missing else str(cells)
        texts = {row["metric"]: effect_text(row) for row in group.to_dict("records")}
        rows.append([str(factor), f"{level} − {reference}", count, *(texts.get(name, ABSENT) for name in metrics)])
    return ["factor", "levels", "cells", *titles], rows


def effect_text(row: dict[Any, Any]) -> str:
    """`+0.012 [low, high]` with an interval, `+0.012 (smallest … largest)` without."""
    if row["cells"] == 0:
        return ABSENT
    sign = "+" if row["effect"] > 0 else ""
    if row["low"] is not None and not pd.isna(row["low"]):
        return sign + format_value(row["effect"], row["low"], row["high"])
    mean = sign + format_value(row["effect"])
    if row["cells"] == 1:
        return mean
    return f"{mean} ({format_value(row['smallest'])} … {format_value(row['largest'])})"


def effects_note(frame: pd.DataFrame) -> str:
    """How the numbers came to be."""
    text = (
        "Mean difference over the jobs that differ in this factor alone; the first level that was run is the reference."
    )
    with_interval = frame["low"].notna()
    if with_interval.any():
        text += " [a, b]: 95 % interval of the mean over documents (the same documents resampled in both jobs)."
    if (~with_interval & frame["cells"].gt(1)).any():
        text += " (a … b): the smallest and the largest difference; no interval, plain differences of the jobs' means."
    return text


def _text(level: tuple[Any, ...]) -> str:
    return ", ".join(str(value) for value in level)
