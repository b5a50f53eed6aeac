"""Folding JumpReLU thresholds into the weights (the paper's Eq. 4)."""

from __future__ import annotations

from sae_match.errors import UserError
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices


def fold(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Rescale every feature by its own threshold so that all thresholds become 1.

        W_enc' = W_enc / theta    b_enc' = b_enc / theta    W_dec' = theta[:, None] * W_dec    theta' = 1

    Reconstructions are unchanged: feature i's activation is divided by theta_i and its decoder row multiplied by
    it. `b_dec` has no feature axis and stays. Returns a new SAE; the argument is untouched.

    Raises:
        UserError: if any threshold is not positive (such a feature has no unit to be measured in), naming them.
    """
    theta = sae.threshold
    not_positive = theta <= 0
    if bool(not_positive.any()):
        raise UserError(
            f"{sae.source}: threshold must be positive to be folded, but is <= 0 at feature "
            f"{first_indices(not_positive)}. Match without folding (folding=none) or mend the checkpoint."
        )
    return SparseAutoencoder(
        W_enc=sae.W_enc / theta,
        b_enc=sae.b_enc / theta,
        W_dec=theta[:, None] * sae.W_dec,
        b_dec=sae.b_dec,
        threshold=theta.new_ones(theta.shape),
        source=f"{sae.source} (folded)",
    )
