"""A sweep of six jobs on disk, one of them failed, and the table of one job."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sae_match.record import JobRecord

SPLICES = {"encode_permute_decode": 0.9, "encode_decode_current": 0.2, "encode_decode_previous": 0.4, "layer_drop": 0.1}


def job_table(shift: float = 0.0) -> pd.DataFrame:
    """Pairs of one job over layers 11..14; `shift` moves only what depends on the matching."""
    rows: list[dict[str, Any]] = []

    def add(layers: tuple[int, int], metric: str, variant: str, value: float, half: float | None) -> None:
        bounds = {} if half is None else {"low": value - half, "high": value + half}
        names = {"layer": layers[0], "layer_to": layers[1], "metric": metric, "variant": variant}
        rows.append({**names, "value": value, **bounds})

    for step, a in enumerate((11, 12, 13)):
        add((a, a + 1), "matching_score", "matched", 0.4 + 0.05 * step + shift, 0.02)
        add((a, a + 1), "matching_score", "random", 0.03, 0.001)
        for variant, value in SPLICES.items():
            moved = value + (shift if variant == "encode_permute_decode" else 0.0)
            add((a, a + 1), "delta_loss", variant, moved, 0.05)
            add((a, a + 1), "explained_variance", variant, 1 - moved, None)
        for group, scale in {"W_enc": 1.0, "b_enc": 10.0, "W_dec": 0.1}.items():
            add((a, a + 1), f"weight_mse/{group}", "matched", scale * (1 + shift), None)
            add((a, a + 1), f"weight_mse/{group}", "vanilla", scale * 2, None)
    add((12, 12), "matching_score", "ceiling", 0.55, 0.01)
    for layer in (11, 12, 13, 14):
        add((layer, layer), "mean_theta", "thresholds", 2.0 + layer - 11, None)
        add((layer, layer), "residual_norm", "tokens", 100.0 * (layer - 10), 1.0)
    return pd.DataFrame(rows)


@pytest.fixture
def table() -> pd.DataFrame:
    """The pair table of one job."""
    return job_table()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Jobs 0, 1, 9 and 10 of a sweep: metric x folding; job 10 failed."""
    root = tmp_path / "sweep"
    settings = list(itertools.product(("both", "decoder"), ("theta", "none")))
    for index, (metric, folding) in zip((0, 1, 9, 10), settings, strict=True):
        record = JobRecord(root / str(index))
        config = {
            "matching": {"metric": metric, "include_bias": True},
            "folding": {"name": folding},
            "dataset": {"name": "wiki", "documents": 3},
            "paths": {"output_dir": str(index)},
            "seed": 0,
        }
        record.write_config(yaml.safe_dump(config))
        try:
            with record.guard():
                if index == 10:
                    raise ValueError("b_enc | has\na NaN in layer 12")
                record.write_pairs(job_table(-0.01 * index))
                numbers = {"matching_score": 0.4563 - 0.01 * index, "matching_score/random": 0.03, "l0": None}
                bounds = {f"matching_score_{side}": 0.4 + 0.1 * (side == "high") for side in ("low", "high")}
                record.write_metrics({**numbers, **bounds, "delta_loss/layer_drop": 0.1, "other": index})
        except ValueError:
            pass
    return root
