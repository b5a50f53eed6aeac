"""Numbers of a single layer: how sparse and how alive its SAE is, and the scales of features and residual stream."""

from __future__ import annotations

import numpy as np

from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.description import Description
from sae_match.metrics.metric import LayerActivity, LayerMetric, Measured


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

    about = Description(name="mean_theta", label="mean threshold θ")

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

    about = Description(name="residual_norm", label="median residual norm")
    reference = "model"

    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured:
        """The median over tokens."""
        middle = (layer.residual_norm.size - 1) // 2
        return Measured(float(np.partition(layer.residual_norm, middle, axis=None)[middle]), layer.residual_norm.size)
