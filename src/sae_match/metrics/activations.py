"""How often matched features fire together: matching_score and its relatives, from counts per document."""

from __future__ import annotations

import numpy as np

from sae_match.metrics.bootstrap import Bootstrap, Estimate, Floats
from sae_match.metrics.description import Description
from sae_match.metrics.metric import ActivationMetric, PairCounts


class MatchingScore(ActivationMetric):
    """P(partner fires | feature fires), pooled: sum_i sum_t [f_i > 0 and f_pi(i) > 0] / sum_i sum_t [f_i > 0].

    An unmatched feature never co-fires, but stays in the denominator.
    """

    about = Description(
        name="matching_score",
        label="matching score",
        unit="probability",
        better="higher",
        headline=True,
        difference=True,
        figure="record",
        beside=("random", "vanilla", "ceiling"),
        statistic="ratio",
    )

    def estimate(self, counts: PairCounts, bootstrap: Bootstrap) -> Estimate:
        """Pooled over features and tokens."""
        return bootstrap.ratio(counts.together.sum(axis=1), counts.active_a.sum(axis=1))


class MatchingScorePerFeature(ActivationMetric):
    """The matching score of each feature, averaged over features that fire on at least `min_count` tokens.

    Which features count is decided on all documents, once; NaN where none does.
    """

    about = Description(
        name="matching_score_per_feature",
        label="matching score per feature",
        unit="mean over features",
        better="higher",
        difference=True,
    )

    def estimate(self, counts: PairCounts, bootstrap: Bootstrap) -> Estimate:
        """The mean of ratios; a resample leaves out features that it never activates."""
        counted = counts.active_a.sum(axis=0) >= counts.min_count
        return bootstrap.estimate(_mean_ratio, counts.together[:, counted], counts.active_a[:, counted])


class MatchingIoU(ActivationMetric):
    """Tokens on which both partners fire over tokens on which either does, pooled over matched pairs."""

    about = Description(
        name="matching_iou",
        label="co-activation IoU",
        better="higher",
        compared=True,
        difference=True,
        statistic="ratio",
    )

    def estimate(self, counts: PairCounts, bootstrap: Bootstrap) -> Estimate:
        """Pooled over pairs and tokens."""
        matched = counts.partners >= 0
        both = counts.together[:, matched].sum(axis=1)
        active_b = counts.active_b[:, counts.partners[matched]].sum(axis=1)
        return bootstrap.ratio(both, counts.active_a[:, matched].sum(axis=1) + active_b - both)


def _mean_ratio(together: Floats, active: Floats) -> Floats:
    """Mean over features of together / active, leaving out features that a resample never activates."""
    fires = active > 0
    ratios = np.where(fires, together / np.where(fires, active, 1.0), 0.0)
    return np.asarray(ratios.sum(axis=-1) / fires.sum(axis=-1))
