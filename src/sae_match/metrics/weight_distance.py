"""Parameters of matched features side by side, always in folded units so that jobs compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.permutation import Permutation
from sae_match.matching.planted import decoder_cosines
from sae_match.metrics.metric import MatchedWeights
from sae_match.saes import SparseAutoencoder, fold


def weight_distances(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation) -> MatchedWeights:
    """A's features beside their partners in B, in the order of `Permutation.matched`.

    Args:
        a, b: SAEs as loaded (unfolded); folding happens here.

    Raises:
        UserError: SAEs without thresholds or another scale to be folded by.
    """
    return weight_distances_of(a, b, {"": permutation})[""]


def weight_distances_of(
    a: SparseAutoencoder, b: SparseAutoencoder, permutations: Mapping[str, Permutation]
) -> dict[str, MatchedWeights]:
    """`weight_distances` of several matchings of two SAEs, which are folded once.

    Raises:
        UserError: as in `weight_distances`.
    """
    folded_a, folded_b = fold(a), fold(b)
    return {name: _matched_weights(folded_a, folded_b, found) for name, found in permutations.items()}


def _matched_weights(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation) -> MatchedWeights:
    rows = permutation.matched.to(a.device)
    partners = permutation.indices.to(a.device)[rows]

    def both(group: str) -> tuple[Float[Tensor, "M K"], Float[Tensor, "M K"]]:
        if group == "W_enc":
            return a.W_enc[:, rows].T, b.W_enc[:, partners].T
        if group == "b_enc":
            return a.b_enc[rows, None], b.b_enc[partners, None]
        if group == "W_dec":
            return a.W_dec[rows], b.W_dec[partners]
        raise KeyError(f"no parameters {group}: there are W_enc, b_enc and W_dec")

    def parameters(group: str) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = both(group)
        return ours.cpu().numpy(), theirs.cpu().numpy()

    def mse(group: str) -> np.ndarray:
        ours, theirs = both(group)
        return (ours - theirs).square().mean(dim=1).cpu().numpy()

    groups = {group: mse(group) for group in ("W_enc", "b_enc", "W_dec")}
    return MatchedWeights(groups, decoder_cosines(a, b, permutation).numpy(), parameters)
