"""Baselines behind the solvers' interface: what the exact matching is compared with. None of them claims a bound."""

from sae_match.matching.baselines.controls import CosineSolver, RandomSolver, VanillaSolver
from sae_match.matching.baselines.nearest import GreedySolver, MutualSolver, NearestSolver
from sae_match.matching.baselines.soft import SoftSolver
from sae_match.matching.baselines.unbalanced import UnbalancedTransport

__all__ = [
    "CosineSolver",
    "GreedySolver",
    "MutualSolver",
    "NearestSolver",
    "RandomSolver",
    "SoftSolver",
    "UnbalancedTransport",
    "VanillaSolver",
]
