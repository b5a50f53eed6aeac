"""Features followed through the matchings of the span (section 3.2 of the paper), and the tokens that they fire on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from tqdm import tqdm

from sae_match.evaluation.top_activations import TopActivations
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.saes import JobSaes
from sae_match.judging.descriptions import visible
from sae_match.pairs import Site

STEP_COLUMNS = ("mse_W_dec", "decoder_cosine", "matching_score")
"""Columns of the feature table that describe a step of a path: how close the feature is to the one before it."""
WINDOWS = 12
"""Windows searched per feature, one token from each: fewer distinct tokens than that are left."""
TOKENS = 8
"""Distinct tokens kept per feature."""


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


def top_tokens_table(evaluator: Evaluator, saes: JobSaes, layers: Iterable[int], progress: bool) -> pd.DataFrame:
    """One row per layer, feature and token: the distinct tokens of the feature's largest activations, largest first.

    Features that never fire have no rows. Tokens are decoded one by one and shown without surrounding white space.
    """
    inputs, texts = evaluator.inputs, dict[int, str]()

    def text(window: int, position: int) -> str:
        token = int(inputs.windows.ids[window, position])
        if token not in texts:
            texts[token] = visible(inputs.decode([token]))
        return texts[token]

    parts: list[pd.DataFrame] = []
    for layer in tqdm(layers, desc="top tokens", disable=not progress):
        top = inputs.top_activations(saes.load(Site(layer)), Site(layer), WINDOWS)
        rows = pd.DataFrame(_tokens(top, text), columns=["feature", "token"]).assign(layer=layer)
        # Layer by layer: millions of rows as Python tuples would take gigabytes at the width of Gemma Scope.
        parts.append(rows[["layer", "feature", "token"]].astype({"layer": "int32", "feature": "int32", "token": "str"}))
    return pd.concat(parts, ignore_index=True)


def _tokens(top: TopActivations, text: Callable[[int, int], str]) -> list[tuple[int, str]]:
    return [
        (feature, token)
        for feature in range(len(top.value))
        for token in list(dict.fromkeys(text(*place) for place in top.places(feature)))[:TOKENS]
    ]
