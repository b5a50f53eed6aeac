"""The configuration's group `matching`: what two features are compared by, and which of them are matched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from sae_match.keys import Keyed
from sae_match.matching.problem import GroupWeights, MatchingProblem, Metric, matching_problem
from sae_match.options import option
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind


class DeadFeatures(StrEnum):
    """What happens to features that never fire on the evaluation text."""

    keep = "keep"
    exclude = "exclude"


@option
class Similarity(Keyed, ABC):
    """What two features are compared by."""

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
    def problem(self, a: SparseAutoencoder, b: SparseAutoencoder, folding: FoldingKind) -> MatchingProblem:
        """The assignment problem of two SAEs; with folding `theta` of their folded parameters.

        Raises:
            UserError: SAEs that cannot be compared in this way.
        """

    @abstractmethod
    def numbers_per_feature(self, d_model: int) -> int:
        """How many numbers of a feature are compared: what the problem's memory depends on."""

    def key(self) -> dict[str, object]:
        """Everything about it that can change a matching; which features are excluded is known by their masks."""
        return self.facts(("name", "dead_features"))


@option
class WeightDistance(Similarity):
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

    def problem(self, a: SparseAutoencoder, b: SparseAutoencoder, folding: FoldingKind) -> MatchingProblem:
        """Rows of the chosen parameter groups, each times the root of its weight."""
        return matching_problem(
            a, b, metric=self.metric, folding=folding, include_bias=self.include_bias, weights=self.weights,
            rejection_cost=self.rejection_cost, n_pairs=self.n_pairs,
        )  # fmt: skip

    def numbers_per_feature(self, d_model: int) -> int:
        """d for each of W_enc and W_dec, and 1 for b_enc."""
        return {Metric.both: 2 * d_model + 1, Metric.encoder: d_model + 1, Metric.decoder: d_model}[self.metric]
