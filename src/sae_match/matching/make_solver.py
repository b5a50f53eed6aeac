"""From a solver's name to the solver."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from sae_match.errors import UserError
from sae_match.matching.baselines import (
    CosineSolver,
    GreedySolver,
    MutualSolver,
    NearestSolver,
    RandomSolver,
    SoftSolver,
    VanillaSolver,
)
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.dense import DenseSolver
from sae_match.matching.solution import Solver

SOLVERS: dict[str, type[Solver]] = {
    "certified": CertifiedSolver,
    "dense": DenseSolver,
    "vanilla": VanillaSolver,
    "random": RandomSolver,
    "greedy": GreedySolver,
    "nearest": NearestSolver,
    "mutual": MutualSolver,
    "cosine": CosineSolver,
    "soft": SoftSolver,
}
"""The package's own solvers by name: two exact ones, then baselines. Any other `Solver` object does as well."""


def make_solver(name: str = "certified", **options: Any) -> Solver:
    """The solver of that name.

    Args:
        options: fields of its class.

    Raises:
        UserError: unknown name (the message lists the valid ones), or options that it does not take.
    """
    if name not in SOLVERS:
        raise UserError(f"solver={name}: must be one of {', '.join(SOLVERS)}")
    try:
        return SOLVERS[name](**options)
    except ValidationError as error:
        raise UserError(f"solver={name}: {error}") from error
