"""Hand-made jobs of a factorial design, in memory or on disk, with sums per document where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sae_match.metrics.bootstrap import DocumentSums
from sae_match.record import JobRecord
from sae_match.record.documents import DOCUMENTS, SumsKey, write_documents
from sae_match.report import Record


def job(
    name: str, metric: str, folding: str, state: str = "done", error: str | None = None, **numbers: float
) -> Record:
    """A job of metric x folding with headline numbers; `loss` and `mse` are short for two long names."""
    names = {"loss": "delta_loss/encode_permute_decode", "mse": "weight_mse/W_dec", "score": "matching_score"}
    return Record(
        name=name,
        path=Path("nowhere") / name,
        state=state,
        error=error,
        seconds=1.0,
        config={"matching": {"metric": metric}, "folding": {"name": folding}, "seed": 0},
        metrics={names.get(key, key): value for key, value in numbers.items()},
    )


def design() -> list[Record]:
    """metric x folding, with numbers whose means, ranks and effects are easily written down."""
    return [
        job("0", "both", "theta", score=0.50, loss=1.0, mse=0.10),
        job("1", "both", "none", score=0.40, loss=2.0, mse=0.10),
        job("2", "decoder", "theta", score=0.56, loss=0.5, mse=0.20),
        job("3", "decoder", "none", score=0.44, loss=4.0, mse=0.05),
    ]


def pair_rows(pairs: Sequence[tuple[int, int]], values: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Rows of pairs.csv: "metric/variant" -> a value per pair."""
    rows: list[dict[str, Any]] = []
    for name, numbers in values.items():
        metric, _, variant = name.rpartition("/")
        rows += [
            {"layer": a, "layer_to": b, "metric": metric, "variant": variant, "value": value}
            for (a, b), value in zip(pairs, numbers, strict=True)
        ]
    return pd.DataFrame(rows)


def stored(
    folder: Path,
    config: Mapping[str, Any],
    pairs: pd.DataFrame,
    metrics: Mapping[str, float],
    sums: Mapping[SumsKey, DocumentSums] | None = None,
) -> Path:
    """A finished job on disk."""
    record = JobRecord(folder)
    record.write_config(yaml.safe_dump(dict(config)))
    with record.guard():
        record.write_pairs(pairs)
        record.write_metrics(metrics)
        if sums is not None:
            write_documents(folder / DOCUMENTS, sums)
    return folder


def ratio_sums(
    values: Sequence[float], pairs: Sequence[tuple[int, int]] = ((0, 1),), metric: str = "matching_score"
) -> dict[SumsKey, DocumentSums]:
    """Sums per document of a ratio whose value in document i is values[i], the same on every pair."""
    numerator = np.asarray(values, dtype=np.float64) * 100
    sums = DocumentSums(numerator=numerator, denominator=np.full(len(numerator), 100.0))
    return {SumsKey(a, b, "matched", metric, "text"): sums for a, b in pairs}
