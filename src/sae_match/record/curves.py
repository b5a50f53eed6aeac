"""The per-pair table as curves: over layers, over the distance of two layers, over the quantile of carried pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from .distances import distance_rows
from .pairs import layer_rows

LAYER, DISTANCE, QUANTILE = "layer", "distance", "quantile"

Curves = list[dict[str, Any]]
"""One dict per place on an axis: the axis' name -> the place, `name of a curve` -> its value there."""

_QUANTILE_SPLICE = "quantile_"


def layer_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT` by `layer`: adjacent pairs and single layers, with `_low` and `_high`.

    Quantile splices are left to `quantile_curves`: a job has one per quantile.
    """
    return layer_rows(pairs[~_is_quantile(pairs)])


def distance_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/VARIANT/mean` (over starts) and `METRIC/VARIANT/layer_START` by `distance`; empty where only neighbours
    were compared."""
    rows = distance_rows(pairs)
    return _curves(
        rows, DISTANCE, (f"{metric}/{variant}" for metric, variant in zip(rows.metric, rows.variant, strict=True))
    )


def quantile_curves(pairs: pd.DataFrame) -> Curves:
    """`METRIC/mean` (over layer pairs) and `METRIC/layer_START` by `quantile`; empty where there is no such splice."""
    rows = pairs[_is_quantile(pairs)]
    places = rows["variant"].str.removeprefix(_QUANTILE_SPLICE).astype(float)
    return _curves(rows.assign(quantile=places), QUANTILE, rows["metric"])


def _is_quantile(pairs: pd.DataFrame) -> pd.Series[bool]:
    return pairs["variant"].str.startswith(_QUANTILE_SPLICE)


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
