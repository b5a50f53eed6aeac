"""How a job's numbers over layer pairs become one headline number: averaged, added up, or the largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUMMED = ("objective", "lower_bound", "tolerance", "matched_pairs", "solver_seconds", "dead_features/sae",
          "features_aside/sae")  # fmt: skip
"""Numbers that are added up over pairs or layers, as are the counts of `SUMMED_PREFIXES`."""
SUMMED_PREFIXES = ("solver/", "judge_count/")
LARGEST = ("gap", "solver/peak_memory_gib", "solver/cosine_gap", "solver/marginal_error")


def headline_name(metric: str, variant: str) -> str:
    """`metric` for the matched variant, else `metric/variant`."""
    return metric if variant == "matched" else f"{metric}/{variant}"


def averaged(name: str) -> bool:
    """Whether a headline number is a mean over pairs or layers."""
    return name not in (*LARGEST, *SUMMED) and not name.startswith(SUMMED_PREFIXES)


def combine(name: str, values: Sequence[float]) -> float:
    """The headline number `name` from its values on every pair (or layer)."""
    if name in LARGEST:
        return float(np.max(values))
    return float(np.mean(values) if averaged(name) else np.sum(values))
