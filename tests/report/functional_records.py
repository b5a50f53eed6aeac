"""Records of jobs with functional tests of known outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from sae_match.record import JobRecord

PAIRS = {"adjacent": [(11, 12), (12, 13)], "distant": [(11, 13)], "seeds": [(12, 12)]}


class Planted(NamedTuple):
    """A matcher: mean drop and R of its pairs, share of features with a partner, objective, what it is made of."""

    drop: float
    substitution: float
    coverage: float = 1.0
    objective: float = 100.0
    parts: tuple[str, str, str, str] | None = None
    confident: bool = True


MATCHERS = {
    "matched": Planted(0.50, 0.4, parts=("paper's weights, folded", "both", "theta", "certified")),
    "greedy": Planted(0.45, 0.35, objective=105.0, parts=("paper's weights, greedy", "both", "theta", "greedy")),
    "mutual": Planted(0.50, 0.4, 0.6, 40.0, ("paper's weights, mutual best", "both", "theta", "mutual")),
    "cosine": Planted(0.60, 0.5, parts=("decoder cosine", "decoder_cosine", "none", "certified")),
    "cosine_nearest": Planted(0.59, 0.5, 1.0, 98.0, ("decoder cosine, nearest", "decoder_cosine", "none", "nearest")),
    "random": Planted(0.02, -0.4, confident=False),
    "most_affected": Planted(0.85, 0.7, confident=False),
    "hard_negative": Planted(0.15, -0.2, confident=False),
    "coactive_partner": Planted(0.06, -0.3, confident=False),
    "random_partner": Planted(0.0, -0.4, confident=False),
}


def tests_of_pair(
    role: str, layers: tuple[int, int], matchers: Mapping[str, Planted], n: int, noise: float, seed: int
) -> pd.DataFrame:
    """Rows of functional.parquet: every feature's own ease and size are the same for all matchers."""
    rng = np.random.default_rng([seed, *layers])
    ease, size = rng.normal(0, noise, n), rng.gamma(1.0, 1.0, n) + 0.01
    tables = []
    for name, planted in matchers.items():
        quality = ease + rng.normal(0, noise / 4, n)
        partner = rng.random(n) < planted.coverage
        drop = planted.drop + quality if role != "seeds" else np.full(n, np.nan)
        rank = np.where(partner, np.where(rng.random(n) < max(planted.drop, 0), 1, 4), 0)
        table = pd.DataFrame(
            {
                "layer": layers[0],
                "layer_to": layers[1],
                "role": role,
                "variant": "ceiling" if name == "matched" and role == "seeds" else name,
                "feature": 3 * np.arange(n),
                "partner": np.where(partner, np.arange(n), -1),
                "quartile": 1 + np.arange(n) % 4,
                "firing_rate": 0.01,
                "contexts": 4,
                "confidence": np.where(partner & planted.confident, quality, np.nan),
                "decoder_cosine": np.where(partner, 0.5 + quality + rng.normal(0, noise, n), np.nan),
                "drop": np.where(partner, drop, np.nan),
                "silent": False,
                "rank": rank,
                "kl_ablated": np.where(partner, size, 0.0),
                "kl_substituted": np.where(partner, size * (1 - planted.substitution - quality), 0.0),
            }
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def write_job(
    directory: Path,
    matchers: Mapping[str, Planted] = MATCHERS,
    roles: Sequence[str] = ("adjacent",),
    n: int = 100,
    noise: float = 0.1,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """A finished job's record; returns its functional.parquet."""
    places = [(role, layers) for role in roles for layers in PAIRS[role]]
    table = pd.concat([tests_of_pair(*place, matchers, n, noise, seed) for place in places], ignore_index=True)
    rows: list[dict[str, Any]] = []
    for role, (layer, layer_to) in places:
        for name, planted in matchers.items():
            variant = "ceiling" if name == "matched" and role == "seeds" else name
            values = {"coverage": planted.coverage, "matching_score": planted.drop / 2, "solver_seconds": 2.0}
            values |= {"objective": planted.objective * layer, "matched_pairs": round(1000 * planted.coverage)}
            keys = {"layer": layer, "layer_to": layer_to}
            rows += [{**keys, "variant": variant, "metric": key, "value": value} for key, value in values.items()]
            if role == "adjacent":
                along = "encode_permute_decode" + ("" if name == "matched" else f"_{name}")
                rows.append({**keys, "variant": along, "metric": "delta_loss", "value": 1 - planted.drop})
    record = JobRecord(directory)
    record.write_config(yaml.safe_dump({"sae": {"name": "tiny"}, "seed": seed, **(config or {})}))
    with record.guard():
        record.write_pairs(pd.DataFrame(rows))
        record.write_metrics({"matching_score": matchers["matched"].drop / 2})
        table.to_parquet(directory / "functional.parquet")
        keys = ("label", "similarity", "folding", "assignment")
        parts = {name: dict(zip(keys, given.parts, strict=True)) for name, given in matchers.items() if given.parts}
        (directory / "matchers.json").write_text(json.dumps(parts))
    return table
