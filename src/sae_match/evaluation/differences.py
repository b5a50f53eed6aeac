"""Paired differences within a job: the matching against every alternative, and against two seeds of one layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.standard_splices import ENCODE_PERMUTE_DECODE
from sae_match.metrics.bootstrap import Estimate

SCORES = ("matching_score", "matching_score_per_feature", "matching_iou")
SPLICED = ("explained_variance", "delta_loss")
OURS = dict.fromkeys(SCORES, "matched") | dict.fromkeys(SPLICED, ENCODE_PERMUTE_DECODE)
"""Per metric the variant that belongs to the matching."""
CEILING = "ceiling"


def difference_rows(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """`METRIC_difference` of every other variant V of a pair: the matching's value minus V's.

    The interval is a paired one: both are known on the same resamples of documents.
    """
    by_pair: dict[tuple[int, int, str], list[MetricRow]] = defaultdict(list)
    for row in rows:
        if row.metric in OURS and row.estimate is not None:
            by_pair[row.layer, row.layer_to, row.metric].append(row)
    found: list[MetricRow] = []
    for (layer, layer_to, metric), group in by_pair.items():
        ours = next((row.estimate for row in group if row.variant == OURS[metric]), None)
        if ours is None:
            continue
        for row in group:
            if row.variant != OURS[metric] and row.estimate is not None:
                name = f"{metric}_difference"
                found.append(_row((layer, layer_to), row.variant, name, ours - row.estimate, row.n))
    return found


def ceiling_rows(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """`METRIC_to_ceiling` of each pair that has a layer with two seeds: its value minus that of the seeds' match.

    Where both layers have two seeds, minus the mean of the two.
    """
    ceilings: dict[tuple[str, int], Estimate] = {}
    for row in rows:
        if row.variant == CEILING and row.metric in OURS and row.estimate is not None:
            ceilings[row.metric, row.layer] = row.estimate
    found: list[MetricRow] = []
    for row in rows:
        if row.variant != OURS.get(row.metric) or row.estimate is None:
            continue
        nearby = [ceilings[row.metric, at] for at in (row.layer, row.layer_to) if (row.metric, at) in ceilings]
        if nearby:
            below = row.estimate - Estimate.mean(nearby)
            found.append(_row((row.layer, row.layer_to), row.variant, f"{row.metric}_to_ceiling", below, row.n))
    return found


def _row(layers: tuple[int, int], variant: str, metric: str, estimate: Estimate, n: int) -> MetricRow:
    return MetricRow(*layers, variant, metric, estimate.value, n, estimate)
