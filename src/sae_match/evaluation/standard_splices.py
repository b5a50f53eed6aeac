"""The paper's splices (section 5.5, App. A and B): Eq. 5, the baselines that it is compared with, and Eq. 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Self

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import BoundSplice, PairActivations, Reconstruct, Splice, SplicePair, SpliceUnits
from sae_match.keys import tensor_digest
from sae_match.matching import Permutation
from sae_match.matching.feature_pair import sae_facts
from sae_match.metrics.description import MATCHED, SPLICED
from sae_match.metrics.weight_distance import weight_distances
from sae_match.options import option
from sae_match.saes import SparseAutoencoder
from sae_match.style import BLACK, BLUE, GREEN, PURPLE, Style


def permuted_splice(
    a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation, units: SpliceUnits
) -> Reconstruct:
    """Eq. 5: Dec_B(P Enc_A(x_a)); block t+1 is never evaluated.

    Args:
        units: `theta` carries activations in units of each feature's own theta (what folded SAEs do),
            `raw` carries them as they are.
    """

    def splice(pair: PairActivations) -> Tensor:
        if units is SpliceUnits.theta:
            return b.decode(permutation.apply(pair.f_a / a.theta) * b.theta)
        return b.decode(permutation.apply(pair.f_a))

    return splice


@option
class EncodePermuteDecode(Splice):
    """Eq. 5 along every permutation: Dec_B(P Enc_A(x_a)); `matched` gives NAME, any other variant V gives NAME_V."""

    name: str = SPLICED
    label: str = "encode-permute-decode"
    style: Style | None = Style(BLUE, "o", "-")

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """One variant per permutation."""
        return {
            self.name if variant == MATCHED else f"{self.name}_{variant}": bound
            for variant, bound in self.by_variant(pair).items()
        }

    def by_variant(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """The same by the name of the permutation."""
        return {variant: self._along(pair, variant) for variant in pair.permutations}

    def _along(self, pair: SplicePair, variant: str) -> BoundSplice:
        permutation = pair.permutations[variant]
        reconstruct = permuted_splice(pair.a, pair.b, permutation, pair.units)
        bound = self.bound(
            pair, reconstruct, reads=lambda: permuted_facts(pair, permutation), label=f"{self.label} ({variant})"
        )
        return bound if variant == MATCHED else replace(bound, style=None)

    def count(self, permutations: int) -> int:
        """One per permutation."""
        return permutations


@option
class EncodeDecodeCurrent(Splice):
    """Dec_B(Enc_B(x_b)): the error of B itself, the floor."""

    name: str = "encode_decode_current"
    label: str = "encode-decode current (SAE's own error)"
    style: Style | None = Style(BLACK, "D", "--")

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """Depends on B's content only."""
        b = pair.b
        reads = lambda: {"sae_b": b.content_hash}  # noqa: E731
        return {self.name: self.bound(pair, lambda activations: b.decode(activations.f_b), reads=reads)}


@option
class EncodeDecodePrevious(Splice):
    """Dec_A(Enc_A(x_a)): what A's reconstruction loses in place of x_b."""

    name: str = "encode_decode_previous"
    label: str = "encode-decode previous"
    style: Style | None = Style(GREEN, "^", "-")

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """Depends on A and its layer."""
        a, layer = pair.a, pair.layers[0]
        reads = lambda: {"layer_a": layer, "sae_a": a.content_hash}  # noqa: E731
        return {self.name: self.bound(pair, lambda activations: a.decode(activations.f_a), reads=reads)}


@option
class LayerDrop(Splice):
    """x_a in place of x_b: block t+1 left out."""

    name: str = "layer_drop"
    label: str = "layer drop"
    style: Style | None = Style(PURPLE, "s", "-")

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """Depends on A's layer only."""
        reads = lambda: {"layer_a": pair.layers[0]}  # noqa: E731
        return {self.name: self.bound(pair, lambda activations: activations.x_a, reads=reads)}

    def decodings(self, permutations: int) -> int:
        """No SAE takes part."""
        return 0


BASELINES: tuple[Splice, ...] = (EncodeDecodeCurrent(), EncodeDecodePrevious(), LayerDrop())
STANDARD: tuple[Splice, ...] = (EncodePermuteDecode(), *BASELINES)
"""The splices of every full evaluation."""


def permuted_facts(pair: SplicePair, permutation: Permutation) -> dict[str, object]:
    """What Eq. 5 depends on: both SAEs, A's layer, the permutation, the units, and theta where it is no threshold.

    In raw units theta does not enter.
    """
    theta = pair.units is SpliceUnits.theta
    return {
        "layer_a": pair.layers[0],
        "saes": [sae_facts(sae) if theta else {"content": sae.content_hash} for sae in (pair.a, pair.b)],
        "indices": tensor_digest(permutation.indices),
        "units": pair.units.value,
    }


def carried_features(
    a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation, quantiles: Sequence[float]
) -> dict[float, Bool[Tensor, " F_a"]]:
    """Per q the features of A that are carried: the round(q * M) of M pairs with the lowest decoder MSE.

    The MSE is the per-feature one of the record (`mse_W_dec`, folded units); of equal ones the lower feature comes
    first. So q = 0 carries nothing and q = 1 every pair, which "below the q-quantile" would not (the largest MSE is
    not below itself).

    Raises:
        UserError: SAEs that cannot be folded.
    """
    mse = weight_distances(a, b, permutation).mse["W_dec"]
    order = permutation.matched[np.argsort(mse, kind="stable")]
    carried: dict[float, Tensor] = {}
    for q in quantiles:
        carried[q] = torch.zeros(a.width, dtype=torch.bool)
        carried[q][order[: round(q * len(order))]] = True
    return carried


def carried_share(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutation: Permutation,
    carried: Bool[Tensor, " F_a"],
    units: SpliceUnits,
) -> Reconstruct:
    """Eq. 6: Dec_B(P (m * f_a)) + ((1 - m) * f_a) @ W_dec_A, with B's bias only: Eq. 5 of some features, and the rest.

    Features that have no partner stay on A's decoder, whatever q.

    Args:
        carried: m, which features of A are carried to B's decoder; each has a partner.
        units: as in Eq. 5; features that stay need none, since activation and decoder are of one layer.
    """
    permuted = permuted_splice(a, b, permutation, units)

    def splice(pair: PairActivations) -> Tensor:
        m = carried.to(pair.f_a.device)
        # Masks, not 0/1 products: an infinite activation times 0 would be NaN.
        moved, kept = pair.f_a.masked_fill(~m, 0.0), pair.f_a.masked_fill(m, 0.0)
        return permuted(replace(pair, f_a=moved)) + torch.matmul(kept.to(torch.float32), a.W_dec)

    return splice


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

        reconstruct = carried_share(pair.a, pair.b, permutation, carried, pair.units)
        label = f"{self.label} {q:g}"
        return self.bound(pair, reconstruct, reads=reads, label=label, leave_out=("quantiles",))

    def count(self, permutations: int) -> int:
        """One per share."""
        return len(self.quantiles)
