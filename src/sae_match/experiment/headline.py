"""The flat headline numbers of a job: the average over layer pairs, with intervals and paired differences."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sae_match.evaluation.rows import MetricRow
from sae_match.metrics.bootstrap import Estimate

SUMMED = ("objective", "lower_bound", "tolerance", "matched_pairs", "solver_seconds", "dead_features/sae",
          "features_aside/sae")  # fmt: skip
"""Numbers that are added up over pairs or layers, as are the counts of `SUMMED_PREFIXES`."""
SUMMED_PREFIXES = ("solver/", "judge_count/")
LARGEST = ("gap", "solver/peak_memory_gib", "solver/cosine_gap", "solver/marginal_error")


def metric_name(row: MetricRow) -> str:
    """`metric` for the matched variant, else `metric/variant`."""
    return row.metric if row.variant == "matched" else f"{row.metric}/{row.variant}"


def headline(rows: list[MetricRow]) -> dict[str, float]:
    """Averages over pairs (or layers), `_low` / `_high` of their 95 % intervals.

    The intervals are over documents: the layer pairs share their resamples, so the interval of the average keeps
    their correlation. `objective`, the solver's seconds and counts are sums; `gap` is the largest.
    """
    grouped: dict[str, list[MetricRow]] = defaultdict(list)
    for row in rows:
        grouped[metric_name(row)].append(row)
    numbers: dict[str, float] = {}
    for name, group in grouped.items():
        numbers[name] = _combine(name, [row.value for row in group])
        _add_interval(numbers, name, _mean_estimate(group))
    return numbers


def _combine(name: str, values: list[float]) -> float:
    if name in LARGEST:
        return float(np.max(values))
    return float(np.sum(values) if name in SUMMED or name.startswith(SUMMED_PREFIXES) else np.mean(values))


def _mean_estimate(group: list[MetricRow]) -> Estimate | None:
    estimates = [row.estimate for row in group if row.estimate is not None]
    return Estimate.mean(estimates) if estimates and len(estimates) == len(group) else None


def _add_interval(numbers: dict[str, float], name: str, estimate: Estimate | None) -> None:
    if estimate is not None:
        numbers[f"{name}_low"], numbers[f"{name}_high"] = estimate.interval
