"""The quantile splice (method section 6; the paper's App. B, Eq. 6): only the best pairs are carried to layer t+1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import BoundSplice, PairActivations, Splice, SplicePair, SpliceUnits
from sae_match.evaluation.standard_splices import MATCHED, permuted_facts
from sae_match.matching import Permutation
from sae_match.matching.feature_pair import sae_facts
from sae_match.metrics.weight_distance import weight_distances
from sae_match.options import option
from sae_match.saes import SparseAutoencoder


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
class CarriedShare:
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

    def __call__(self, pair: PairActivations) -> Float[Tensor, "*batch d"]:
        """The residual that replaces x_b."""
        f_a = pair.f_a
        carried = self.carried.to(f_a.device)
        # Masks, not 0/1 products: an infinite activation times 0 would be NaN.
        moved, kept = f_a.masked_fill(~carried, 0.0), f_a.masked_fill(carried, 0.0)
        if self.units is SpliceUnits.theta:
            moved = self.permutation.apply(moved / self.a.theta) * self.b.theta
        else:
            moved = self.permutation.apply(moved)
        return self.b.decode(moved) + torch.matmul(kept.to(torch.float32), self.a.W_dec)


@option
class Quantiles(Splice):
    """Eq. 6 along the permutation `matched`, once per share: NAME_q carries the pairs with the lowest decoder MSE."""

    name: str = "quantile"
    label: str = "quantile"
    quantiles: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    """Shares of the pairs that are carried, each in 0..1 and named once."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({f"{q:g}" for q in self.quantiles}) < len(self.quantiles):
            raise ValueError("each share must be named once (six digits tell them apart)")
        return self

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """One variant per share.

        Raises:
            UserError: the pair has no permutation `matched`, or its SAEs cannot be folded.
        """
        if MATCHED not in pair.permutations:
            raise UserError(
                f"quantiles split the pairs of the variant matched; there are {', '.join(pair.permutations)}"
            )
        permutation = pair.permutations[MATCHED]
        masks = carried_features(pair.a, pair.b, permutation, self.quantiles)
        return {f"{self.name}_{q:g}": self._carrying(pair, permutation, q, mask) for q, mask in masks.items()}

    def _carrying(
        self, pair: SplicePair, permutation: Permutation, q: float, carried: Bool[Tensor, " F_a"]
    ) -> BoundSplice:
        def reads() -> dict[str, object]:
            # Which pairs are carried follows from folded weights, whatever travels along them.
            return {"q": q, **permuted_facts(pair, permutation), "saes": [sae_facts(pair.a), sae_facts(pair.b)]}

        reconstruct = CarriedShare(pair.a, pair.b, permutation, carried, pair.units)
        label = f"{self.label} {q:g}"
        return self.bound(pair, reconstruct, reads=reads, label=label, leave_out=("quantiles",))

    def count(self, permutations: int) -> int:
        """One per share."""
        return len(self.quantiles)
