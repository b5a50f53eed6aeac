"""Dataclass schema of the `solver` group: which solver, and its options. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING


class SolverName(StrEnum):
    """Assignment solvers: two exact ones, then baselines."""

    certified = "certified"
    dense = "dense"
    vanilla = "vanilla"
    random = "random"
    greedy = "greedy"
    nearest = "nearest"
    mutual = "mutual"
    cosine = "cosine"
    soft = "soft"


class SoftRounding(StrEnum):
    """How a soft matching becomes a hard one: the one-to-one matching with the largest sum over its pairs."""

    plan = "plan"
    log_plan = "log_plan"


@dataclass
class SolverConfig:
    """Assignment solver."""

    name: SolverName = MISSING
    """certified | dense (both exact) | vanilla | random | greedy | nearest | mutual | cosine | soft."""
    memory_limit_gib: float | None = None
    """Refuse to start above this; null = what the machine has available now."""
    block_rows: int = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    time_limit_s: float | None = None
    """certified, cosine: stop each pair after this many seconds with a complete permutation and the gap reached."""
    verify: bool = True
    """certified: prove dual feasibility over all pairs of features in a pass of its own."""
    cache: bool | None = None
    """certified, cosine: keep all inner products (2 bytes each); null = where they fit into memory."""
    regularisation: float = 0.05
    """soft: strength of the entropy, in units of the median cost."""
    max_iterations: int = 1000
    """soft: most Sinkhorn iterations."""
    marginal_error: float = 1e-3
    """soft: Sinkhorn stops when the plan's column sums are this close to uniform (relative, Euclidean)."""
    rounding: SoftRounding = SoftRounding.plan
    """soft: plan | log_plan. For SAEs of one width log_plan is the exact matching by algebra, whatever the entropy."""
