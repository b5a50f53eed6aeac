"""Checks on a freshly loaded SAE that go beyond shapes and finite values."""

from __future__ import annotations

import logging

from sae_match.errors import UserError
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

logger = logging.getLogger(__name__)

UNIT_NORM_TOLERANCE = 0.01
"""bf16 rows of unit norm stay within this."""


def validate_loaded(sae: SparseAutoencoder, layer: int | None) -> SparseAutoencoder:
    """Refuse thresholds <= 0 and zero decoder rows; warn where decoder rows are not of unit norm.

    Returns the SAE itself, so that loaders can end with this call.

    Raises:
        UserError: naming file, layer, key and feature indices.
    """
    where = sae.source if layer is None else f"{sae.source} (layer {layer})"
    not_positive = sae.threshold <= 0
    if bool(not_positive.any()):
        raise UserError(
            f"{where}: threshold must be positive for a JumpReLU SAE, but is <= 0 at feature "
            f"{first_indices(not_positive)}. Is the file storing log thresholds, or another activation?"
        )
    norms = sae.W_dec.norm(dim=1)
    if bool((norms == 0).any()):
        raise UserError(f"{where}: W_dec row is all zero at feature {first_indices(norms == 0)}")
    worst = float((norms - 1).abs().max())
    if worst > UNIT_NORM_TOLERANCE:
        logger.warning("%s: decoder rows are not of unit norm (largest deviation %.3g)", where, worst)
    return sae
