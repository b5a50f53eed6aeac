"""The tokens on which every feature of the span fires most, as a table: what a path or a pair is shown with."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from tqdm import tqdm

from sae_match.evaluation.top_activations import TopActivations, top_activations
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.judging.descriptions import visible

WINDOWS = 12
"""Windows searched per feature, one token from each: fewer distinct tokens than that are left."""
TOKENS = 8
"""Distinct tokens kept per feature."""
COLUMNS = ("layer", "feature", "token")


def top_tokens_table(evaluator: Evaluator, progress: bool) -> pd.DataFrame:
    """One row per layer, feature and token: the distinct tokens of the feature's largest activations, largest first.

    Features that never fire have no rows. Tokens are decoded one by one and shown without surrounding white space.
    """
    study, saes = evaluator.study, evaluator.saes
    ids, tokenizer = evaluator.windows.ids, evaluator.model.tokenizer
    texts: dict[int, str] = {}

    def text(window: int, position: int) -> str:
        token = int(ids[window, position])
        if token not in texts:
            texts[token] = visible(str(tokenizer.decode([token], clean_up_tokenization_spaces=False)))
        return texts[token]

    parts: list[pd.DataFrame] = []
    for layer in tqdm(saes.layers, desc="top tokens", disable=not progress):
        batch, sinks = study.evaluation.batch_windows, study.model.sink_positions
        top = top_activations(saes.load(layer), evaluator.streams.layer(layer), WINDOWS, batch, sinks)
        rows = pd.DataFrame(_tokens(top, text), columns=["feature", "token"]).assign(layer=layer)
        # Layer by layer: millions of rows as Python tuples would take gigabytes at the width of Gemma Scope.
        parts.append(rows[list(COLUMNS)].astype({"layer": "int32", "feature": "int32", "token": "str"}))
    return pd.concat(parts, ignore_index=True)


def _tokens(top: TopActivations, text: Callable[[int, int], str]) -> list[tuple[int, str]]:
    return [
        (feature, token)
        for feature in range(len(top.value))
        for token in list(dict.fromkeys(text(*place) for place in top.places(feature)))[:TOKENS]
    ]
