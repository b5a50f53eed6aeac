"""What stands in for a residual stream: how much of it is explained, and what that costs the language model."""

from __future__ import annotations

import numpy as np

from sae_match.metrics.bootstrap import Bootstrap, Estimate
from sae_match.metrics.description import Description
from sae_match.metrics.metric import LossMetric, ReconstructionMetric, SplicedLosses

BOUNDS = ("encode_decode_current", "encode_decode_previous", "layer_drop")
"""Splices that need no matching: what one along it stands between."""


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
