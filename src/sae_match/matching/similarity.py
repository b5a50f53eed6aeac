"""The configuration's group `matching`: what two features are compared by, and which of them are matched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.keys import Keyed, tensor_digest
from sae_match.matching.feature_pair import FeaturePair, sae_facts
from sae_match.matching.problem import GroupWeights, MatchingProblem, Metric, SimilarityProblem, matching_problem
from sae_match.matching.solution import Solver, refuse_above
from sae_match.options import option
from sae_match.saes.folding import FoldingKind

ADVICE = "narrower SAEs, a machine with more memory, or a control less"
"""What the user can do about a matrix of similarities that does not fit."""


class DeadFeatures(StrEnum):
    """What happens to features that never fire on the evaluation text."""

    keep = "keep"
    exclude = "exclude"


@option
class Comparison(Keyed, ABC):
    """What two features are compared by, and which of them are matched.

    Its key holds its code, its arguments and all that a pair offers, so that no stale matching is taken for its own;
    one that reads less says so in `reads`, and then shares its matchings with every job that agrees on that.
    """

    fitted: ClassVar[bool] = False
    """Whether it reads `pair.fit_streams`: text that is not evaluated is then captured as well."""
    by_layer: ClassVar[bool] = False
    """Whether it knows of a layer's features what no parameter says, such as their explanations: it cannot compare two
    SAEs of one layer, and no rotation of parameters changes it."""
    reads_folding: ClassVar[bool] = True
    """Whether it depends on folding; False says so in tables of matchers."""
    mean_name: ClassVar[str] = "fit_similarity"
    """Metric under which a control with this similarity reports the mean over its matched pairs."""

    name: str
    """Short name used in records."""
    rejection_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """A feature of the narrower SAE may stay unmatched at this cost (a squared distance, in matched units);
    null = all of them are matched. solver=certified only."""
    n_pairs: Annotated[int, Field(ge=1)] | None = None
    """Match exactly this many pairs, the cheapest set of them; null = as many as the narrower SAE has features.
    solver=certified only."""
    dead_features: DeadFeatures = DeadFeatures.keep
    """keep | exclude: features that fire on no counted token of the evaluation text stay unmatched. exclude needs
    evaluation=full."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.rejection_cost is not None and self.n_pairs is not None:
            raise ValueError("matching.rejection_cost and matching.n_pairs both limit the pairs: give one of them")
        return self

    @abstractmethod
    def problem(self, pair: FeaturePair) -> MatchingProblem | SimilarityProblem:
        """The assignment problem of a pair.

        Raises:
            UserError: SAEs that cannot be compared in this way, or limits to the pairs.
        """

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """All that a matching depends on beside this class, its arguments and the features that are excluded."""
        return pair.facts()

    def pair_key(self, pair: FeaturePair) -> dict[str, object]:
        """Plain data that is equal for two matchings only if they solve the same problem."""
        excluded = [None if mask is None else tensor_digest(mask) for mask in pair.excluded]
        return {**self.facts(("name", "dead_features")), "reads": self.reads(pair), "excluded": excluded}

    def files(self, layer: int) -> list[Path]:
        """What it reads of a layer beside SAEs and text: a job looks for it before long work, and is another job
        when its content changes.

        Raises:
            UserError: a file is missing.
        """
        return []

    @abstractmethod
    def required_bytes(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> int:
        """The least peak memory of matching SAEs of these widths."""

    def check_memory(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> None:
        """Refuse SAEs that cannot be matched in memory; nothing is allocated.

        Raises:
            UserError: they need more.
        """
        needed = self.required_bytes(solver, n_a, n_b, d_model)
        refuse_above(solver.memory_limit_gib, needed, self.name, (n_a, n_b), ADVICE)


@option
class Similarity(Comparison):
    """A comparison that gives the similarity of every pair of features."""

    @abstractmethod
    def matrix(self, pair: FeaturePair) -> Float[Tensor, "K_a K_b"]:
        """Similarity of the features that are matched (`pair.kept()`), float32, larger = more alike."""

    def problem(self, pair: FeaturePair) -> SimilarityProblem:
        """The similarities as they are; limits to the pairs are for squared distances."""
        if self.rejection_cost is not None or self.n_pairs is not None:
            raise UserError(f"matching.rejection_cost and n_pairs are for squared distances, not for {self.name}")
        return SimilarityProblem(self.matrix(pair))

    def required_bytes(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> int:
        """The matrix of similarities and its assignment."""
        return solver.similarity_bytes(n_a, n_b)


class RowDistance(Comparison):
    """Features are rows of numbers, compared by their squared distance: nothing of the size of all pairs is needed."""

    @abstractmethod
    def problem(self, pair: FeaturePair) -> MatchingProblem:
        """The rows of both sides."""

    @abstractmethod
    def numbers_per_feature(self, d_model: int) -> int:
        """Length of a row."""

    def required_bytes(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> int:
        """What the solver needs for the rows."""
        return solver.required_bytes(n_a, n_b, self.numbers_per_feature(d_model))

    def check_memory(self, solver: Solver, n_a: int, n_b: int, d_model: int) -> None:
        """As the solver checks it."""
        solver.check_memory(n_a, n_b, self.numbers_per_feature(d_model))


@option
class WeightDistance(RowDistance):
    """The paper's: squared distance of the two features' parameters (Eq. 3)."""

    name: str = "weights"
    metric: Metric
    """both | decoder | encoder: which parameters enter."""
    include_bias: bool = True
    """Whether b_enc enters where the metric covers the encoder (the paper: true)."""
    weights: GroupWeights = Field(default_factory=GroupWeights)
    """Weights of the groups' squared distances; the paper uses 1 for all."""

    @model_validator(mode="after")
    def _something_is_compared(self) -> Self:
        groups = {Metric.decoder: ["W_dec"], Metric.encoder: ["W_enc", "b_enc"]}.get(
            self.metric, ["W_enc", "b_enc", "W_dec"]
        )
        used = [name for name in groups if self.include_bias or name != "b_enc"]
        if all(getattr(self.weights, name) == 0 for name in used):
            raise ValueError(f"matching.weights: {', '.join(used)} are all 0, so nothing would be compared")
        return self

    def problem(self, pair: FeaturePair) -> MatchingProblem:
        """Rows of the chosen parameter groups, each times the root of its weight."""
        return weights_problem(
            pair, metric=self.metric, include_bias=self.include_bias, weights=self.weights,
            rejection_cost=self.rejection_cost, n_pairs=self.n_pairs,
        )  # fmt: skip

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """The SAEs, and their folding scales where they are folded."""
        return weights_read(pair)

    def numbers_per_feature(self, d_model: int) -> int:
        """d for each of W_enc and W_dec, and 1 for b_enc."""
        return {Metric.both: 2 * d_model + 1, Metric.encoder: d_model + 1, Metric.decoder: d_model}[self.metric]


def weights_read(pair: FeaturePair) -> dict[str, object]:
    """What a comparison of weights depends on: the SAEs, and their folding scales where they are folded."""
    folded = pair.folding is FoldingKind.theta
    saes = [sae_facts(sae) if folded else {"content": sae.content_hash} for sae in pair.weights]
    return {"saes": saes, "folding": pair.folding.value}


def weights_problem(pair: FeaturePair, **how: Any) -> MatchingProblem:
    """`matching_problem` of the features of a pair that are matched.

    Args:
        how: its keyword arguments but `folding`, which is the pair's.
    """
    return matching_problem(*pair.to_fold(), folding=pair.folding, **how).part(*pair.kept())
