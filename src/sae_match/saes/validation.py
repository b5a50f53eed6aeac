"""Checks on a freshly loaded SAE that go beyond shapes and finite values."""

from __future__ import annotations

import logging

from sae_match.errors import UserError
from sae_match.saes.activation import ActivationKind
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

logger = logging.getLogger(__name__)

UNIT_NORM_TOLERANCE = 0.01
"""bf16 rows of unit norm stay within this."""


def validate_loaded(sae: SparseAutoencoder, layer: int | None, unit_norm: bool = True) -> SparseAutoencoder:
    """Refuse thresholds <= 0 of a JumpReLU SAE (< 0 of others) and zero decoder rows.

    Args:
        unit_norm: decoder rows of this dialect have unit norm; warn where they do not.

    Returns the SAE itself, so that loaders can end with this call.

    Raises:
        UserError: naming file, layer, key and feature indices.
    """
    where = sae.source if layer is None else f"{sae.source} (layer {layer})"
    jumps = sae.activation.kind is ActivationKind.jumprelu
    refused = sae.threshold <= 0 if jumps else sae.threshold < 0
    if bool(refused.any()):
        raise UserError(
            f"{where}: threshold must be positive for a JumpReLU SAE, but is <= 0 at feature "
            f"{first_indices(refused)}. Is the file storing log thresholds, or another activation?"
        )
    norms = sae.W_dec.norm(dim=1)
    if bool((norms == 0).any()):
        raise UserError(f"{where}: W_dec row is all zero at feature {first_indices(norms == 0)}")
    worst = float((norms - 1).abs().max())
    if unit_norm and worst > UNIT_NORM_TOLERANCE:
        logger.warning("%s: decoder rows are not of unit norm (largest deviation %.3g)", where, worst)
    return sae
