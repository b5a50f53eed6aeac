"""Rows that follow from other rows: paired differences to every alternative, and to two seeds of one layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sae_match.metrics.bootstrap import Estimate
from sae_match.metrics.description import CEILING, DIFFERENCE, TO_CEILING
from sae_match.metrics.metric import Metric, MetricRow
from sae_match.metrics.registry import BUILT_IN


def difference_rows(rows: Sequence[MetricRow], metrics: Mapping[str, Metric] = BUILT_IN) -> list[MetricRow]:
    """`METRIC_difference` of every other variant V of a pair: the matching's value minus V's.

    Of the metrics whose description asks for it (`difference`), where both values have resamples. The interval is a
    paired one: both are known on the same resamples of documents.
    """
    reference = _references(metrics)
    by_pair: dict[tuple[int, int, str], list[MetricRow]] = defaultdict(list)
    for row in rows:
        if row.metric in reference and row.estimate is not None:
            by_pair[row.layer, row.layer_to, row.metric].append(row)
    found: list[MetricRow] = []
    for (layer, layer_to, metric), group in by_pair.items():
        ours = next((row.estimate for row in group if row.variant == reference[metric]), None)
        for row in group:
            if ours is not None and row.variant != reference[metric] and row.estimate is not None:
                found.append(_row((layer, layer_to), row.variant, metric + DIFFERENCE, ours - row.estimate, row.n))
    return found


def ceiling_gap_rows(rows: Sequence[MetricRow], metrics: Mapping[str, Metric] = BUILT_IN) -> list[MetricRow]:
    """`METRIC_to_ceiling` of each pair that has a layer with two seeds: its value minus that of the seeds' match.

    Where both layers have two seeds, minus the mean of the two.
    """
    reference = _references(metrics)
    ceilings: dict[tuple[str, int], Estimate] = {}
    for row in rows:
        if row.variant == CEILING and row.metric in reference and row.estimate is not None:
            ceilings[row.metric, row.layer] = row.estimate
    found: list[MetricRow] = []
    for row in rows:
        if row.variant != reference.get(row.metric) or row.estimate is None:
            continue
        nearby = [ceilings[row.metric, at] for at in (row.layer, row.layer_to) if (row.metric, at) in ceilings]
        if nearby:
            below = row.estimate - Estimate.mean(nearby)
            found.append(_row((row.layer, row.layer_to), row.variant, row.metric + TO_CEILING, below, row.n))
    return found


def _references(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Of the metrics with differences, the variant that belongs to the matching."""
    return {name: metric.reference for name, metric in metrics.items() if metric.about.difference}


def _row(layers: tuple[int, int], variant: str, metric: str, estimate: Estimate, n: int) -> MetricRow:
    return MetricRow(*layers, variant, metric, estimate.value, n, estimate)
