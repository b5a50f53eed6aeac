"""Matching: the assignment problem over SAE parameters, its solvers, and permutations."""

from sae_match.matching.match import Chain, Matching, make_solver, match, match_chain
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, matching_problem

__all__ = [
    "UNMATCHED",
    "Chain",
    "Matching",
    "MatchingProblem",
    "Permutation",
    "make_solver",
    "match",
    "match_chain",
    "matching_problem",
]
