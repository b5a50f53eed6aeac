"""`match`: from two SAEs to the optimal permutation, its cost and its certificate."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_match.errors import UserError
from sae_match.keys import arguments
from sae_match.matching.make_solver import make_solver
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import GroupWeights, MatchingProblem, Metric, matching_problem
from sae_match.matching.similarity import Similarity
from sae_match.matching.solution import Solution, Solver
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind


@dataclass(frozen=True)
class Matching:
    """A permutation with its cost and, from the exact solvers, its proof.

    Attributes:
        permutation: feature i of A -> feature of B, with provenance.
        objective: sum of squared distances of the matched pairs, in the units in which they were matched, and of
            rejections' costs.
        lower_bound: no one-to-one matching costs less (up to `tolerance`); None from a baseline, which claims none.
        gap: (objective - lower_bound) / objective; None where there is no bound.
        tolerance: absolute rounding uncertainty of the bound.
        seconds: wall time of building and solving the problem.
        statistics: what the solver did: seconds per phase, counts, peak memory.
    """

    permutation: Permutation
    objective: float
    lower_bound: float | None
    gap: float | None
    tolerance: float
    seconds: float
    statistics: dict[str, float] = field(default_factory=dict)


def match(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    metric: Metric | str = "both",
    folding: FoldingKind | str = "theta",
    solver: Solver | str = "certified",
    *,
    include_bias: bool = True,
    weights: GroupWeights | None = None,
    rejection_cost: float | None = None,
    n_pairs: int | None = None,
    exclude_a: Bool[Tensor, " F_a"] | None = None,
    exclude_b: Bool[Tensor, " F_b"] | None = None,
    similarity: Similarity | None = None,
) -> Matching:
    """Match the features of `a` to those of `b` one-to-one at the least total squared distance (Eq. 3).

    Args:
        a, b: SAEs over residual streams of the same d_model; widths may differ (every feature of the narrower
            one is matched).
        metric: `both` (the paper's main scheme), `decoder` or `encoder`.
        folding: `theta` (fold thresholds first, Eq. 4) or `none`.
        solver: a name (`certified` is exact at any width; see `SOLVERS`), or a solver object with its options.
        include_bias: whether b_enc enters where the metric covers the encoder.
        weights: weights of the parameter groups; all 1 if None.
        rejection_cost: a feature of the narrower SAE may stay unmatched at this cost.
        n_pairs: match exactly this many pairs.
        exclude_a, exclude_b: features to set aside (dead ones, or those with threshold 0); they stay unmatched.
        similarity: what features are compared by, in place of the arguments from `metric` to `n_pairs`.

    Raises:
        UserError: incompatible SAEs, unknown names, thresholds that cannot be folded, masks of another shape, limits
            that the solver does not know, or too little memory.
    """
    started = time.perf_counter()
    for sae in (a, b):
        if not isinstance(sae, SparseAutoencoder):
            raise UserError(
                f"match needs two SparseAutoencoders, got a {type(sae).__name__}: load_sae reads one from its files, "
                "SparseAutoencoder.from_state_dict takes one from memory"
            )
    chosen = make_solver(solver) if isinstance(solver, str) else solver
    kept_a, kept_b = _kept(exclude_a, a.width, "exclude_a"), _kept(exclude_b, b.width, "exclude_b")
    if similarity is None:
        problem = matching_problem(
            a, b, metric=metric, folding=folding, include_bias=include_bias, weights=weights,
            rejection_cost=rejection_cost, n_pairs=n_pairs,
        )  # fmt: skip
        compared: dict[str, object] = {
            "metric": Metric(metric).value,
            "include_bias": include_bias,
            "weights": asdict(weights or GroupWeights()),
            "rejection_cost": rejection_cost,
            "n_pairs": n_pairs,
        }
    else:
        problem = similarity.problem(a, b, FoldingKind(folding))
        compared = arguments(similarity)
    solution = _solve(chosen, problem, kept_a, kept_b)
    seconds = time.perf_counter() - started
    provenance = {
        "sae_a": a.content_hash,
        "sae_b": b.content_hash,
        **compared,
        "folding": FoldingKind(folding).value,
        "solver": chosen.name,
        "excluded_a": a.width - len(kept_a),
        "excluded_b": b.width - len(kept_b),
        "objective": solution.objective,
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "seconds": round(seconds, 3),
    }
    return Matching(
        permutation=replace(solution.permutation, provenance=provenance),
        objective=solution.objective,
        lower_bound=solution.lower_bound,
        gap=solution.gap,
        tolerance=solution.tolerance,
        seconds=seconds,
        statistics=solution.statistics,
    )


def _without_theta(sae: SparseAutoencoder, excluded: Tensor | None) -> SparseAutoencoder:
    """The SAE with threshold 1 for the features set aside: they need none to be folded by."""
    if excluded is None or sae.foldable:
        return sae
    return sae.replace(threshold=sae.threshold.masked_fill(excluded.to(sae.device), 1.0))


def _kept(excluded: Tensor | None, width: int, name: str) -> Tensor:
    """Features that are matched, ascending."""
    if excluded is None:
        return torch.arange(width)
    if excluded.dtype != torch.bool or excluded.shape != (width,):
        raise UserError(f"{name} is a bool mask [{width}], got {excluded.dtype} {tuple(excluded.shape)}")
    return (~excluded).nonzero().flatten().cpu()


def _solve(solver: Solver, problem: MatchingProblem, kept_a: Tensor, kept_b: Tensor) -> Solution:
    """Solve the problem of the kept features, in the numbers of the whole SAEs."""
    n_a, n_b = problem.shape
    if (len(kept_a), len(kept_b)) == (n_a, n_b):
        return solver.solve(problem)
    solution = solver.solve(problem.part(kept_a, kept_b))
    return replace(solution, permutation=solution.permutation.embedded(kept_a, kept_b, n_a, n_b))
