"""The text on which every feature of the span is most active, as the flow's page shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from sae_match.evaluation.top_activations import contexts, top_activations
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.saes import JobSaes
from sae_match.judging.descriptions import context
from sae_match.pairs import Site
from sae_match.record.contexts import LayerContexts, TextContexts
from sae_match.text.tokenization import decode_tokens

PLACES, AROUND, BINS = 6, 8, 16
"""Contexts per feature, tokens on either side of the one on which it is most active, bins of the histogram."""
TEXT_TOKENS = 2**18
"""Contexts are taken from the first windows that hold so many tokens; a page holds this text."""


def text_contexts(evaluator: Evaluator, saes: JobSaes, layers: Iterable[int], progress: bool) -> TextContexts:
    """Two passes over the residual streams of each layer; 230 bytes per feature are kept."""
    inputs = evaluator.inputs
    rows = max(1, TEXT_TOKENS // inputs.windows.ids.shape[1])
    ids, texts = token_texts(inputs.windows.ids[:rows], lambda ids: decode_tokens(inputs.tokenizer, ids))
    found: dict[int, LayerContexts] = {}
    for layer in tqdm(layers, desc="contexts of features", disable=not progress):
        sae, x = saes.load(Site(layer)), inputs.residual(Site(layer))[:rows]
        how = (evaluator.batch_windows, evaluator.sink_positions)
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
