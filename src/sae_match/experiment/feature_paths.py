"""Features followed through the span's matchings (method section 4), as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

STEP_COLUMNS = ("mse_W_dec", "decoder_cosine", "matching_score")
"""Columns of the feature table that describe a step of a path: how close the feature is to the one before it."""


def path_table(features: pd.DataFrame, layers: Sequence[int], width: int) -> pd.DataFrame:
    """One row per path and layer, sorted by path, then layer; a path ends where its feature has no partner.

    Columns: `path` (the feature's number in the first layer), `layer`, `feature`, and of the step that led there
    `mse_W_dec` (folded units), `decoder_cosine`, `matching_score` (empty at the first layer, and where it was not
    measured).

    Args:
        features: one row per matched feature, as in features.parquet.
        layers: the span, ascending.
        width: features of the first layer.
    """
    start = np.arange(width)
    now = pd.DataFrame({"path": start, "layer": layers[0], "feature": start}).assign(
        **dict.fromkeys(STEP_COLUMNS, np.nan)
    )
    parts = [now]
    for layer, layer_to in pairwise(layers):
        steps = features.loc[features["layer"] == layer].reindex(columns=["feature", "partner", *STEP_COLUMNS])
        joined = now[["path", "feature"]].merge(steps, on="feature", how="inner")
        now = joined.assign(layer=layer_to, feature=joined["partner"])[list(parts[0].columns)]
        parts.append(now)
    table = pd.concat(parts, ignore_index=True).sort_values(["path", "layer"], kind="stable", ignore_index=True)
    integers = dict.fromkeys(("path", "layer", "feature"), "int32")
    return table.astype({**integers, **dict.fromkeys(STEP_COLUMNS, "float32")})
