"""A small pair table and configuration, as a job would have them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest


@pytest.fixture
def pairs() -> pd.DataFrame:
    """Two adjacent pairs with two variants, a ceiling without interval, and numbers that need all their digits."""
    rows = [
        {
            "layer": a,
            "layer_to": a + 1,
            "variant": v,
            "metric": "matching_score",
            "value": y,
            "low": y - 0.1,
            "high": y + 0.1,
        }
        for a, v, y in [(12, "random", 0.1 + 0.2), (12, "matched", 1 / 3), (11, "matched", 2 / 7), (11, "random", 0.03)]
    ]
    ceiling = {"layer": 11, "layer_to": 11, "variant": "ceiling", "metric": "matching_score", "value": 0.5}
    table = pd.DataFrame([*rows, ceiling])
    table["n"] = [40, 40, 40, 40, None]
    return table


@pytest.fixture
def config() -> dict[str, Any]:
    """A resolved configuration as plain nested dicts."""
    return {
        "matching": {"metric": "both", "include_bias": True, "weights": {"W_enc": 1.0}},
        "folding": {"name": "theta"},
        "solver": {"name": "dense", "memory_limit_gib": None},
        "sae": {"name": "tiny"},
        "model": {"name": "toy"},
        "dataset": {"name": "wiki", "documents": 3},
        "layers": {"first": 11, "last": 13},
        "evaluation": {"level": "full", "splice_units": "as_folding"},
        "tracking": {"mode": "offline", "tags": []},
        "paths": {"output_dir": "somewhere"},
        "seed": 0,
    }
