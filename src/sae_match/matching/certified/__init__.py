"""The certified solver: exact assignment on candidate lists, proved by its duals."""

from sae_match.matching.certified.solver import CertifiedSolver

__all__ = ["CertifiedSolver"]
