"""The plan of a job, made before every run and printed by a dry run: what it needs, and what would stop it."""

from sae_match.plan.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
