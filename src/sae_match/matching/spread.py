"""Features whose rows are far longer than the others': what they do to the objective, and what to do about them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.matching.problem import MatchingProblem

MAX_SPREAD = 1e3
"""Ratio of row norms up to which one grid resolves every cost."""
NAMED = 3
"""Features of each side that a message names."""


def norms(rows: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """Euclidean norms in float64."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def is_wide(problem: MatchingProblem) -> bool:
    """Whether the largest row norm is more than `MAX_SPREAD` times the smallest one that is not 0."""
    both = torch.cat([norms(problem.left), norms(problem.right)])
    both = both[both > 0]
    return len(both) > 0 and float(both.max()) > MAX_SPREAD * float(both.min())


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
