"""Many SAEs over a span of layers: adjacent pairs matched, the permutations composed (method section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sae_match.errors import UserError
from sae_match.matching.match import Matching, match
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.saes import SparseAutoencoder


@dataclass(frozen=True)
class Chain:
    """Matchings of consecutive SAEs.

    Attributes:
        matchings: matching t leads from SAE t to SAE t + 1.
    """

    matchings: list[Matching]

    def __len__(self) -> int:
        """Number of SAEs."""
        return len(self.matchings) + 1

    def between(self, start: int, stop: int) -> Permutation:
        """Features of SAE `start` -> features of SAE `stop` (either may come first), composed step by step.

        A feature that is unmatched at any step has no partner. start == stop gives the identity.

        Raises:
            UserError: a position outside the chain.
        """
        for position in (start, stop):
            if not 0 <= position < len(self):
                raise UserError(f"position {position} is outside the chain of {len(self)} SAEs (0..{len(self) - 1})")
        if stop < start:
            return self.between(stop, start).inverse()
        if start == stop:
            return Permutation.identity(self._width(start))
        composed = self.matchings[start].permutation
        for matching in self.matchings[start + 1 : stop]:
            composed = composed.compose(matching.permutation)
        return composed

    def path(self, feature: int, start: int = 0) -> list[int]:
        """The feature of SAE `start` followed to the end of the chain: one index per SAE, as far as it has a partner.

        Raises:
            UserError: no such feature or SAE.
        """
        if not 0 <= start < len(self):
            raise UserError(f"position {start} is outside the chain of {len(self)} SAEs (0..{len(self) - 1})")
        if not 0 <= feature < self._width(start):
            raise UserError(f"feature {feature} is outside 0..{self._width(start) - 1}")
        path = [feature]
        for matching in self.matchings[start:]:
            partner = int(matching.permutation.indices[path[-1]])
            if partner == UNMATCHED:
                break
            path.append(partner)
        return path

    def _width(self, position: int) -> int:
        if position < len(self.matchings):
            return self.matchings[position].permutation.n_a
        return self.matchings[-1].permutation.n_b


def match_chain(saes: Iterable[SparseAutoencoder], **options: Any) -> Chain:
    """Match every SAE with the next one; `options` are those of `match`.

    Args:
        saes: SAEs in order; an iterator is read one at a time, and only two are held.

    Raises:
        UserError: fewer than two SAEs, or what `match` raises.
    """
    matchings: list[Matching] = []
    previous: SparseAutoencoder | None = None
    for sae in saes:
        if previous is not None:
            matchings.append(match(previous, sae, **options))
        previous = sae
    if not matchings:
        raise UserError("a chain needs at least two SAEs")
    return Chain(matchings)
