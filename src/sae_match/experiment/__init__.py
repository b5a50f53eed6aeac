"""One job: from a checked configuration to a record on disk. Nothing that it calls knows Hydra."""

from sae_match.experiment.job import Result, run
from sae_match.plan import Plan, make_plan

__all__ = ["Plan", "Result", "make_plan", "run"]
