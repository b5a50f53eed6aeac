"""What the matching is compared with on the same tokens, in the same job: other ways to pair features, and splices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.evaluation.activations import firing_counts
from sae_match.evaluation.linear_map import LinearMapSplice
from sae_match.evaluation.splices import Splice
from sae_match.keys import Keyed
from sae_match.matching import UNMATCHED, Matching, Permutation
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Comparison, Similarity
from sae_match.matching.solution import Solver
from sae_match.options import option
from sae_match.saes.folding import FoldingKind
from sae_match.style import ORANGE, VERMILION, Style


@dataclass(frozen=True)
class ControlMatching:
    """A control's permutation of a pair.

    Attributes:
        values: numbers about how it was found, by metric.
        confidence: [F_a] by what it orders its pairs, as in `Matching`; None where it knows no such order.
    """

    permutation: Permutation
    values: Mapping[str, float] = field(default_factory=dict)
    confidence: Float[Tensor, " F_a"] | None = None


Match = Callable[[FeaturePair, Comparison, Solver], Matching]
"""Matches the features of a pair, or knows the answer."""


@option
class Control(Keyed, ABC):
    """An alternative that is measured beside the matching."""

    in_curves: ClassVar[bool] = False
    """Whether the record's per-layer figures draw it: a dozen curves tell nothing apart."""

    name: str
    """Variant of its rows."""
    label: str = ""
    """What legends call it; empty = the name."""
    style: Style | None = None
    """How its curve is drawn; null = in a color that is free."""

    @property
    def fitted(self) -> bool:
        """Whether it is fitted on text that is not evaluated."""
        return any(splice.fitted for splice in self.splices())

    def splices(self) -> tuple[Splice, ...]:
        """Splices that belong to it beside the one along its permutation."""
        return ()


class MatchingControl(Control):
    """A control that pairs features: it has scores, weight metrics and a splice of Eq. 5 like the matching itself."""

    @property
    def limits_pairs(self) -> bool:
        """Whether it can be asked for under `matching.n_pairs` or `matching.rejection_cost`."""
        return True

    @abstractmethod
    def match(self, pair: FeaturePair, match: Match) -> ControlMatching:
        """The permutation of one pair; excluded features stay unmatched.

        Args:
            match: matches a pair by a similarity and a solver, or knows the answer.
        """

    def check_memory(self, n_a: int, n_b: int, d_model: int) -> None:
        """Refuse a pair that does not fit into memory; nothing is allocated.

        Raises:
            UserError: it does not fit.
        """


@option
class Vanilla(MatchingControl):
    """The identity: feature i to feature i, as far as both SAEs have one."""

    in_curves: ClassVar[bool] = True
    name: str = "vanilla"
    label: str = "vanilla (identity)"
    style: Style | None = Style(VERMILION, "s", "-")

    def match(self, pair: FeaturePair, match: Match) -> ControlMatching:
        """The identity without the excluded features."""
        return ControlMatching(identity(pair))


@option
class Random(MatchingControl):
    """A uniformly drawn one-to-one matching, seeded with the job's seed plus t."""

    in_curves: ClassVar[bool] = True
    name: str = "random"
    style: Style | None = Style(ORANGE, "v", "-")

    def match(self, pair: FeaturePair, match: Match) -> ControlMatching:
        """A draw among the features that are not excluded."""
        return ControlMatching(random(pair))


_COUNTS: dict[tuple[str, str, int, int], torch.Tensor] = {}
"""Firing counts of the SAEs seen last."""


@option
class FiringRate(MatchingControl):
    """Features paired by the rank of how often they fire on text that is not evaluated; of equal ones by index.

    Features that fire often fire together often, so this is a floor that a score has to beat: above `random`.
    """

    name: str = "frequency"
    label: str = "rank of firing rate"

    @property
    def fitted(self) -> bool:
        """Firing rates are those on other text."""
        return True

    def match(self, pair: FeaturePair, match: Match) -> ControlMatching:
        """The n-th most frequent feature of A to the n-th most frequent one of B."""
        ranked: list[torch.Tensor] = []
        sides = (pair.fit_streams, pair.fit_b or pair.fit_streams)
        for sae, streams, layer, kept in zip((pair.a, pair.b), sides, pair.layers, pair.kept(), strict=True):
            key = (sae.content_hash, streams.key, layer, pair.sink_positions)
            if key not in _COUNTS:  # of the layer before: each is the second one of a pair, then the first
                while len(_COUNTS) > 3:
                    _COUNTS.pop(next(iter(_COUNTS)))
                x = streams.layer(layer)
                _COUNTS[key] = firing_counts(sae, x, pair.batch_windows, pair.sink_positions)
            counts = _COUNTS[key][kept]
            ranked.append(kept[counts.argsort(descending=True, stable=True)])
        n = min(map(len, ranked))
        indices = torch.full((pair.a.width,), UNMATCHED)
        indices[ranked[0][:n]] = ranked[1][:n]
        return ControlMatching(Permutation(indices, pair.b.width))


@option
class Matcher(MatchingControl):
    """Features paired by a similarity and a solver of its own."""

    similarity: Comparison
    """What features are compared by; ${matching} = as the job's own matching does."""
    solver: Solver
    """How pairs follow from it."""
    folding: FoldingKind | None = None
    """Whether the similarity sees folded SAEs (Eq. 4): theta | none; null = as folding.name says."""

    @property
    def fitted(self) -> bool:
        """Whether the similarity is."""
        return self.similarity.fitted

    @property
    def limits_pairs(self) -> bool:
        """Whether the solver knows the limits."""
        return self.solver.limits_pairs

    def facts(self, leave_out: tuple[str, ...] = ()) -> dict[str, object]:
        """As of every keyed object; the similarity's own key would need a pair."""
        return super().facts((*leave_out, "similarity")) | {"similarity": self.similarity.facts()}

    def match(self, pair: FeaturePair, match: Match) -> ControlMatching:
        """What the solver finds, with its cost; for given similarities also their mean over the pairs."""
        own = pair if self.folding is None else replace(pair, folding=self.folding)
        found = match(own, self.similarity, self.solver)
        values = solver_values(found)
        if (mean := found.statistics.get("mean_similarity")) is not None:
            values |= {self.similarity.mean_name: mean, "mean_similarity": mean}
        return ControlMatching(found.permutation, values, found.confidence)

    def check_memory(self, n_a: int, n_b: int, d_model: int) -> None:
        """As similarity and solver need it."""
        self.similarity.check_memory(self.solver, n_a, n_b, d_model)

    @property
    def all_pairs(self) -> bool:
        """Whether the similarity of every pair of features is computed."""
        return isinstance(self.similarity, Similarity)


@option
class LinearMap(Control):
    """The splice `linear_map`: what a map without features can do."""

    name: str = "linear_map"

    def splices(self) -> tuple[Splice, ...]:
        """The fitted map."""
        return (LinearMapSplice(name=self.name),)


def solver_values(matching: Matching) -> dict[str, float]:
    """What is reported of every matching that a solver found: objective, number of pairs, time, and the gap where it is
    known."""
    pairs = float(len(matching.permutation.matched))
    values = {"objective": matching.objective, "matched_pairs": pairs, "solver_seconds": matching.seconds}
    return values if matching.gap is None else values | {"gap": matching.gap}


def identity(pair: FeaturePair) -> Permutation:
    """Feature i to feature i, without the excluded ones."""
    found = Permutation.identity(pair.a.width, pair.b.width)
    gone_a, gone_b = (
        torch.zeros(sae.width, dtype=torch.bool) if gone is None else gone.cpu()
        for sae, gone in zip((pair.a, pair.b), pair.excluded, strict=True)
    )
    partner_gone = gone_b[found.indices.clamp(min=0)]
    return replace(found, indices=found.indices.masked_fill(gone_a | partner_gone, UNMATCHED))


def random(pair: FeaturePair) -> Permutation:
    """A one-to-one matching drawn with the pair's seed plus t, without the excluded features."""
    kept_a, kept_b = pair.kept()
    drawn = Permutation.random(len(kept_a), len(kept_b), seed=pair.seed + pair.layers[0])
    return drawn.embedded(kept_a, kept_b, pair.a.width, pair.b.width)
