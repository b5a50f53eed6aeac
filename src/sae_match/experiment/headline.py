"""The flat headline numbers of a job: the average over layer pairs, with intervals and paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from sae_match.evaluation.rows import MetricRow
from sae_match.metrics.bootstrap import Estimate
from sae_match.record.averaging import combine, headline_name


def metric_name(row: MetricRow) -> str:
    """`metric` for the matched variant, else `metric/variant`."""
    return headline_name(row.metric, row.variant)


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
        numbers[name] = combine(name, [row.value for row in group])
        add_interval(numbers, name, mean_estimate(group))
    return numbers


def mean_estimate(group: Sequence[MetricRow]) -> Estimate | None:
    """The mean of the rows' estimates on shared resamples; None unless each has one."""
    estimates = [row.estimate for row in group if row.estimate is not None]
    return Estimate.mean(estimates) if estimates and len(estimates) == len(group) else None


def add_interval(numbers: dict[str, float], name: str, estimate: Estimate | None) -> None:
    """Add `_low` and `_high` of a number, where it has an interval."""
    if estimate is not None and not math.isnan(estimate.interval[0]):
        numbers[f"{name}_low"], numbers[f"{name}_high"] = estimate.interval
