"""How a job's numbers over layer pairs become one headline number: averaged, added up, or the largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUMMED = ("objective", "lower_bound", "tolerance", "matched_pairs", "solver_seconds", "dead_features/sae",
          "features_aside/sae")  # fmt: skip
"""Numbers that are added up over pairs or layers, as are the counts of `SUMMED_PREFIXES`."""
SUMMED_PREFIXES = ("solver/", "judge_count/")
LARGEST = ("gap", "solver/peak_memory_gib", "solver/cosine_gap", "solver/marginal_error")

DIFFERENCES = ("delta_loss", "explained_variance")
"""Metrics of which a job reports how encode_permute_decode differs from the splices of `COMPARED`, as
`METRIC_difference/SPLICE`."""
COMPARED = ("encode_decode_previous", "encode_decode_current", "layer_drop", "encode_permute_decode_random")
"""Splices from which encode_permute_decode's difference is reported with a paired interval."""


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
