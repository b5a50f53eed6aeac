"""The per-pair table as curves: over layers, over the distance of two layers, over the quantile of carried pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from .pairs import layer_rows

LAYER, DISTANCE, QUANTILE = "layer", "distance", "quantile"
QUANTILE_SPLICE = "quantile_"

Curves = list[dict[str, Any]]
"""One dict per place on an axis: the axis' name -> the place, `name of a curve` -> its value there."""

_AT_DISTANCE_ONE: dict[str, tuple[str, ...]] = {
    "matched": ("composed", "exact"),
    "random": ("random",),
    "encode_permute_decode": ("composed", "exact"),
    "encode_permute_decode_random": ("random",),
    "encode_decode_previous": ("encode_decode_previous",),
    "layer_drop": ("layer_drop",),
}
"""Variants of an adjacent pair and what they are called at a distance: of neighbours the composed permutation and the
exact one are the same, so the table does not hold them twice."""


def near_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows of adjacent pairs and of single layers: what has a place on a per-layer axis."""
    return pairs[(pairs["layer_to"] - pairs["layer"]).isin((0, 1))]


def by_distance(keys: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, str, int]]:
    """Position, variant and distance of each row of a start, that is a layer from which something was composed.

    At distance 1 these are the rows of the adjacent pair, under the one or two names that they have at a distance.

    Args:
        keys: layer, layer_to and variant of every row.
    """
    rows = list(keys)
    starts = {layer for layer, layer_to, _ in rows if layer_to - layer >= 2}
    for position, (layer, layer_to, variant) in enumerate(rows):
        distance = layer_to - layer
        if layer in starts and distance >= 1:
            for name in _AT_DISTANCE_ONE.get(variant, ()) if distance == 1 else (variant,):
                yield position, name, distance


def distance_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `distance`, by variant `composed`, `exact`, `random` or a splice's name; empty where only
    neighbours were compared.

    Distance 1 comes from the adjacent pairs of those layers from which something was composed.
    """
    far = set(pairs.loc[pairs["layer_to"] - pairs["layer"] >= 2, "metric"])
    table = pairs[pairs["metric"].isin(far)]
    keys = zip(table["layer"].tolist(), table["layer_to"].tolist(), table["variant"].tolist(), strict=True)
    places = list(by_distance(keys))
    rows = table.iloc[[position for position, _, _ in places]].assign(
        variant=[name for _, name, _ in places], distance=[distance for _, _, distance in places]
    )
    return rows.sort_values(["metric", "variant", "layer", "distance"], kind="stable", ignore_index=True)


def layer_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT` by `layer`: adjacent pairs and single layers, with `_low` and `_high`.

    Quantile splices are left to `quantile_curves`: a job has one per quantile.
    """
    return layer_rows(pairs[~is_quantile(pairs)])


def distance_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT/mean` (over starts) and `METRIC/VARIANT/layer_START` by `distance`; empty where only neighbours
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
