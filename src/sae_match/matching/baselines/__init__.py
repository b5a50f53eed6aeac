"""Baselines behind the solvers' interface: what the exact matching is compared with. None of them claims a bound."""

from sae_match.matching.baselines.controls import RandomSolver, VanillaSolver
from sae_match.matching.baselines.cosine import CosineSolver
from sae_match.matching.baselines.greedy import GreedySolver
from sae_match.matching.baselines.nearest import MutualSolver, NearestSolver
from sae_match.matching.baselines.soft import SoftSolver

__all__ = [
    "CosineSolver",
    "GreedySolver",
    "MutualSolver",
    "NearestSolver",
    "RandomSolver",
    "SoftSolver",
    "VanillaSolver",
]
