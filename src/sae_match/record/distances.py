"""The per-pair table by distance: how scores change as layers lie further apart (configuration: `composition`)."""

from __future__ import annotations

import pandas as pd

AT_DISTANCE_ONE: dict[str, tuple[str, ...]] = {
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


def distance_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `distance`, by variant `composed`, `exact`, `random` or a splice's name; empty where only
    neighbours were compared.

    Distance 1 comes from the adjacent pairs of those layers from which something was composed.
    """
    table = pairs.assign(distance=pairs["layer_to"] - pairs["layer"])
    far = table[table["distance"] >= 2]
    near = table[(table["distance"] == 1) & table["layer"].isin(far["layer"].unique())]
    copies = [
        near[near["variant"] == variant].assign(variant=name)
        for variant, names in AT_DISTANCE_ONE.items()
        for name in names
    ]
    joined = pd.concat([*copies, far], ignore_index=True)
    kept = joined[joined["metric"].isin(far["metric"].unique())]
    return kept.sort_values(["metric", "variant", "layer", "distance"], kind="stable", ignore_index=True)
