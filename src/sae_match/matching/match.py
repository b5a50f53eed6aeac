"""`match`: from two SAEs to the optimal permutation, its cost and its certificate."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from sae_match.config.schema import Folding, GroupWeights, Metric, SolverName
from sae_match.errors import UserError
from sae_match.matching.dense import DenseSolver
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import matching_problem
from sae_match.matching.solution import Solver
from sae_match.saes import SparseAutoencoder


@dataclass(frozen=True)
class Matching:
    """A permutation with its cost and proof.

    Attributes:
        permutation: feature i of A -> feature of B, with provenance.
        objective: sum of squared distances of the matched pairs, in the units in which they were matched.
        lower_bound: no one-to-one matching costs less (up to `tolerance`).
        gap: (objective - lower_bound) / objective.
        tolerance: absolute rounding uncertainty of the bound.
        seconds: wall time of building and solving the problem.
    """

    permutation: Permutation
    objective: float
    lower_bound: float
    gap: float
    tolerance: float
    seconds: float


def make_solver(name: SolverName | str, memory_limit_gib: float | None = None) -> Solver:
    """The solver of that name.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if name == SolverName.dense:
        return DenseSolver(memory_limit_gib)
    raise UserError(f"solver={name}: must be one of {', '.join(s.value for s in SolverName)}")


def match(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    metric: Metric | str = "both",
    folding: Folding | str = "theta",
    solver: Solver | SolverName | str = "dense",
    *,
    include_bias: bool = True,
    weights: GroupWeights | None = None,
) -> Matching:
    """Match the features of `a` to those of `b` one-to-one at the least total squared distance (Eq. 3).

    Args:
        a, b: SAEs over residual streams of the same d_model; widths may differ (every feature of the narrower
            one is matched).
        metric: `both` (the paper's main scheme), `decoder` or `encoder`.
        folding: `theta` (fold thresholds first, Eq. 4) or `none`.
        solver: `dense`, or a solver object.
        include_bias: whether b_enc enters where the metric covers the encoder.
        weights: weights of the parameter groups; all 1 if None.

    Raises:
        UserError: incompatible SAEs, unknown names, thresholds that cannot be folded, or too little memory.
    """
    started = time.perf_counter()
    weights = weights or GroupWeights()
    chosen = make_solver(solver) if isinstance(solver, str) else solver
    problem = matching_problem(a, b, metric=metric, folding=folding, include_bias=include_bias, weights=weights)
    solution = chosen.solve(problem)
    seconds = time.perf_counter() - started
    provenance = {
        "sae_a": a.content_hash,
        "sae_b": b.content_hash,
        "metric": Metric(metric).value,
        "folding": Folding(folding).value,
        "include_bias": include_bias,
        "weights": asdict(weights),
        "solver": chosen.name,
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
    )
