"""The text on which features are most active: of a few example pairs, and of every feature for the flow's page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sae_match.evaluation.top_activations import contexts, top_activations
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.saes import JobSaes
from sae_match.judging.descriptions import context, visible
from sae_match.pairs import Pair, Site
from sae_match.record.contexts import LayerContexts, TextContexts
from sae_match.saes import SparseAutoencoder
from sae_match.saes.activation import ActivationKind

PLACES, AROUND, BINS = 6, 8, 16
"""Contexts per feature, tokens on either side of the one on which it is most active, bins of the histogram."""
TEXT_TOKENS = 2**18
"""Contexts are taken from the first windows that hold so many tokens; a page holds this text."""
SHOWN, NEAR = 3, 5
"""Contexts per feature, and tokens on either side of the one on which it fires."""


def text_contexts(evaluator: Evaluator, saes: JobSaes, layers: Iterable[int], progress: bool) -> TextContexts:
    """Two passes over the residual streams of each layer; 230 bytes per feature are kept."""
    inputs = evaluator.inputs
    rows = max(1, TEXT_TOKENS // inputs.windows.ids.shape[1])
    ids, texts = token_texts(inputs.windows.ids[:rows], inputs.decode)
    found: dict[int, LayerContexts] = {}
    for layer in tqdm(layers, desc="contexts of features", disable=not progress):
        sae, x = saes.load(Site(layer)), inputs.residual(Site(layer))[:rows]
        how = (inputs.batch_windows, inputs.sink_positions)
        around = contexts(sae, x, top := top_activations(sae, x, PLACES, *how), AROUND, BINS, *how)
        window, position, histogram = (t.numpy().astype(np.int32) for t in (top.window, top.position, around.histogram))
        found[layer] = LayerContexts(window, position, top.value.numpy(), around.share.numpy(), histogram)
    return TextContexts(found, ids, texts)


def token_texts(
    windows: Int[Tensor, "windows tokens"], decode: Callable[[Sequence[int]], str]
) -> tuple[Int[np.ndarray, "windows tokens"], list[str]]:
    """Each token's text as a row of a list of distinct texts. A token is read after the one before it: some tokenizers
    drop the space at the beginning of what they decode."""
    known: dict[tuple[int, ...], str] = {}
    rows: dict[str, int] = {}
    found = np.empty(tuple(windows.shape), np.int32)
    for number, window in enumerate(windows.tolist()):
        for position in range(len(window)):
            pair = tuple(window[max(0, position - 1) : position + 1])
            if pair not in known:
                known[pair] = context(list(pair), len(pair) - 1, decode, 1)[1]
            found[number, position] = rows.setdefault(known[pair], len(rows))
    return found, [*rows]


def with_contexts(
    evaluator: Evaluator, saes: JobSaes, pairs: Iterable[Pair], examples: pd.DataFrame, progress: bool
) -> pd.DataFrame:
    """Examples as from `choose_examples` with the contexts of both features, each token between « and ».

    Args:
        pairs: those that the examples are of.
    """
    of = {pair.layers: (pair.a, pair.b) for pair in pairs}
    rows = examples[["layer", "layer_to", "feature", "partner"]].astype(int).itertuples(index=False)
    places = [tuple(zip(of[layer, layer_to], features, strict=True)) for layer, layer_to, *features in rows]
    wanted: dict[Site, set[int]] = {}
    for site, feature in (place for both in places for place in both):
        wanted.setdefault(site, set()).add(feature)
    texts: dict[tuple[Site, int], str] = {}
    for site in tqdm(sorted(wanted), desc="contexts of example pairs", disable=not progress):
        chosen = sorted(wanted[site])
        texts |= {(site, f): text for f, text in zip(chosen, _contexts(evaluator, saes, site, chosen), strict=True)}
    columns = ("contexts", "partner_contexts")
    return examples.assign(**{name: [texts[both[i]] for both in places] for i, name in enumerate(columns)})


def _contexts(evaluator: Evaluator, saes: JobSaes, site: Site, features: Sequence[int]) -> list[str]:
    """The contexts of some features of a dictionary, one text each."""
    inputs, sae = evaluator.inputs, saes.load(site)
    alone = only_features(sae, features)
    top = inputs.top_activations(alone, site, SHOWN)

    def text(window: int, position: int) -> str:
        window, position = inputs.text.place(window, position)
        left, token, right = context(inputs.text.side(0).ids[window].tolist(), position, inputs.decode, NEAR)
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
