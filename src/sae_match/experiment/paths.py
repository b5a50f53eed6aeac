"""Features followed through the span's matchings (method section 4), and the text on which features fire, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sae_match.evaluation.top_activations import TopActivations, top_activations
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.saes import JobSaes
from sae_match.judging.descriptions import context, visible
from sae_match.pairs import Site
from sae_match.saes import SparseAutoencoder
from sae_match.saes.activation import ActivationKind
from sae_match.text.tokenization import decode_tokens

STEP_COLUMNS = ("mse_W_dec", "decoder_cosine", "matching_score")
"""Columns of the feature table that describe a step of a path: how close the feature is to the one before it."""
WINDOWS = 12
"""Windows searched per feature, one token from each: fewer distinct tokens than that are left."""
TOKENS = 8
"""Distinct tokens kept per feature."""
CONTEXTS, AROUND = 3, 5
"""Contexts per feature, and tokens on either side of the one on which it fires."""


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
            texts[token] = visible(decode_tokens(inputs.model.tokenizer, [token]))
        return texts[token]

    parts: list[pd.DataFrame] = []
    for layer in tqdm(layers, desc="top tokens", disable=not progress):
        x, how = inputs.streams.layer(layer), (evaluator.batch_windows, evaluator.sink_positions)
        top = top_activations(saes.load(Site(layer)), x, WINDOWS, *how)
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


def with_contexts(evaluator: Evaluator, saes: JobSaes, examples: pd.DataFrame, progress: bool) -> pd.DataFrame:
    """Examples as from `choose_examples` with the contexts of both features, each token between « and »."""
    sides = {"contexts": ("layer", "feature"), "partner_contexts": ("layer_to", "partner")}
    wanted: dict[int, set[int]] = {}
    for layer, feature in sides.values():
        for place in examples[[layer, feature]].itertuples(index=False):
            wanted.setdefault(int(place[0]), set()).add(int(place[1]))
    texts: dict[tuple[int, int], str] = {}
    for layer in tqdm(sorted(wanted), desc="contexts of example pairs", disable=not progress):
        chosen = sorted(wanted[layer])
        texts |= {(layer, f): text for f, text in zip(chosen, _contexts(evaluator, saes, layer, chosen), strict=True)}
    columns = {
        name: [texts[int(a), int(b)] for a, b in examples[[layer, feature]].itertuples(index=False)]
        for name, (layer, feature) in sides.items()
    }
    return examples.assign(**columns)


def _contexts(evaluator: Evaluator, saes: JobSaes, layer: int, features: Sequence[int]) -> list[str]:
    """The contexts of some features of a layer, one text each."""
    inputs, sae = evaluator.inputs, saes.load(Site(layer))
    alone = only_features(sae, features)
    top = top_activations(
        alone, inputs.streams.layer(layer), CONTEXTS, evaluator.batch_windows, evaluator.sink_positions
    )

    def decode(tokens: Sequence[int]) -> str:
        return decode_tokens(inputs.model.tokenizer, tokens)

    def text(window: int, position: int) -> str:
        left, token, right = context(inputs.windows.ids[window].tolist(), position, decode, AROUND)
        before, after = (" " * end.isspace() for end in (token[:1], token[-1:]))
        return " ".join(f"{left}{before}«{visible(token)}»{after}{right}".split())

    rows = range(len(features)) if alone is not sae else features
    return [" | ".join(text(*place) for place in top.places(row)) for row in rows]


def only_features(sae: SparseAutoencoder, features: Sequence[int]) -> SparseAutoencoder:
    """An SAE with these features alone, which fire as they do in the whole; itself where they compete (TopK)."""
    if sae.activation.kind is ActivationKind.topk:
        return sae
    at = torch.tensor(features, device=sae.device)
    scale = None if sae.scale is None else sae.scale[at]
    tensors = {"W_enc": sae.W_enc[:, at], "W_dec": sae.W_dec[at]}
    return sae.replace(b_enc=sae.b_enc[at], threshold=sae.threshold[at], scale=scale, **tensors)
