"""The per-pair table: its columns, its checks, its file, and its view by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from sae_match.files import atomic_path

PAIR_COLUMNS = ("layer", "layer_to", "variant", "metric", "value", "low", "high", "n")
"""Tidy and long: one row per layer pair, variant and metric. `variant` is matched, vanilla, random,
ceiling, or a splice's name; `low` and `high` bound the 95 % interval; `n` is the number of documents
(or features) averaged over. `low`, `high` and `n` may be missing; a ceiling has layer_to = layer."""

_KEY_COLUMNS = ["layer", "layer_to", "variant", "metric"]
_NUMBER_COLUMNS = ["value", "low", "high"]


def tidy_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """A checked copy: columns in contract order, rows sorted, plain dtypes (n is nullable).

    Raises:
        ValueError: a column is missing or unknown, a key is missing, a row is there twice, or a number is infinite.
    """
    missing = [name for name in [*_KEY_COLUMNS, "value"] if name not in pairs.columns]
    unknown = [name for name in pairs.columns if name not in PAIR_COLUMNS]
    if missing or unknown:
        raise ValueError(f"pair table: missing columns {missing}, unknown columns {unknown}; expected {PAIR_COLUMNS}")
    table = pairs.reindex(columns=list(PAIR_COLUMNS)).reset_index(drop=True)
    if table[_KEY_COLUMNS].isna().any(axis=None):
        raise ValueError(f"pair table: {_KEY_COLUMNS} must be given in every row")
    table = table.astype({"layer": "int64", "layer_to": "int64", "n": "Int64"})
    table = table.astype({name: "float64" for name in _NUMBER_COLUMNS})
    table = table.astype({"variant": "object", "metric": "object"})
    infinite = table[_NUMBER_COLUMNS].abs().eq(math.inf).any(axis=1)
    if infinite.any():
        raise ValueError(f"pair table: infinite numbers in\n{table[infinite].to_string(index=False)}")
    repeated = table.duplicated(_KEY_COLUMNS)
    if repeated.any():
        raise ValueError(f"pair table: rows given twice:\n{table.loc[repeated, _KEY_COLUMNS].to_string(index=False)}")
    return table.sort_values(_KEY_COLUMNS, kind="stable", ignore_index=True)


def undefined_rows(pairs: pd.DataFrame) -> list[str]:
    """Names of the rows whose value is NaN, for an error message."""
    rows = pairs[pairs["value"].isna()]
    return [f"{r.metric}/{r.variant} at {r.layer}->{r.layer_to}" for r in rows.itertuples(index=False)]


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Write a table that `tidy_pairs` accepts; floats are written so that they read back bit for bit."""
    with atomic_path(path) as temporary:
        tidy_pairs(pairs).to_csv(temporary, index=False, lineterminator="\n")


def read_pairs(path: Path) -> pd.DataFrame:
    """Read what `write_pairs` wrote.

    Raises:
        ValueError: the file does not keep the contract.
    """
    # Numbers as text first: how exactly read_csv parses them by itself depends on pandas' version.
    text = dict.fromkeys(_NUMBER_COLUMNS, "str")
    return tidy_pairs(pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""]))


def layer_rows(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict per layer, `{"layer": a, "metric/variant": value, "..._low": ..., "..._high": ...}`.

    Only adjacent pairs (b = a + 1) and same-layer rows (the ceiling) have a place on a per-layer axis.
    Missing numbers are left out.
    """
    table = tidy_pairs(pairs)
    step = table["layer_to"] - table["layer"]
    rows: dict[int, dict[str, Any]] = {}
    for row in table[step.isin((0, 1))].to_dict("records"):
        layer = int(row["layer"])
        entry = rows.setdefault(layer, {"layer": layer})
        for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            if not math.isnan(row[column]):
                entry[f"{row['metric']}/{row['variant']}{suffix}"] = float(row[column])
    return [rows[layer] for layer in sorted(rows)]
