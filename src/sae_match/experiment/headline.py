"""The flat headline numbers of a job: averages over layer pairs, and composition over distance, with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from sae_match.metrics.bootstrap import Estimate, Floats
from sae_match.metrics.description import headline_name
from sae_match.metrics.metric import MetricRow
from sae_match.pairs import Role
from sae_match.record.labels import BUILT_IN_LABELS, Labels
from sae_match.record.pairs import by_distance

SCORE = "matching_score"
"""The metric that says how far composition reaches."""

MOST_OTHERS = 10
"""Variants beside the matching in the closing lines."""

Curves = dict[tuple[str, str], dict[int, list[MetricRow]]]
"""(metric, variant) -> distance -> one row per start."""


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


def summary_lines(numbers: Mapping[str, float], labels: Labels) -> list[str]:
    """A line per headline metric: the matching's number with its interval, and those of the other variants, of many
    the best."""
    lines: list[str] = []
    for about in labels.metrics.values():
        name = about.numbers[0]
        if about.headline and name in numbers:
            low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
            interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
            others = {
                variant: value
                for other, value in numbers.items()
                for metric, variant in [labels.split(other)]
                if metric.name == about.name and other != name and not other.endswith(("_low", "_high"))
            }
            shown = list(others)
            if len(others) > MOST_OTHERS:
                shown = sorted(others, key=others.__getitem__, reverse=about.better != "lower")[:MOST_OTHERS]
            listed = ", ".join(f"{variant} {others[variant]:.4g}" for variant in shown)
            more = f", {len(others) - len(shown)} more in pairs.csv" if len(shown) < len(others) else ""
            lines.append(f"{about.axis}: {numbers[name]:.4g}{interval}" + (f"; {listed}{more}" if listed else ""))
    return lines


def mean_estimate(group: Sequence[MetricRow]) -> Estimate | None:
    """The mean of the rows' estimates on shared resamples; None unless each has one."""
    estimates = [row.estimate for row in group if row.estimate is not None]
    return Estimate.mean(estimates) if estimates and len(estimates) == len(group) else None


def add_interval(numbers: dict[str, float], name: str, estimate: Estimate | None) -> None:
    """Add `_low` and `_high` of a number, where it has an interval."""
    if estimate is not None and not math.isnan(estimate.interval[0]):
        numbers[f"{name}_low"], numbers[f"{name}_high"] = estimate.interval


def composition_headline(rows: Sequence[MetricRow], labels: Labels = BUILT_IN_LABELS) -> dict[str, float]:
    """`composition/METRIC/VARIANT/distance_D`, averaged over starts, with intervals; and how far composition reaches.

    Of headline metrics and those whose description asks for it (`distance`).

    `composition/beats_random_until` is the distance at which the mean over starts of composed minus random matching
    score falls to 0, interpolated linearly between distances; the largest measured distance where it does not.
    `..._low` and `..._high` bound its 95 % interval over documents (all distances share their resamples), and
    `..._reached` is the share of resamples in which it falls to 0 within the measured distances: 0 says that the
    number is only a lower limit. `composition/half_of_exact_until` is the same for composed minus half of exact.

    Far distances have fewer starts: the mean is over those that reach them.

    Args:
        rows: all rows of the job; empty result if none lies further apart than neighbors.
    """
    curves = _curves(rows)
    numbers: dict[str, float] = {}
    for (metric, variant), curve in curves.items():
        about = labels.metric(metric)
        if (about.headline or about.distance) and variant in Role.distant.variants:
            for distance, group in curve.items():
                name = f"composition/{metric}/{variant}/distance_{distance}"
                numbers[name] = float(np.mean([row.value for row in group]))
                add_interval(numbers, name, mean_estimate(group))
    composed, exact, random = (
        {distance: mean_estimate(group) for distance, group in curves.get((SCORE, variant), {}).items()}
        for variant in Role.distant.variants
    )
    for name, other, share in (("beats_random", random, 1.0), ("half_of_exact", exact, 0.5)):
        numbers |= _reach(f"composition/{name}", composed, other, share)
    return numbers


def reach(distances: Sequence[int], margins: Floats) -> Floats:
    """The distance at which each column first falls to 0 or below, interpolated linearly; the last distance if it
    never does, 0 if it begins there.

    Args:
        distances: ascending, [D].
        margins: [D, R].
    """
    places = np.asarray(distances, dtype=np.float64)
    failed = margins <= 0
    first = np.where(failed.any(axis=0), failed.argmax(axis=0), 0)
    column = np.arange(margins.shape[1])
    before, after = margins[np.maximum(first - 1, 0), column], margins[first, column]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = before / (before - after)
        crossing = places[np.maximum(first - 1, 0)] + share * (places[first] - places[np.maximum(first - 1, 0)])
    return np.where(failed[0], 0.0, np.where(failed.any(axis=0), crossing, places[-1]))


def _reach(
    name: str, composed: dict[int, Estimate | None], other: dict[int, Estimate | None], share: float
) -> dict[str, float]:
    distances = sorted(composed.keys() & other.keys())
    pairs = [(ours, theirs) for ours, theirs in ((composed[d], other[d]) for d in distances) if ours and theirs]
    if len(pairs) < 2 or len(pairs) < len(distances):
        return {}
    values = np.array([[ours.value - share * theirs.value] for ours, theirs in pairs])
    replicates = np.array([ours.replicates - share * theirs.replicates for ours, theirs in pairs])
    until = np.where(np.isnan(replicates).all(axis=0), np.nan, reach(distances, replicates))
    estimate = Estimate(float(reach(distances, values)[0]), until)
    numbers = {f"{name}_until": estimate.value}
    if not np.isnan(until).all():
        numbers[f"{name}_reached"] = float((replicates <= 0).any(axis=0).mean())
    add_interval(numbers, f"{name}_until", estimate)
    for distance, (ours, theirs) in zip(distances, pairs, strict=True):
        margin = Estimate(ours.value - share * theirs.value, ours.replicates - share * theirs.replicates)
        numbers[f"{name}_margin/distance_{distance}"] = margin.value
        add_interval(numbers, f"{name}_margin/distance_{distance}", margin)
    return numbers


def _curves(rows: Sequence[MetricRow]) -> Curves:
    """Rows by metric, variant and distance, of metrics measured beyond neighbors; the smallest distance from the
    adjacent pairs of the starts."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    keys = ((row.layer, row.layer_to, row.variant, row.metric) for row in rows)
    for position, variant, distance in by_distance(keys):
        curves[rows[position].metric, variant][distance].append(rows[position])
    return curves
