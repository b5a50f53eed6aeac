"""What can stand in for the residual stream after block t+1 (method section 6: Eq. 5 and its baselines)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sae_match.config.schema import SpliceUnits
from sae_match.errors import UserError
from sae_match.evaluation.quantile_splice import QuantileSplice, quantile_splices
from sae_match.matching import Permutation
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind

ENCODE_PERMUTE_DECODE = "encode_permute_decode"


@dataclass(frozen=True)
class PairActivations:
    """Residuals and feature activations of layers t (A) and t+1 (B) on the same tokens."""

    x_a: Float[Tensor, "*batch d"]
    x_b: Float[Tensor, "*batch d"]
    f_a: Float[Tensor, "*batch F_a"]
    f_b: Float[Tensor, "*batch F_b"]


Splice = Callable[[PairActivations], Float[Tensor, "*batch d"]]
"""From the activations of a pair to the residual that replaces x_b."""


def resolve_units(units: SpliceUnits, folding: FoldingKind) -> SpliceUnits:
    """`as_folding` is theta units for a folded matching and raw units for an unfolded one (the paper's comparison)."""
    if units is not SpliceUnits.as_folding:
        return units
    return SpliceUnits.theta if folding is FoldingKind.theta else SpliceUnits.raw


def parse_units(units: SpliceUnits | str) -> SpliceUnits:
    """`theta` or `raw` as the enumeration.

    Raises:
        UserError: anything else; `as_folding` must be resolved first (`resolve_units`).
    """
    if units not in (SpliceUnits.theta, SpliceUnits.raw):
        raise UserError(f"units={units}: must be theta or raw")
    return SpliceUnits(units)


def permuted_splice(a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation, units: SpliceUnits) -> Splice:
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


def splices_of_pair(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: dict[str, Permutation],
    units: SpliceUnits | str,
    quantiles: Sequence[float] = (),
) -> dict[str, Splice]:
    """All splices of a pair by name.

    Args:
        permutations: by variant; `matched` gives `encode_permute_decode`, any other variant V gives
            `encode_permute_decode_V`.
        units: `theta` or `raw`.
        quantiles: each q gives `quantile_q` of the variant `matched` (Eq. 6).

    Raises:
        UserError: unknown units, or quantiles outside 0..1 or without a variant `matched`.
    """
    units = parse_units(units)
    if quantiles and "matched" not in permutations:
        raise UserError(f"quantiles split the pairs of the variant matched; there are {', '.join(permutations)}")
    splices: dict[str, Splice] = {}
    for variant, permutation in permutations.items():
        name = ENCODE_PERMUTE_DECODE if variant == "matched" else f"{ENCODE_PERMUTE_DECODE}_{variant}"
        splices[name] = permuted_splice(a, b, permutation, units)
    splices["encode_decode_current"] = lambda pair: b.decode(pair.f_b)
    splices["encode_decode_previous"] = lambda pair: a.decode(pair.f_a)
    splices["layer_drop"] = lambda pair: pair.x_a
    if quantiles:
        found = quantile_splices(a, b, permutations["matched"], units, quantiles)
        splices |= {name: _of_pair(splice) for name, splice in found.items()}
    return splices


def _of_pair(splice: QuantileSplice) -> Splice:
    return lambda pair: splice(pair.f_a)
