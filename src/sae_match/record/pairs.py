"""The per-pair table: its columns, its checks, its file, and its curves over layers, distances and quantiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_match.files import atomic_path
from sae_match.metrics.description import CEILING

PAIR_COLUMNS = ("layer", "layer_to", "variant", "metric", "value", "low", "high", "n")
"""Tidy and long: one row per layer pair, variant and metric. `variant` is matched, vanilla, random,
ceiling, or a splice's name; `low` and `high` bound the 95 % interval; `n` is the number of documents
(or features) averaged over. `low`, `high` and `n` may be missing. Of two seeds (`ceiling`), and of SAEs of two sources,
layer_to may equal layer; along a training run both are steps. What is measured of the second source's SAEs alone has a
variant that ends with `_b`."""

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
        ValueError: the file does not keep the contract, or is cut off.
    """
    # Numbers as text first: how exactly read_csv parses them by itself depends on pandas' version.
    text = dict.fromkeys(_NUMBER_COLUMNS, "str")
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    if list(table.columns) != list(PAIR_COLUMNS) or not path.read_bytes().endswith(b"\n"):
        raise ValueError(f"not a whole table with the columns {', '.join(PAIR_COLUMNS)}")
    return tidy_pairs(table)


def layer_rows(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict per layer, `{"layer": a, "metric/variant": value, "..._low": ..., "..._high": ...}`.

    Only adjacent pairs and same-layer rows (two seeds) have a place on a per-layer axis.
    Missing numbers are left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for row in near_rows(tidy_pairs(pairs)).to_dict("records"):
        layer = int(row["layer"])
        entry = rows.setdefault(layer, {"layer": layer})
        for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            if not math.isnan(row[column]):
                entry[f"{row['metric']}/{row['variant']}{suffix}"] = float(row[column])
    return [rows[layer] for layer in sorted(rows)]


LAYER, DISTANCE, QUANTILE = "layer", "distance", "quantile"
QUANTILE_SPLICE = "quantile_"

Curves = list[dict[str, Any]]
"""One dict per place on an axis: the axis' name -> the place, `name of a curve` -> its value there."""

_AS_DISTANT: dict[str, tuple[str, ...]] = {
    "matched": ("composed", "exact"),
    "random": ("random",),
    "encode_permute_decode": ("composed", "exact"),
    "encode_permute_decode_random": ("random",),
    "encode_decode_previous": ("encode_decode_previous",),
    "layer_drop": ("layer_drop",),
}
"""Variants of an adjacent pair and what they are called at a distance: of neighbors the composed permutation and the
exact one are the same, so the table does not hold them twice."""


def near_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows of adjacent pairs and of single layers: what has a place on a per-layer axis."""
    keys = zip(pairs["layer"].tolist(), pairs["layer_to"].tolist(), pairs["variant"].tolist(), strict=True)
    return pairs[near(list(keys))]


def near(keys: Sequence[tuple[int, int, str]]) -> list[bool]:
    """Which rows are those of the job's own pairs or of single layers.

    A matcher's row of two seeds of a layer, which stands beside `ceiling`, is neither: it would stand for that
    matcher's row of the adjacent pair.

    Args:
        keys: layer, layer_to and variant of every row.
    """
    matchers = {variant for layer, layer_to, variant in keys if layer_to != layer}
    seeds = {layer for layer, _, variant in keys if variant == CEILING}
    following = next_layers(keys)
    return [
        layer_to == following.get(layer) or (layer == layer_to and not (layer in seeds and variant in matchers))
        for layer, layer_to, variant in keys
    ]


def next_layers(keys: Iterable[tuple[int, int, str]]) -> dict[int, int]:
    """By layer the one that it is neighbor to: the nearest one that it is compared with.

    Args:
        keys: layer, layer_to and variant of every row of a job.
    """
    found: dict[int, int] = {}
    for layer, layer_to, _ in keys:
        if layer_to != layer:
            found[layer] = min(layer_to, found.get(layer, layer_to), key=lambda other: abs(other - layer))
    return found


def by_distance(keys: Iterable[tuple[int, int, str, str]]) -> Iterator[tuple[int, str, int]]:
    """Position, variant and distance of each row of a start, that is a layer from which something was composed, and of
    a metric that is measured beyond neighbors.

    Of neighbors these are the rows under the one or two names that they have at a distance.

    Args:
        keys: layer, layer_to, variant and metric of every row.
    """
    rows = list(keys)
    following = next_layers((layer, layer_to, variant) for layer, layer_to, variant, _ in rows)
    far = [(layer, metric) for layer, to, _, metric in rows if to > max(layer, following.get(layer, to))]
    starts, metrics = {layer for layer, _ in far}, {metric for _, metric in far}
    for position, (layer, layer_to, variant, metric) in enumerate(rows):
        if layer in starts and layer_to > layer and metric in metrics:
            for name in _AS_DISTANT.get(variant, ()) if layer_to == following[layer] else (variant,):
                yield position, name, layer_to - layer


def distance_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `distance`, by variant `composed`, `exact`, `random` or a splice's name; empty where only
    neighbors were compared.

    The smallest distance comes from the adjacent pairs of those layers from which something was composed.
    """
    keys = (pairs[name].tolist() for name in ("layer", "layer_to", "variant", "metric"))
    places = list(by_distance(zip(*keys, strict=True)))
    rows = pairs.iloc[[position for position, _, _ in places]].assign(
        variant=[name for _, name, _ in places], distance=[distance for _, _, distance in places]
    )
    return rows.sort_values(["metric", "variant", "layer", "distance"], kind="stable", ignore_index=True)


def layer_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT` by `layer`: adjacent pairs and single layers, with `_low` and `_high`.

    Quantile splices are left to `quantile_curves`: a job has one per quantile.
    """
    return layer_rows(pairs[~is_quantile(pairs)])


def distance_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT/mean` (over starts) and `METRIC/VARIANT/layer_START` by `distance`; empty where only neighbors
    were compared."""
    rows = distance_rows(pairs)
    return _curves(
        rows, DISTANCE, (f"{metric}/{variant}" for metric, variant in zip(rows.metric, rows.variant, strict=True))
    )


def quantile_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/mean` (over layer pairs) and `METRIC/layer_START` by `quantile`; empty where there is no such splice."""
    rows = pairs[is_quantile(pairs)]
    places = rows["variant"].str.removeprefix(QUANTILE_SPLICE).astype(float)
    return _curves(rows.assign(quantile=places), QUANTILE, rows["metric"])


def is_quantile(pairs: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are those of a quantile splice."""
    return pairs["variant"].str.startswith(QUANTILE_SPLICE)


def _curves(rows: pd.DataFrame, axis: str, names: Iterable[str]) -> Curves:
    named = rows.assign(name=list(names)).dropna(subset="value")
    curves: Curves = []
    for place, group in named.groupby(axis):
        entry: dict[str, Any] = {axis: place}
        for name, curve in group.groupby("name"):
            entry[f"{name}/mean"] = float(curve["value"].mean())
            places = zip(curve["layer"].tolist(), curve["value"].tolist(), strict=True)
            entry |= {f"{name}/layer_{layer}": value for layer, value in places}
        curves.append(entry)
    return curves
