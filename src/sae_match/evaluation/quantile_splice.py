"""The quantile splice (method section 6; the paper's App. B, Eq. 6): only the best pairs are carried to layer t+1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_match.config.schema import SpliceUnits
from sae_match.errors import UserError
from sae_match.matching import Permutation
from sae_match.metrics.weight_distance import weight_distances
from sae_match.saes import SparseAutoencoder

QUANTILE = "quantile_"
"""Names of quantile splices are `quantile_{q:g}`."""


def quantile_name(q: float) -> str:
    """Name of the splice that carries the share `q` of the pairs."""
    return f"{QUANTILE}{q:g}"


def carried_features(
    a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation, quantiles: Sequence[float]
) -> dict[float, Bool[Tensor, " F_a"]]:
    """Per q the features of A that are carried: the round(q * M) of M pairs with the lowest decoder MSE.

    The MSE is the per-feature one of the record (`mse_W_dec`, folded units); of equal ones the lower feature comes
    first. So q = 0 carries nothing and q = 1 every pair, which "below the q-quantile" would not (the largest MSE is
    not below itself).

    Raises:
        UserError: a q outside 0..1, or SAEs that cannot be folded.
    """
    mse = weight_distances(a, b, permutation).W_dec.cpu()
    order = permutation.matched[torch.argsort(mse, stable=True)]
    carried: dict[float, Tensor] = {}
    for q in quantiles:
        if not 0 <= q <= 1:
            raise UserError(f"quantile {q}: must be in 0..1")
        mask = torch.zeros(a.width, dtype=torch.bool)
        mask[order[: round(q * len(order))]] = True
        carried[q] = mask
    return carried


@dataclass(frozen=True)
class QuantileSplice:
    """Eq. 6: Dec_B(P (m * f_a)) + ((1 - m) * f_a) @ W_dec_A, with B's bias only.

    Features that have no partner stay on A's decoder, whatever q.

    Attributes:
        carried: m, which features of A are carried to B's decoder; each has a partner.
        units: as in Eq. 5; features that stay need none, since activation and decoder are of one layer.
    """

    a: SparseAutoencoder
    b: SparseAutoencoder
    permutation: Permutation
    carried: Bool[Tensor, " F_a"]
    units: SpliceUnits

    def __call__(self, f_a: Float[Tensor, "*batch F_a"]) -> Float[Tensor, "*batch d"]:
        """The residual that replaces x_b."""
        carried = self.carried.to(f_a.device)
        # Masks, not 0/1 products: an infinite activation times 0 would be NaN.
        moved, kept = f_a.masked_fill(~carried, 0.0), f_a.masked_fill(carried, 0.0)
        if self.units is SpliceUnits.theta:
            moved = self.permutation.apply(moved / self.a.theta) * self.b.theta
        else:
            moved = self.permutation.apply(moved)
        return self.b.decode(moved) + torch.matmul(kept.to(torch.float32), self.a.W_dec)


def quantile_splices(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutation: Permutation,
    units: SpliceUnits,
    quantiles: Sequence[float],
) -> dict[str, QuantileSplice]:
    """The splices by name.

    Raises:
        UserError: from `carried_features`.
    """
    masks = carried_features(a, b, permutation, quantiles)
    return {quantile_name(q): QuantileSplice(a, b, permutation, mask, units) for q, mask in masks.items()}
