"""Folding thresholds, or what plays them, into the weights (the paper's Eq. 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sae_match.config.schema import MEASURED_SCALES, FoldingScale
from sae_match.errors import UserError
from sae_match.saes.activation import ActivationKind
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices


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
