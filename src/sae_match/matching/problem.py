"""The matching problem: which parameters of two SAEs are compared, as points in one Euclidean space (Eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Integral, Real
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae_match.assignment.arrays import MAX_SPREAD
from sae_match.assignment.grid import row_norms
from sae_match.assignment.points import pair_costs
from sae_match.errors import UserError
from sae_match.matching.permutation import Permutation
from sae_match.options import option, parse
from sae_match.saes import SparseAutoencoder, fold
from sae_match.saes.folding import FoldingKind


class Metric(StrEnum):
    """Which parameters enter the matching cost (Eq. 3)."""

    both = "both"
    decoder = "decoder"
    encoder = "encoder"


NAMED = 3
"""Features of each side that a message names."""


@option
class GroupWeights:
    """Weight of each parameter group in the matching cost; the paper uses 1 for all."""

    W_enc: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Encoder columns."""
    b_enc: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Encoder biases."""
    W_dec: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Decoder rows."""


@dataclass(frozen=True)
class MatchingProblem:
    """Features of two SAEs as rows; the cost of pairing i with j is the squared distance of row i and row j.

    The rows of a metric are its parameter groups side by side (W_enc columns, b_enc entries, W_dec rows), each
    multiplied by the square root of its weight, so squared distances add up with those weights.

    Args:
        left: one row per feature of A.
        right: one row per feature of B.
        rejection_cost: a feature of the narrower side may stay unmatched at this cost; None = all are matched.
        n_pairs: match exactly this many pairs; None = as many as the narrower side has.
        features_a, features_b: [F_a], [F_b] which features of the SAEs the rows are; None = 0, 1, 2, ...
    """

    left: Float[Tensor, "F_a D"]
    right: Float[Tensor, "F_b D"]
    rejection_cost: float | None = None
    n_pairs: int | None = None
    features_a: Int[Tensor, " F_a"] | None = None
    features_b: Int[Tensor, " F_b"] | None = None

    def part(self, kept_a: Int[Tensor, " K_a"], kept_b: Int[Tensor, " K_b"]) -> MatchingProblem:
        """The problem of matching only these features of a whole problem; itself where they are all."""
        if (len(kept_a), len(kept_b)) == self.shape:
            return self
        return replace(
            self, left=self.left[kept_a], right=self.right[kept_b], features_a=kept_a, features_b=kept_b
        )  # fmt: skip

    def check(self) -> None:
        """Refuse what no solver can answer.

        Raises:
            UserError: NaN or infinity, an empty side, a rejection cost that is no finite number >= 0, more pairs than
                there are features, or both limits at once.
        """
        n_a, n_b = self.shape
        if min(n_a, n_b) == 0:
            raise UserError(f"nothing to match: {n_a} and {n_b} features are left on the two sides")
        if not all(math.isfinite(float(end)) for side in (self.left, self.right) for end in torch.aminmax(side)):
            raise UserError("the matching problem holds NaN or infinity; check the SAEs' parameters")
        if self.rejection_cost is not None and self.n_pairs is not None:
            raise UserError("rejection_cost and n_pairs both limit the pairs: give one of them")
        cost = self.rejection_cost
        if cost is not None and not (isinstance(cost, Real) and 0 <= cost < math.inf):
            raise UserError(f"rejection_cost={cost}: must be a finite number >= 0, or None")
        whole = isinstance(self.n_pairs, Integral) and not isinstance(self.n_pairs, bool)
        if self.n_pairs is not None and not (whole and 1 <= self.n_pairs <= min(n_a, n_b)):
            raise UserError(f"n_pairs={self.n_pairs}: must be in 1..{min(n_a, n_b)}, the narrower side's features")

    def check_complete(self, solver: str) -> None:
        """Refuse limits to the pairs on behalf of a solver that knows none.

        Raises:
            UserError: rejection_cost or n_pairs is set, or what `check` refuses.
        """
        self.check()
        if self.rejection_cost is not None or self.n_pairs is not None:
            raise UserError(
                f"solver={solver} cannot be told how many features to match; rejection_cost and n_pairs need "
                "solver=certified"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(F_a, F_b)."""
        return len(self.left), len(self.right)

    def pair_costs(self, permutation: Permutation) -> Float[Tensor, " M"]:
        """Squared distance of every matched pair, float64."""
        left, right = (side.contiguous().numpy() for side in (self.left, self.right))
        return torch.from_numpy(pair_costs(left, right, permutation.indices.numpy(), torch.get_num_threads()))

    def objective(self, permutation: Permutation) -> float:
        """Sum over matched pairs of the squared distance, accumulated in float64, plus the rejections' cost."""
        return self.total(self.pair_costs(permutation).tolist())

    def total(self, costs: Sequence[float]) -> float:
        """The objective of pairs of these costs, the same in whatever order."""
        return math.fsum([*costs, (min(self.shape) - len(costs)) * (self.rejection_cost or 0.0)])

    def confidence(self, permutation: Permutation) -> Float[Tensor, " M"]:
        """Minus the squared distance of every matched pair."""
        return -self.pair_costs(permutation).float().cpu()


@dataclass(frozen=True)
class SimilarityProblem:
    """Similarities of all pairs of the features that are matched; the cost of a pair is 2 - 2 S_ij: of cosines, the
    squared distance of two unit vectors.

    Args:
        matrix: float32, larger = more alike.
    """

    matrix: Float[Tensor, "K_a K_b"]

    def check(self) -> None:
        """Refuse what no solver can answer.

        Raises:
            UserError: an empty side, NaN or infinity.
        """
        if min(self.shape) == 0:
            raise UserError(f"nothing to match: {self.shape[0]} and {self.shape[1]} features are left on the two sides")
        low, high = (float(end) for end in torch.aminmax(self.matrix))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(
                f"similarities lie between {low:g} and {high:g}, but must be finite numbers: check the activations "
                "that they were computed from"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(K_a, K_b)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def objective(self, permutation: Permutation) -> float:
        """Sum of the matched pairs' costs, accumulated in float64."""
        rows = permutation.matched
        found = self.matrix[rows, permutation.indices[rows]].to(torch.float64)
        return float((2 - 2 * found).sum())

    def confidence(self, permutation: Permutation) -> Float[Tensor, " M"]:
        """Similarity of every matched pair."""
        rows = permutation.matched
        return self.matrix[rows, permutation.indices[rows]].float().cpu()


def feature_rows(
    sae: SparseAutoencoder, metric: Metric, include_bias: bool, weights: GroupWeights
) -> Float[Tensor, "F D"]:
    """One row per feature with the parameter groups of `metric`, scaled by the roots of their weights."""
    groups: list[Tensor] = []
    if metric in (Metric.both, Metric.encoder):
        groups.append(sae.W_enc.T * math.sqrt(weights.W_enc))
        if include_bias:
            groups.append(sae.b_enc[:, None] * math.sqrt(weights.b_enc))
    if metric in (Metric.both, Metric.decoder):
        groups.append(sae.W_dec * math.sqrt(weights.W_dec))
    return torch.cat(groups, dim=1).contiguous()


def matching_problem(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    *,
    metric: Metric | str = Metric.both,
    folding: FoldingKind | str = FoldingKind.theta,
    include_bias: bool = True,
    weights: GroupWeights | None = None,
    rejection_cost: float | None = None,
    n_pairs: int | None = None,
) -> MatchingProblem:
    """The problem of matching `a`'s features to `b`'s.

    Args:
        metric: `both`, `decoder` or `encoder` (Eq. 3 of the paper).
        folding: `theta` folds both SAEs first (Eq. 4); `none` compares the parameters as stored.
        include_bias: whether b_enc enters where the metric covers the encoder.
        weights: weights of the groups' squared distances; all 1 if None, as in the paper.
        rejection_cost, n_pairs: limits to the pairs, as in `MatchingProblem`.

    Raises:
        UserError: different d_model, an unknown name, a negative weight, or a threshold that cannot be folded.
    """
    metric, folding = parse(Metric, metric, "metric"), parse(FoldingKind, folding, "folding")
    weights = weights or GroupWeights()
    check_same_stream(a, b)
    if folding is FoldingKind.theta:
        a, b = fold(a), fold(b)
    left, right = (feature_rows(sae, metric, include_bias, weights).cpu() for sae in (a, b))
    return MatchingProblem(left, right, rejection_cost, n_pairs)


def check_same_stream(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    """Refuse SAEs over residual streams of different widths.

    Raises:
        UserError: different d_model.
    """
    if a.d_model != b.d_model:
        raise UserError(f"cannot match SAEs over different residual streams: d_model {a.d_model} and {b.d_model}")


def norms(rows: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Euclidean norms of float32 rows, in float64."""
    return torch.from_numpy(row_norms(rows.contiguous().numpy(), torch.get_num_threads()))


def unit_rows(rows: Float[Tensor, "F D"]) -> Float[Tensor, "F D"]:
    """Rows of unit norm; zero rows stay zero."""
    out = torch.empty_like(rows)
    for low in range(0, len(rows), 4096):
        out[low : low + 4096] = unit_rows64(rows[low : low + 4096])
    return out


def unit_rows64(rows: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Rows of unit norm in float64, which holds the squares of all float32 numbers; zero rows stay zero."""
    return torch.nn.functional.normalize(rows.to(torch.float64), dim=1, eps=1e-300)


def describe_outliers(problem: MatchingProblem) -> str | None:
    """Which features' rows are more than `MAX_SPREAD` times as long as the median one; None where there are none."""
    sides = norms(problem.left), norms(problem.right)
    median = float(torch.cat(sides).median())
    named = [
        text
        for side, values, features in zip("AB", sides, (problem.features_a, problem.features_b), strict=True)
        if (text := _largest(side, values, MAX_SPREAD * median, features))
    ]
    if median == 0 or not named:
        return None
    return (
        f"rows more than {MAX_SPREAD:g} times as long as the median one ({median:.3g}) outweigh all others in the "
        f"objective: {'; '.join(named)}. Their thresholds are probably those of dead features: exclude them "
        "(exclude_a, exclude_b; matching.dead_features), or use another folding scale (folding=none)"
    )


def _largest(
    side: str, values: Float[Tensor, " n"], above: float, features: Int[Tensor, " n"] | None
) -> str:  # fmt: skip
    """The longest rows of one side, as "3 of B: features 7 (1e+08), ..."; empty where there are none."""
    order = torch.argsort(values, descending=True, stable=True)[: int((values > above).sum())]
    if not len(order):
        return ""
    first = [f"{int(i if features is None else features[i])} (norm {float(values[i]):.3g})" for i in order[:NAMED]]
    more = ", ..." if len(order) > NAMED else ""
    return f"{len(order)} of {side}: feature {', '.join(first)}{more}"
