"""Difference rows against a bootstrap by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sae_match.evaluation.differences import ceiling_gap_rows, difference_rows
from sae_match.metrics.bootstrap import Bootstrap, Estimate
from sae_match.metrics.metric import MetricRow

TOGETHER = {"matched": [4, 2, 5, 3], "greedy": [3, 2, 4, 3], "seeds": [5, 4, 5, 6]}
ACTIVE = [8, 5, 9, 7]
BOOTSTRAP = Bootstrap(4, samples=400, seed=2)


def ratio(name: str) -> Estimate:
    return BOOTSTRAP.ratio(np.array(TOGETHER[name], dtype=float), np.array(ACTIVE, dtype=float))


def row(variant: str, estimate: Estimate | None, layers: tuple[int, int] = (1, 2), metric: str = "") -> MetricRow:
    value = 1.0 if estimate is None else estimate.value
    return MetricRow(*layers, variant, metric or "matching_score", value, 3, estimate)


def by_hand(one: str, other: str) -> tuple[float, float, float]:
    counts = np.random.default_rng(2).multinomial(4, [1 / 4] * 4, size=400)
    totals = [counts @ np.array(values) / (counts @ np.array(ACTIVE)) for values in (TOGETHER[one], TOGETHER[other])]
    low, high = np.quantile(totals[0] - totals[1], (0.025, 0.975))
    return (sum(TOGETHER[one]) - sum(TOGETHER[other])) / sum(ACTIVE), float(low), float(high)


def test_the_matching_minus_the_control_in_pairs() -> None:
    rows = [
        row("greedy", ratio("greedy")),
        row("matched", ratio("matched")),
        row("matched", None, metric="weight_mse/W"),
    ]
    (found,) = difference_rows(rows)
    assert (found.layer, found.layer_to, found.variant, found.metric) == (1, 2, "greedy", "matching_score_difference")
    assert found.estimate is not None
    assert (found.value, *found.estimate.interval) == pytest.approx(by_hand("matched", "greedy"))


def test_splices_are_compared_with_encode_permute_decode() -> None:
    rows = [
        row("encode_permute_decode", ratio("matched"), metric="delta_loss"),
        row("linear_map", ratio("greedy"), metric="delta_loss"),
        row("linear_map", ratio("greedy"), (2, 3), "delta_loss"),  # a pair without a matching has no differences
    ]
    (found,) = difference_rows(rows)
    assert (found.variant, found.metric) == ("linear_map", "delta_loss_difference")
    assert found.value == pytest.approx(by_hand("matched", "greedy")[0])


def test_neighbors_are_compared_with_the_seeds_of_their_layer() -> None:
    rows = [
        row("matched", ratio("matched"), (1, 2)),
        row("matched", ratio("greedy"), (2, 3)),
        row("matched", ratio("matched"), (3, 4)),
        row("ceiling", ratio("seeds"), (2, 2)),
    ]
    below, above = ceiling_gap_rows(rows)
    assert (below.layer, below.layer_to, below.metric) == (1, 2, "matching_score_to_ceiling")
    assert (above.layer, above.layer_to) == (2, 3)
    assert below.estimate is not None
    assert (below.value, *below.estimate.interval) == pytest.approx(by_hand("matched", "seeds"))
    # With a second seed at layer 1 as well, its pair is compared with the mean of the two.
    both = ceiling_gap_rows([*rows, row("ceiling", ratio("greedy"), (1, 1))])
    expected = by_hand("matched", "seeds")[0] + by_hand("matched", "greedy")[0]
    assert both[0].value == pytest.approx(expected / 2)


def test_a_ceiling_has_no_differences_of_its_own() -> None:
    assert difference_rows([row("ceiling", ratio("seeds"), (2, 2))]) == []
