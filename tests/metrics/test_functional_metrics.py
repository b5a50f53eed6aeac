"""Metrics of functional tests on effects that are computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.functional import FUNCTIONAL, PartnerEffects
from sae_match.metrics.metric import metric_rows

METRICS = {metric.name: metric for metric in FUNCTIONAL}
# Four features; the third one's partner is silent, the last one has none.
EFFECTS = PartnerEffects(
    partner=np.array([7, 3, 5, -1]),
    quartile=np.array([1, 1, 2, 4]),
    context=np.array([0, 0, 1, 2, 3]),
    document=np.array([0, 1, 2, 3, 4]),
    matched=30,
    width=40,
    clean=np.array([2.0, 2.0, 4.0, 0.0, 0.0]),
    ablated=np.array([0.0, 1.0, 6.0, 1.0, 0.0]),
    rank=np.array([1, 4, 9, 0]),
    kl_ablated=np.array([1.0, 1.0, 2.0, 0.0, 0.0]),
    kl_substituted=np.array([0.5, 0.0, 3.0, 1.0, 0.0]),
    fingerprint=np.array([0.5, -0.1, 0.0, 0.0]),
    fingerprint_rank=np.array([2, 5, 10, 0]),
    confidence=np.array([0.2, 0.9, 0.5, np.nan]),
)


def values(effects: PartnerEffects, documents: int = 5) -> dict[str, float]:
    rows = metric_rows(METRICS, effects, Bootstrap(documents, samples=200), (13, 14), "mine")
    assert all(row.variant == "mine" for row in rows)
    return {row.metric: row.value for row in rows}


def test_every_number_by_hand() -> None:
    got = values(EFFECTS)
    # Drops: 1 - 1/4, 1 - 6/4, 0 (silent), 0 (none).
    assert got["deactivation"] == pytest.approx((0.75 - 0.5) / 4)
    assert got["deactivation/q1"] == pytest.approx((0.75 - 0.5) / 2) and got["deactivation/q4"] == 0
    assert got["deactivation_top1"] == 0.25 and got["deactivation_silent"] == 0.25
    assert got["deactivation_mrr"] == pytest.approx((1 + 1 / 4 + 1 / 9) / 4)
    assert got["substitution"] == pytest.approx(1 - 4.5 / 4)
    assert got["substitution/q1"] == pytest.approx(1 - 3.5 / 4)
    # By confidence: feature 1, then 2, then 0.
    assert got["ausqc"] == pytest.approx(np.mean([1 - 3 / 2, 1 - 4 / 2, 1 - 4.5 / 4]))
    assert got["fingerprint"] == pytest.approx(0.1)
    assert got["fingerprint_mrr"] == pytest.approx((1 / 2 + 1 / 5 + 1 / 10) / 4)
    assert got["coverage"] == 0.75


def test_drops_are_clipped_at_minus_one() -> None:
    worse = replace(EFFECTS, ablated=np.array([0.0, 1.0, 60.0, 1.0, 0.0]))
    assert values(worse)["deactivation"] == pytest.approx((0.75 - 1) / 4)


def test_what_was_not_run_has_no_number() -> None:
    only = replace(EFFECTS, kl_ablated=None, kl_substituted=None, fingerprint=None, fingerprint_rank=None, matched=None)
    assert set(values(only)) == {
        "deactivation", "deactivation/q1", "deactivation/q2", "deactivation/q3", "deactivation/q4",
        "deactivation_top1", "deactivation_mrr", "deactivation_silent",
    }  # fmt: skip
    assert "ausqc" not in values(replace(EFFECTS, confidence=None))


def test_resamples_are_those_of_documents_and_features() -> None:
    """Each replicate is the statistic of the documents and features that were drawn, computed one by one."""
    bootstrap = Bootstrap(5, samples=40, seed=3)
    found = METRICS["deactivation"].measured(EFFECTS, bootstrap)
    ratio = METRICS["substitution"].measured(EFFECTS, bootstrap)
    assert found is not None and found.estimate is not None and ratio is not None and ratio.estimate is not None
    drops = [0.75, -0.5, 0.0, 0.0]
    for b, (documents, features) in enumerate(zip(bootstrap.counts, bootstrap.draws(4), strict=True)):
        weights, removed, replaced = [], 0.0, 0.0
        for i in range(4):
            at = np.flatnonzero(EFFECTS.context == i)
            w = documents[EFFECTS.document[at]]
            removed += features[i] * (w * EFFECTS.kl_ablated[at]).sum()
            replaced += features[i] * (w * EFFECTS.kl_substituted[at]).sum()
            weights.append(features[i] * w.mean())
        expected = np.average(drops, weights=weights) if sum(weights) else np.nan
        np.testing.assert_allclose(found.estimate.replicates[b], expected)
        if removed > 0:
            np.testing.assert_allclose(ratio.estimate.replicates[b], 1 - replaced / removed)


def test_matchers_share_their_resamples() -> None:
    bootstrap = Bootstrap(5, samples=100)
    one, same = (METRICS["deactivation"].measured(EFFECTS, bootstrap) for _ in range(2))
    assert one is not None and same is not None and one.estimate is not None and same.estimate is not None
    assert (one.estimate - same.estimate).interval == (0, 0)


def test_too_few_documents_give_no_interval() -> None:
    few = replace(EFFECTS, document=np.array([0, 1, 2, 0, 1]))
    found = METRICS["deactivation"].measured(few, Bootstrap(3, samples=20))
    assert found is not None and found.estimate is not None and np.isnan(found.estimate.interval[0])
