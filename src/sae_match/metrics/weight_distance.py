"""Parameters of matched features side by side, always in folded units so that jobs compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.permutation import Permutation
from sae_match.matching.planted import decoder_cosines
from sae_match.metrics.metric import MatchedWeights
from sae_match.saes import SparseAutoencoder, fold


@dataclass(frozen=True)
class WeightDistances:
    """Per matched pair, in the order of `Permutation.matched`: mean squared differences, folded units.

    Attributes:
        W_enc, W_dec: mean over d elements of the squared difference.
        b_enc: squared difference.
        decoder_cosine: cosine of the decoder rows (the same folded or not).
        parameters: from a group to the parameters of both sides, [M, d] ([M, 1] for `b_enc`).
    """

    W_enc: Float[Tensor, " M"]
    b_enc: Float[Tensor, " M"]
    W_dec: Float[Tensor, " M"]
    decoder_cosine: Float[Tensor, " M"]
    parameters: Callable[[str], tuple[Float[Tensor, "M K"], Float[Tensor, "M K"]]]

    def matched(self) -> MatchedWeights:
        """The same as a metric is given it."""

        def parameters(group: str) -> tuple[np.ndarray, np.ndarray]:
            a, b = self.parameters(group)
            return a.cpu().numpy(), b.cpu().numpy()

        mse = {name: getattr(self, name).cpu().numpy() for name in ("W_enc", "b_enc", "W_dec")}
        return MatchedWeights(mse, self.decoder_cosine.cpu().numpy(), parameters)


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

    def parameters(group: str) -> tuple[Tensor, Tensor]:
        if group == "W_enc":
            return a.W_enc[:, rows].T, b.W_enc[:, partners].T
        if group == "b_enc":
            return a.b_enc[rows, None], b.b_enc[partners, None]
        if group == "W_dec":
            return a.W_dec[rows], b.W_dec[partners]
        raise KeyError(f"no parameters {group}: there are W_enc, b_enc and W_dec")

    return WeightDistances(
        W_enc=(a.W_enc[:, rows] - b.W_enc[:, partners]).square().mean(dim=0),
        b_enc=(a.b_enc[rows] - b.b_enc[partners]).square(),
        W_dec=(a.W_dec[rows] - b.W_dec[partners]).square().mean(dim=1),
        decoder_cosine=decoder_cosines(a, b, permutation),
        parameters=parameters,
    )
