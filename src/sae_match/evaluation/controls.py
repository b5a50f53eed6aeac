"""What the matching is compared with on the same tokens, in the same job: other ways to pair features, and splices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.evaluation.correlation import activation_correlations
from sae_match.evaluation.linear_map import LinearMapSplice
from sae_match.evaluation.splices import Splice, Streams, require_streams, sae_facts
from sae_match.keys import Keyed, tensor_digest
from sae_match.matching import UNMATCHED, Permutation, make_solver
from sae_match.matching.by_similarity import check_memory, match_by_similarity
from sae_match.matching.solution import Solver
from sae_match.options import option
from sae_match.saes import SparseAutoencoder
from sae_match.style import ORANGE, VERMILION, Style


@dataclass(frozen=True)
class ControlSetup:
    """What the controls of a job share.

    Attributes:
        memory_limit_gib: the most that a solver may use; None = what the machine has available.
        problem_width: numbers per feature that the job's matching compares.
        device: where solvers compute products.
    """

    memory_limit_gib: float | None
    problem_width: int
    seed: int = 0
    device: str = "cpu"
    batch_windows: int = 8
    sink_positions: int = 1


@dataclass(frozen=True)
class ControlMatching:
    """A control's permutation of a pair, and numbers about how it was found, by metric."""

    permutation: Permutation
    values: Mapping[str, float] = field(default_factory=dict)


Remember = Callable[[Mapping[str, object], Callable[[], ControlMatching]], ControlMatching]
"""Finds a matching, or knows it by all the facts that it depends on."""


def _always_find(_facts: Mapping[str, object], find: Callable[[], ControlMatching]) -> ControlMatching:
    return find()


@dataclass(frozen=True)
class ControlPair:
    """What a control may pair features by.

    Attributes:
        layers: t and t+1.
        a, b: their SAEs.
        excluded: features of either side that stay unmatched; None = none.
        fit: residual streams of text that is not evaluated; None where none was prepared.
        solve: solves the job's own matching problem with another solver, or knows the answer.
        remember: finds a matching, or knows it.
    """

    setup: ControlSetup
    layers: tuple[int, int]
    a: SparseAutoencoder
    b: SparseAutoencoder
    excluded: tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None] = (None, None)
    fit: Streams | None = None
    solve: Callable[[Solver], Permutation] | None = None
    remember: Remember = _always_find

    @property
    def fit_streams(self) -> Streams:
        """Residual streams of the text on which a control may be fitted.

        Raises:
            UserError: none was prepared.
        """
        return require_streams(self.fit, "control")

    def kept(self) -> tuple[Int[Tensor, " K_a"], Int[Tensor, " K_b"]]:
        """Features of either side that are matched."""
        kept_a, kept_b = (
            torch.arange(sae.width) if gone is None else (~gone.cpu()).nonzero().flatten()
            for sae, gone in zip((self.a, self.b), self.excluded, strict=True)
        )
        return kept_a, kept_b

    def facts(self) -> dict[str, object]:
        """Everything that a matching by similarity could depend on."""
        return {
            "layers": list(self.layers),
            "saes": [sae_facts(sae) for sae in (self.a, self.b)],
            "excluded": [None if mask is None else tensor_digest(mask) for mask in self.excluded],
            "streams": None if self.fit is None else self.fit.key,
            "seed": self.setup.seed,
            "sink_positions": self.setup.sink_positions,
            "device": self.a.device.type,
        }


@option
class Control(Keyed, ABC):
    """An alternative that is measured beside the matching."""

    fitted: ClassVar[bool] = False
    """Whether it is fitted on text that is not evaluated."""
    in_curves: ClassVar[bool] = False
    """Whether the record's per-layer figures draw it: a dozen curves tell nothing apart."""
    takes_limits: ClassVar[bool] = True
    """Whether it can be had beside a matching with a rejection cost or a number of pairs."""

    name: str
    """Variant of its rows."""
    label: str = ""
    """What legends call it; empty = the name."""
    style: Style | None = None
    """How its curve is drawn; null = in a color that is free."""

    def splices(self) -> tuple[Splice, ...]:
        """Splices that belong to it beside the one along its permutation."""
        return ()


class MatchingControl(Control):
    """A control that pairs features: it has scores, weight metrics and a splice of Eq. 5 like the matching itself."""

    similarities: ClassVar[bool] = False
    """Whether it computes the similarity of every pair of features."""
    reference: ClassVar[str | None] = None
    """Solver whose measured time says how long it takes; None = no time worth telling."""

    @abstractmethod
    def match(self, pair: ControlPair) -> ControlMatching:
        """The permutation of one pair; excluded features stay unmatched."""

    def check_memory(self, setup: ControlSetup, width_a: int, width_b: int) -> None:
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

    def match(self, pair: ControlPair) -> ControlMatching:
        """The identity without the excluded features."""
        found = Permutation.identity(pair.a.width, pair.b.width)
        gone_a, gone_b = (
            torch.zeros(sae.width, dtype=torch.bool) if gone is None else gone.cpu()
            for sae, gone in zip((pair.a, pair.b), pair.excluded, strict=True)
        )
        partner_gone = gone_b[found.indices.clamp(min=0)]
        return ControlMatching(replace(found, indices=found.indices.masked_fill(gone_a | partner_gone, UNMATCHED)))


@option
class Random(MatchingControl):
    """A uniformly drawn one-to-one matching, seeded with the job's seed plus t."""

    in_curves: ClassVar[bool] = True
    name: str = "random"
    style: Style | None = Style(ORANGE, "v", "-")

    def match(self, pair: ControlPair) -> ControlMatching:
        """A draw among the features that are not excluded."""
        kept_a, kept_b = pair.kept()
        drawn = Permutation.random(len(kept_a), len(kept_b), seed=pair.setup.seed + pair.layers[0])
        return ControlMatching(drawn.embedded(kept_a, kept_b, pair.a.width, pair.b.width))


class SolvedControl(MatchingControl):
    """The job's own problem, solved by a baseline solver within the memory of the job's solver."""

    takes_limits: ClassVar[bool] = False
    baseline: ClassVar[str]

    def match(self, pair: ControlPair) -> ControlMatching:
        """What the baseline solver finds."""
        if pair.solve is None:
            raise ValueError("a pair without `solve` has no matching problem")
        return ControlMatching(pair.solve(self.solver(pair.setup)))

    def solver(self, setup: ControlSetup) -> Solver:
        """The baseline solver."""
        return make_solver(self.baseline, memory_limit_gib=setup.memory_limit_gib).on(setup.device)

    def check_memory(self, setup: ControlSetup, width_a: int, width_b: int) -> None:
        """As the solver needs it."""
        self.solver(setup).check_memory(width_a, width_b, setup.problem_width)


@option
class Greedy(SolvedControl):
    """The cheapest pair first, one to one."""

    baseline: ClassVar[str] = "greedy"
    reference: ClassVar[str | None] = "greedy"
    name: str = "greedy"


@option
class Nearest(SolvedControl):
    """Every feature to its nearest one, many to one."""

    baseline: ClassVar[str] = "nearest"
    reference: ClassVar[str | None] = "nearest"
    name: str = "nearest"


@option
class Mutual(SolvedControl):
    """Mutual nearest neighbors only."""

    baseline: ClassVar[str] = "mutual"
    reference: ClassVar[str | None] = "mutual"
    name: str = "mutual"


@option
class Cosine(SolvedControl):
    """The exact matching of rows scaled to unit norm."""

    baseline: ClassVar[str] = "cosine"
    reference: ClassVar[str | None] = "cosine"
    name: str = "cosine"


class SimilarityControl(MatchingControl):
    """The one-to-one matching with the largest sum of some similarity, solved exactly.

    A subclass says how similar features are; its matching is kept by its code, arguments and all that a pair offers.
    """

    similarities: ClassVar[bool] = True
    reference: ClassVar[str | None] = "correlation"
    mean_name: ClassVar[str] = "fit_similarity"
    """Metric under which the mean similarity of the matched pairs is reported."""

    @abstractmethod
    def similarity(self, pair: ControlPair) -> Float[Tensor, "K_a K_b"]:
        """Similarity of the features that are kept (`pair.kept()`), float32 in -1..1, larger = more alike."""

    def match(self, pair: ControlPair) -> ControlMatching:
        """The best matching of the features that are kept, its mean similarity and how far it may be from the best."""
        facts = {"control": self.facts(("name", "label", "style")), "pair": pair.facts()}
        return pair.remember(facts, lambda: self._find(pair))

    def _find(self, pair: ControlPair) -> ControlMatching:
        return self.matched(pair, self.similarity(pair), turned=False)

    def matched(self, pair: ControlPair, similarity: Float[Tensor, "n m"], turned: bool) -> ControlMatching:
        """The matching that a matrix of similarities gives.

        Args:
            turned: rows are B's features.
        """
        a, b = pair.a.width, pair.b.width
        kept_a, kept_b = pair.kept()
        part = match_by_similarity(similarity.cpu(), memory_limit_gib=pair.setup.memory_limit_gib)
        sides = (kept_b, kept_a, b, a) if turned else (kept_a, kept_b, a, b)
        whole = part.permutation.embedded(*sides)
        permutation = Permutation(whole.inverse().indices, b) if turned else whole
        return ControlMatching(permutation, {self.mean_name: part.mean, "gap": part.gap})

    def check_memory(self, setup: ControlSetup, width_a: int, width_b: int) -> None:
        """The matrix of similarities and its assignment."""
        # The narrower side is in front when it comes to matching.
        check_memory(min(width_a, width_b), max(width_a, width_b), setup.memory_limit_gib)


@option
class Correlation(SimilarityControl):
    """Highest correlation of activations, on text that is not evaluated."""

    fitted: ClassVar[bool] = True
    mean_name: ClassVar[str] = "fit_correlation"
    name: str = "correlation"

    def similarity(self, pair: ControlPair) -> Float[Tensor, "K_a K_b"]:
        """Pearson correlation over the counted tokens."""
        return self._correlations(pair, turned=False)

    def _find(self, pair: ControlPair) -> ControlMatching:
        # The narrower side in front: the matrix is then made the way round in which it is matched, and never copied.
        kept_a, kept_b = pair.kept()
        turned = len(kept_a) > len(kept_b)
        return self.matched(pair, self._correlations(pair, turned), turned)

    def _correlations(self, pair: ControlPair, turned: bool) -> Float[Tensor, "n m"]:
        streams, setup = pair.fit_streams, pair.setup
        sides = [
            (sae, streams.layer(layer), kept)
            for sae, layer, kept in zip((pair.a, pair.b), pair.layers, pair.kept(), strict=True)
        ]
        (first, x_first, kept_first), (second, x_second, kept_second) = reversed(sides) if turned else sides
        return activation_correlations(
            first,
            second,
            x_first,
            x_second,
            setup.batch_windows,
            setup.sink_positions,
            kept_first if len(kept_first) < first.width else None,
            kept_second if len(kept_second) < second.width else None,
        )


@option
class LinearMap(Control):
    """The splice `linear_map`: what a map without features can do."""

    fitted: ClassVar[bool] = True
    name: str = "linear_map"

    def splices(self) -> tuple[Splice, ...]:
        """The fitted map."""
        return (LinearMapSplice(name=self.name),)
