"""The paper's splices (section 5.5, App. A): Eq. 5 and the baselines that it is compared with."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sae_match.evaluation.splices import (
    BoundSplice,
    PairActivations,
    Reconstruct,
    Splice,
    SplicePair,
    SpliceUnits,
)
from sae_match.keys import tensor_digest
from sae_match.matching import Permutation
from sae_match.matching.feature_pair import sae_facts
from sae_match.options import option
from sae_match.saes import SparseAutoencoder
from sae_match.style import BLACK, BLUE, GREEN, PURPLE, Style

MATCHED = "matched"
"""The variant that is the matching itself."""
ENCODE_PERMUTE_DECODE = "encode_permute_decode"


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

    name: str = ENCODE_PERMUTE_DECODE
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
