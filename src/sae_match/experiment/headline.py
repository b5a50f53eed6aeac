"""The flat headline numbers of a job: the average over layer pairs, with intervals and paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from sae_match.evaluation.rows import MetricRow
from sae_match.metrics.bootstrap import Estimate
from sae_match.metrics.description import headline_name
from sae_match.record.labels import BUILT_IN_LABELS, Labels


def headline(rows: Sequence[MetricRow], labels: Labels = BUILT_IN_LABELS) -> dict[str, float]:
    """Averages over pairs (or layers), `_low` / `_high` of their 95 % intervals.

    The intervals are over documents: the layer pairs share their resamples, so the interval of the average keeps
    their correlation. Where a metric's description says so, the sum or the largest value takes the average's place.
    """
    grouped: dict[tuple[str, str], list[MetricRow]] = defaultdict(list)
    for row in rows:
        grouped[row.metric, row.variant].append(row)
    numbers: dict[str, float] = {}
    for (metric, variant), group in grouped.items():
        name = headline_name(metric, variant)
        numbers[name] = labels.metric(metric).over_pairs([row.value for row in group])
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
