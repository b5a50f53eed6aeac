"""Checks on a freshly loaded SAE that go beyond shapes and finite values."""

from __future__ import annotations

import logging

from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

logger = logging.getLogger(__name__)

UNIT_NORM_TOLERANCE = 0.01
"""bf16 rows of unit norm stay within this."""


def validate_loaded(
    sae: SparseAutoencoder, layer: int | None, stored_threshold: Float[Tensor, " F"] | None = None, *, unit_norm: bool
) -> SparseAutoencoder:
    """Refuse thresholds that are mostly negative, and log what is unusual.

    Trainers leave a few thresholds at or a little below 0, where a feature acts as with a ReLU. A file of logarithms
    looks otherwise: its thresholds below 1 are negative.

    Args:
        stored_threshold: the thresholds as they stand in the file, where it has one per feature.
        unit_norm: decoder rows of this dialect have unit norm; warn where they do not.

    Returns the SAE itself, so that loaders can end with this call.

    Raises:
        UserError: naming file, layer, key and feature indices.
    """
    where = sae.source if layer is None else f"{sae.source} (layer {layer})"
    if stored_threshold is not None and bool((negative := stored_threshold < 0).any()):
        found = f"{int(negative.sum())} of {sae.width} thresholds are negative (feature {first_indices(negative)})"
        if int(negative.sum()) > sae.width // 2:
            raise UserError(f"{where}: {found}. Is the file storing log thresholds, or another activation?")
        logger.warning("%s: %s; these features act as with a ReLU", where, found)
    worst = float((sae.W_dec.norm(dim=1) - 1).abs().max())
    if unit_norm and worst > UNIT_NORM_TOLERANCE:
        logger.warning("%s: decoder rows are not of unit norm (largest deviation %.3g)", where, worst)
    return sae
