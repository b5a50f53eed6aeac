"""documents.parquet: the per-document sums behind every averaged metric, so that jobs can be compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sae_match.atomic import atomic_path
from sae_match.metrics.bootstrap import DocumentSums

DOCUMENTS = "documents.parquet"
_KEYS = ["layer", "layer_to", "variant", "metric", "text"]
_VECTOR = pa.list_(pa.float64())
_SCHEMA = pa.schema(
    [
        ("layer", pa.int64()),
        ("layer_to", pa.int64()),
        ("variant", pa.string()),
        ("metric", pa.string()),
        ("text", pa.string()),
        ("document", pa.int64()),
        ("numerator", pa.float64()),
        ("denominator", pa.float64()),
        ("tokens", pa.float64()),
        ("numerator_vector", _VECTOR),
        ("denominator_vector", _VECTOR),
    ]
)
"""One row per layer pair, variant, metric and document. `text` is the content key of the token windows that were
evaluated; the other columns are those of `metrics.bootstrap.DocumentSums` (null where a ratio needs none)."""


class SumsKey(NamedTuple):
    """What some sums are of."""

    layer: int
    layer_to: int
    variant: str
    metric: str
    text: str


def write_documents(path: Path, sums: Mapping[SumsKey, DocumentSums]) -> None:
    """Write the sums, atomically; in the order of their keys, so that equal results are equal files."""
    columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
    for key in sorted(sums):
        found = sums[key]
        for name, value in zip(_KEYS, key, strict=True):
            columns[name] += [value] * found.n_documents
        columns["document"] += range(found.n_documents)
        for name in _SCHEMA.names[len(_KEYS) + 1 :]:
            values = getattr(found, name)
            columns[name] += [None] * found.n_documents if values is None else list(values)
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary, compression="zstd")


def read_documents(path: Path) -> dict[SumsKey, DocumentSums]:
    """Read what `write_documents` wrote.

    Raises:
        ValueError: the file is damaged, or does not keep the contract.
        OSError: it cannot be read.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
    if table.schema.names != _SCHEMA.names:
        raise ValueError(f"{path.name}: expected the columns {_SCHEMA.names}, got {table.schema.names}")
    frame = table.to_pandas()
    return {
        SumsKey(*(str(value) if isinstance(value, str) else int(value) for value in key)): _sums(rows, path)  # type: ignore[arg-type]
        for key, rows in frame.groupby(_KEYS, sort=True)
    }


def _sums(rows: pd.DataFrame, path: Path) -> DocumentSums:
    if rows["document"].tolist() != list(range(len(rows))):
        raise ValueError(f"{path.name}: the documents of a metric must be numbered from 0, each once")
    plain = {name: rows[name].to_numpy(dtype=np.float64) for name in ("numerator", "denominator")}
    if rows["numerator_vector"].isna().any():
        return DocumentSums(**plain)
    vectors = {name: np.stack(rows[name].tolist()) for name in ("numerator_vector", "denominator_vector")}
    return DocumentSums(**plain, tokens=rows["tokens"].to_numpy(dtype=np.float64), **vectors)
