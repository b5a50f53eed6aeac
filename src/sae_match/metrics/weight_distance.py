"""Distance of matched features' parameters, always in folded units so that runs compare (method sections 3, 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.permutation import Permutation
from sae_match.saes import SparseAutoencoder, fold


@dataclass(frozen=True)
class WeightDistances:
    """Per matched pair, in the order of `Permutation.matched`: mean squared differences, folded units.

    Attributes:
        W_enc, W_dec: mean over d elements of the squared difference.
        b_enc: squared difference.
        decoder_cosine: cosine of the decoder rows (the same folded or not).
    """

    W_enc: Float[Tensor, " M"]
    b_enc: Float[Tensor, " M"]
    W_dec: Float[Tensor, " M"]
    decoder_cosine: Float[Tensor, " M"]

    def means(self) -> dict[str, float]:
        """weight_mse of each group: the mean over pairs; NaN if there are none."""
        groups = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec}
        return {name: float(values.to(torch.float64).mean()) for name, values in groups.items()}


def weight_distances(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation) -> WeightDistances:
    """Distances of A's features to their partners in B.

    Args:
        a, b: SAEs as loaded (unfolded); folding happens here.

    Raises:
        UserError: SAEs without thresholds or another scale to be folded by.
    """
    return weight_distances_of(a, b, {"": permutation})[""]


def weight_distances_of(
    a: SparseAutoencoder, b: SparseAutoencoder, permutations: Mapping[str, Permutation]
) -> dict[str, WeightDistances]:
    """`weight_distances` of several matchings of two SAEs, which are folded once.

    Raises:
        UserError: as in `weight_distances`.
    """
    folded_a, folded_b = fold(a), fold(b)
    return {name: folded_weight_distances(folded_a, folded_b, found) for name, found in permutations.items()}


def folded_weight_distances(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation) -> WeightDistances:
    """`weight_distances` of SAEs that are folded already."""
    rows = permutation.matched.to(a.device)
    partners = permutation.indices.to(a.device)[rows]
    return WeightDistances(
        W_enc=(a.W_enc[:, rows] - b.W_enc[:, partners]).square().mean(dim=0),
        b_enc=(a.b_enc[rows] - b.b_enc[partners]).square(),
        W_dec=(a.W_dec[rows] - b.W_dec[partners]).square().mean(dim=1),
        decoder_cosine=(_unit(a.W_dec[rows]) * _unit(b.W_dec[partners])).sum(dim=1),
    )


def _unit(rows: Float[Tensor, "M d"]) -> Float[Tensor, "M d"]:
    """Rows of unit norm; folded rows can be tiny, so torch's default epsilon of 1e-12 would bend the result."""
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-30)
