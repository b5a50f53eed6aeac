"""Folding thresholds, or what plays them, into the weights (the paper's Eq. 4)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices


class FoldingKind(StrEnum):
    """Whether features are rescaled before matching (Eq. 4)."""

    theta = "theta"
    none = "none"


class FoldingScale(StrEnum):
    """What theta is when features are folded; weight metrics are always in these units.

    `auto` is the threshold where every feature has a positive one, and an error where not. The last four are for SAEs
    without thresholds (ReLU, TopK), in order of closeness to one: the scalar threshold a checkpoint stores beside a
    TopK; the threshold that would let k features per token through, estimated on the evaluation text; each feature's
    mean or largest activation on that text; the reciprocal of the decoder row's norm, which needs no data and carries
    no scale.
    """

    auto = "auto"
    threshold = "threshold"
    stored = "stored"
    estimated = "estimated"
    mean_activation = "mean_activation"
    max_activation = "max_activation"
    decoder_norm = "decoder_norm"


MEASURED_SCALES = (FoldingScale.estimated, FoldingScale.mean_activation, FoldingScale.max_activation)
"""Scales that need activations on text, and so evaluation=full."""


@option
class Folding:
    """Whether and how features are rescaled before matching."""

    name: FoldingKind
    """theta | none."""
    scale: FoldingScale = FoldingScale.auto
    """What theta is: auto | threshold | stored | estimated | mean_activation | max_activation | decoder_norm."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active features per token that scale=estimated aims at; null = the k of a TopK SAE."""

    @model_validator(mode="after")
    def _k_goes_with_estimated(self) -> Folding:
        if self.k is not None and self.scale is not FoldingScale.estimated:
            raise ValueError(f"folding.k={self.k}: goes with folding.scale=estimated only")
        return self

    @property
    def measured(self) -> bool:
        """Whether the scale needs activations on text."""
        return self.scale in MEASURED_SCALES


def fold(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Rescale every feature by its own theta, which then is 1.

        W_enc' = W_enc / theta    b_enc' = b_enc / theta    W_dec' = theta[:, None] * W_dec
        threshold' = threshold / theta (= 1 where theta is the threshold)

    theta is the threshold, or the SAE's `scale` (see `with_scale`). Reconstructions are unchanged: feature i's
    activation is divided by theta_i and its decoder row multiplied by it. `b_dec` has no feature axis and stays.
    Returns a new SAE; the argument is untouched.

    Rescaling changes which features are the k largest, so the folded copy of a TopK SAE refuses to encode.

    Raises:
        UserError: if any theta is not positive (such a feature has no unit to be measured in), naming them.
    """
    theta = sae.theta
    ranked = sae.activation.kind is ActivationKind.topk
    return sae.replace(
        W_enc=sae.W_enc / theta,
        b_enc=sae.b_enc / theta,
        W_dec=theta[:, None] * sae.W_dec,
        threshold=sae.threshold / theta,
        scale=None if sae.scale is None else theta.new_ones(theta.shape),
        match_only="rescaling changes which features of a TopK SAE are the k largest" if ranked else sae.match_only,
        source=f"{sae.source} (folded)",
    )


def with_scale(sae: SparseAutoencoder, choice: FoldingScale | str) -> SparseAutoencoder:
    """The same SAE with the chosen `scale` in the place of theta, for scales that need no data.

    Args:
        choice: `auto` (the scale that the SAE has, else its threshold), `threshold`, `stored` (the scalar threshold
            beside a TopK), or `decoder_norm` (1 / norm of each decoder row, so that folded rows have unit norm). The
            measured ones (`estimated`, `mean_activation`, `max_activation`) come from `measure_scale`.

    Raises:
        UserError: unknown or measured choice, or nothing there to be the scale.
    """
    try:
        choice = FoldingScale(choice)
    except ValueError:
        raise UserError(f"folding.scale={choice}: must be one of {', '.join(FoldingScale)}") from None
    if choice in MEASURED_SCALES:
        raise UserError(f"folding.scale={choice.value}: is measured on activations; use measure_scale")
    if choice in (FoldingScale.auto, FoldingScale.threshold):
        kept = choice is FoldingScale.auto or sae.scale is None
        chosen = sae if kept else sae.replace(scale=None)
        _ = chosen.theta  # refuses thresholds that cannot be folded
        return chosen
    return sae.replace(scale=_stored(sae) if choice is FoldingScale.stored else 1 / decoder_norms(sae))


def decoder_norms(sae: SparseAutoencoder) -> Float[Tensor, " F"]:
    """Norm of each decoder row, to divide by.

    Raises:
        UserError: a row of zeros.
    """
    norms = sae.W_dec.norm(dim=1)
    if bool((norms == 0).any()):
        raise UserError(
            f"{sae.source}: the decoder row is all zero at feature {first_indices(norms == 0)}, so its norm cannot "
            "scale it. Choose another folding.scale (threshold, mean_activation, max_activation) or folding=none"
        )
    return norms


def _stored(sae: SparseAutoencoder) -> Float[Tensor, " F"]:
    value = sae.activation.stored_threshold
    if value is None:
        raise UserError(
            f"{sae.source}: folding.scale=stored, but the checkpoint stores no threshold beside its "
            f"{sae.activation.kind.value} activation. Choose estimated, mean_activation, max_activation or decoder_norm"
        )
    return sae.threshold.new_full((sae.width,), value)
