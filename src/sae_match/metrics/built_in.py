"""The metrics of this package: of weights, co-activations, reconstructions, token losses and single layers."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sae_match.metrics.bootstrap import Bootstrap, Estimate, Floats
from sae_match.metrics.description import Description
from sae_match.metrics.metric import (
    ActivationMetric,
    LayerActivity,
    LayerMetric,
    LossMetric,
    MatchedWeights,
    Measured,
    Metric,
    PairCounts,
    ReconstructionMetric,
    SplicedLosses,
    WeightMetric,
)
from sae_match.options import option

Group = Literal["W_enc", "b_enc", "W_dec"]
WEIGHT_MSE = {group: f"weight_mse/{group}" for group in get_args(Group)}
"""Group of parameters -> its metric."""
BOUNDS = ("encode_decode_current", "encode_decode_previous", "layer_drop")
"""Splices that need no matching: what one along it stands between."""


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


@option
class WeightMSE(WeightMetric):
    """Mean over matched pairs and elements of (A - P B)^2, for one group of parameters."""

    group: Group

    @property
    def about(self) -> Description:
        """One description per group."""
        parts = {"W_dec": "decoder rows", "W_enc": "encoder columns", "b_enc": "encoder biases"}
        return Description(
            name=WEIGHT_MSE[self.group],
            label=f"MSE of {parts[self.group]}",
            unit="folded units²",
            better="lower",
            headline=self.group == "W_dec",
            compared=True,
            log=True,
        )

    def value(self, pair: MatchedWeights) -> float:
        """The mean over pairs."""
        return _mean(pair.mse[self.group])


class DecoderCosine(WeightMetric):
    """Mean cosine of matched decoder rows, the same folded or not."""

    about = Description(name="decoder_cosine", label="cosine of decoder rows", better="higher", tracked=True)

    def value(self, pair: MatchedWeights) -> float:
        """The mean over pairs."""
        return _mean(pair.decoder_cosine)


class SimilarDecoders(WeightMetric):
    """Share of matched pairs whose decoder rows have a cosine above 0.7."""

    about = Description(
        name="decoder_cosine_above_0.7",
        label="decoder rows with cosine above 0.7",
        unit="share",
        better="higher",
        tracked=True,
    )

    def value(self, pair: MatchedWeights) -> float:
        """The share of pairs."""
        return _mean(pair.decoder_cosine > 0.7)


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


class ExplainedVariance(ReconstructionMetric):
    """1 - sum_d Var(x_hat_d - x_d) / sum_d Var(x_d), variances over tokens; 1 if right up to a constant."""

    about = Description(
        name="explained_variance",
        label="explained variance",
        better="higher",
        headline=True,
        difference=True,
        figure="record",
        beside=BOUNDS,
        statistic="explained_variance",
    )


class R2(ReconstructionMetric):
    """1 - sum ||x_hat - x||^2 / sum ||x - mean(x)||^2."""

    about = Description(
        name="r2",
        label="R²",
        better="higher",
        statistic="r2",
        sums_of="explained_variance",
    )


class Unexplained(ReconstructionMetric):
    """1 - r2 = sum ||x_hat - x||^2 / sum ||x - mean(x)||^2."""

    about = Description(
        name="fvu",
        label="unexplained variance (FVU)",
        better="lower",
        statistic="fvu",
        sums_of="explained_variance",
    )


class DeltaLoss(LossMetric):
    """Mean cross-entropy of the spliced model minus that of the original one, on the same tokens."""

    about = Description(
        name="delta_loss",
        label="Δ loss",
        unit="nats/token",
        better="lower",
        headline=True,
        difference=True,
        figure="record",
        beside=BOUNDS,
        statistic="ratio",
    )

    def estimate(self, losses: SplicedLosses, bootstrap: Bootstrap) -> Estimate:
        """Pooled over predictions."""
        difference = (losses.spliced - losses.original)[:, losses.sink_positions :].astype(np.float64)
        totals, counts = np.zeros(bootstrap.n_documents), np.zeros(bootstrap.n_documents)
        np.add.at(totals, losses.document, difference.sum(axis=1))
        np.add.at(counts, losses.document, difference.shape[1])
        return bootstrap.ratio(totals, counts)


class L0(LayerMetric):
    """Mean number of active features per token."""

    about = Description(name="l0", label="L₀", unit="active features/token", figure="record", statistic="ratio")

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured:
        """Pooled over tokens."""
        estimate = bootstrap.ratio(layer.active.sum(axis=1), layer.tokens)
        return Measured(estimate.value, bootstrap.n_documents, estimate)


class DeadFeatures(LayerMetric):
    """Number of features that never fire on the counted tokens."""

    about = Description(name="dead_features", label="dead features", unit="features", combine="sum")

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured:
        """A count."""
        return Measured(float((layer.active.sum(axis=0) == 0).sum()), layer.active.shape[1])


class MeanTheta(LayerMetric):
    """Mean threshold, or folding scale used in its place, over features."""

    about = Description(name="mean_theta", label="mean threshold θ", tracked=True)

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured | None:
        """The mean over features; None where they are not scaled."""
        return None if layer.theta is None else Measured(float(layer.theta.mean(dtype=np.float64)), len(layer.theta))


class DecoderNorm(LayerMetric):
    """Mean norm of the folded decoder rows, theta_i ||W_dec,i||.

    Of all features, so that its change from layer to layer is that of matched pairs, whatever the permutation (Fig. 1).
    """

    about = Description(name="decoder_norm", label="mean folded decoder norm")

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured:
        """The mean over features."""
        return Measured(float(layer.decoder_norm.mean(dtype=np.float64)), len(layer.decoder_norm))


class ResidualNorm(LayerMetric):
    """Median norm of the residual stream over counted tokens; of an even number the lower of the two middle ones."""

    about = Description(name="residual_norm", label="median residual norm", tracked=True)
    reference = "model"

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured:
        """The median over tokens."""
        middle = (layer.residual_norm.size - 1) // 2
        return Measured(float(np.partition(layer.residual_norm, middle, axis=None)[middle]), layer.residual_norm.size)


MEASURED: tuple[Metric, ...] = (
    MatchingScore(),
    MatchingScorePerFeature(),
    MatchingIoU(),
    WeightMSE(group="W_dec"),
    WeightMSE(group="W_enc"),
    WeightMSE(group="b_enc"),
    DecoderCosine(),
    SimilarDecoders(),
    ExplainedVariance(),
    R2(),
    Unexplained(),
    DeltaLoss(),
    L0(),
    DeadFeatures(),
    MeanTheta(),
    DecoderNorm(),
    ResidualNorm(),
)
"""In the order of a table's columns."""
