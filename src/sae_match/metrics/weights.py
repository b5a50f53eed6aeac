"""How far matched features' parameters are apart, always in folded units so that jobs compare."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sae_match.metrics.description import Description
from sae_match.metrics.metric import MatchedWeights, WeightMetric
from sae_match.options import option

Group = Literal["W_enc", "b_enc", "W_dec"]
WEIGHT_MSE = {group: f"weight_mse/{group}" for group in get_args(Group)}
"""Group of parameters -> its metric."""


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

    about = Description(name="decoder_cosine", label="cosine of decoder rows", better="higher")

    def value(self, pair: MatchedWeights) -> float:
        """The mean over pairs."""
        return _mean(pair.decoder_cosine)


class SimilarDecoders(WeightMetric):
    """Share of matched pairs whose decoder rows have a cosine above 0.7."""

    about = Description(
        name="decoder_cosine_above_0.7", label="decoder rows with cosine above 0.7", unit="share", better="higher"
    )

    def value(self, pair: MatchedWeights) -> float:
        """The share of pairs."""
        return _mean(pair.decoder_cosine > 0.7)


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
