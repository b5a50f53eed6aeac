"""What can stand in for the residual stream after block t+1: the interface of a splice, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.keys import Keyed, tensor_digest
from sae_match.matching import Permutation
from sae_match.matching.feature_pair import SAEPair, sae_facts
from sae_match.options import option
from sae_match.style import Style


class SpliceUnits(StrEnum):
    """Units in which activations travel along the permutation when a residual is spliced."""

    as_folding = "as_folding"
    theta = "theta"
    raw = "raw"


@dataclass(frozen=True)
class PairActivations:
    """Residuals and feature activations of layers t (A) and t+1 (B) on the same tokens."""

    x_a: Float[Tensor, "*batch d_a"]
    x_b: Float[Tensor, "*batch d_b"]
    f_a: Float[Tensor, "*batch F_a"]
    f_b: Float[Tensor, "*batch F_b"]


Reconstruct = Callable[[PairActivations], Float[Tensor, "*batch d"]]
"""From the activations of a pair to the residual that replaces x_b."""


@dataclass(frozen=True)
class SplicePair(SAEPair):
    """What a splice may be made from.

    Attributes:
        permutations: matchings A -> B by variant (`matched`, `random`, ...).
        units: units in which activations travel along a permutation, `theta` or `raw`.
    """

    permutations: Mapping[str, Permutation]
    units: SpliceUnits = SpliceUnits.theta

    def facts(self) -> dict[str, object]:
        """Everything that a splice of this pair could depend on."""
        return {
            "saes": [sae_facts(sae) for sae in (self.a, self.b)],
            "layers": list(self.layers),
            "permutations": {name: tensor_digest(found.indices) for name, found in self.permutations.items()},
            "units": self.units.value,
            "fit": self.streams_key(),
            "batch_windows": self.batch_windows,
            "sink_positions": self.sink_positions,
        }


@dataclass(frozen=True, eq=False)
class BoundSplice:
    """A splice of one pair of layers.

    Attributes:
        key: what it is, and all that its value depends on beside the model, the text and the block it replaces; equal
            for two splices only if they give the same residuals.
    """

    reconstruct: Reconstruct
    key: Callable[[], dict[str, object]]
    label: str
    style: Style | None = None

    def __call__(self, activations: PairActivations) -> Float[Tensor, "*batch d"]:
        """The residual that replaces x_b."""
        return self.reconstruct(activations)


@option
class Splice(Keyed, ABC):
    """What stands in for the residual stream after block t+1, in one or several variants.

    A subclass binds itself to a pair of layers. Its key holds its code, its arguments and all that a pair offers, so
    that no stale value is ever taken for its own; one that knows what it reads says so (`bound(..., reads=...)`), and
    then shares its values with every pair and job that agree on that.
    """

    fitted: ClassVar[bool] = False
    """Whether it reads `pair.fit_streams`: text that is not evaluated is then captured as well."""

    name: str
    """Name of its rows, or what they begin with."""
    label: str = ""
    """What legends call it; empty = the name."""
    style: Style | None = None
    """How its curve is drawn; null = in a color that is free."""

    @abstractmethod
    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """The variants for one pair, by the name of their rows."""

    def bound(
        self,
        pair: SplicePair,
        reconstruct: Reconstruct,
        *,
        reads: Callable[[], Mapping[str, object]] | None = None,
        label: str = "",
        leave_out: tuple[str, ...] = (),
    ) -> BoundSplice:
        """One variant with its key.

        Args:
            reads: all that the value depends on beside this class, its arguments, the model, the text and the block
                that is replaced; None = everything that the pair offers.
            label: where it differs from the splice's own.
            leave_out: arguments on which this variant does not depend.
        """

        def facts() -> dict[str, object]:
            own = self.facts(("name", "label", "style", *leave_out))
            return {**own, "reads": pair.facts() if reads is None else dict(reads())}

        return BoundSplice(reconstruct, facts, label or self.label or self.name.replace("_", " "), self.style)

    def count(self, permutations: int) -> int:
        """Number of variants.

        Args:
            permutations: matchings of a pair.
        """
        return 1

    def decodings(self, permutations: int) -> int:
        """How often a token is decoded by an SAE for all variants together."""
        return self.count(permutations)


def bind_all(splices: Iterable[Splice], pair: SplicePair) -> dict[str, BoundSplice]:
    """Every variant of some splices by the name of its rows.

    Raises:
        UserError: two of them have one name.
    """
    found: dict[str, BoundSplice] = {}
    for splice in splices:
        for name, bound in splice.bind(pair).items():
            if name in found:
                raise UserError(f"two splices are called {name}: give one of them another name")
            found[name] = bound
    return found


def first_equals(splices: Mapping[str, BoundSplice]) -> dict[str, str]:
    """By name, the name of the first splice whose key is equal: what has to be computed once."""
    keys = {name: splice.key() for name, splice in splices.items()}
    return {name: next(first for first in keys if keys[first] == key) for name, key in keys.items()}


def parse_units(units: SpliceUnits | str) -> SpliceUnits:
    """`theta` or `raw` as the enumeration.

    Raises:
        UserError: anything else; `as_folding` must be resolved first (`Evaluation.units`).
    """
    if units not in (SpliceUnits.theta, SpliceUnits.raw):
        raise UserError(f"units={units}: must be theta or raw")
    return SpliceUnits(units)
