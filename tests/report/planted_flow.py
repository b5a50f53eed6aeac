"""A flow graph of nine features with every event, and the text on which they fire."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from sae_match import Flow
from sae_match.flows.events import EVENTS
from sae_match.flows.graph import EDGE_TYPES, EVENT_COLUMNS, NODE_TYPES
from sae_match.record.contexts import CONTEXTS, LayerContexts, TextContexts, write_contexts

HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>\u202e'\""
TEXTS = [" alpha", " beta", "\n", HOSTILE, " gamma"]
IDS = np.array([[4, 4, 0, 4, 4, 1], [4, 2, 3, 4, 1, 4]], np.int32)
HAPPENED = {
    (11, 0): {"persist", "split"}, (11, 1): {"persist"}, (11, 2): {"death"},
    (12, 0): {"persist"}, (12, 1): {"persist"}, (12, 2): set(), (12, 3): {"birth", "death"},
    (13, 0): {"merge"}, (13, 1): set(),
}  # fmt: skip
EDGE_ROWS = [  # layer, feature, layer_to, feature_to, similarity, best child, best parent, co-activation, deactivation
    (11, 0, 12, 0, 0.9, True, True, 0.8, 0.5),
    (11, 0, 12, 1, 0.5, False, True, 0.4, math.nan),
    (11, 1, 12, 2, 0.8, True, True, 0.7, 0.25),
    (12, 0, 13, 0, 0.7, True, True, 0.6, 1.0),
    (12, 1, 13, 1, 0.65, True, True, 0.5, 0.0),
    (12, 2, 13, 0, 0.6, True, False, 0.3, -0.1),
]


def planted_flow(measured: bool = True) -> Flow:
    """The graph; without firing rates, co-activation and causal weight where nothing was measured."""
    rates = [0.1 if measured else math.nan] * len(HAPPENED)
    nodes = pd.DataFrame([*HAPPENED], columns=["layer", "feature"]).assign(firing_rate=rates)
    for event in EVENTS:
        nodes[event] = [event in found for found in HAPPENED.values()]
    edges = pd.DataFrame(EDGE_ROWS, columns=list(EDGE_TYPES))
    if not measured:
        edges[["coactivation", "deactivation"]] = math.nan
    rows = [(11, 12, "adjacent", 3, 4, 3, 2, 1, 0, 1, 1), (12, 13, "adjacent", 4, 2, 3, 2, 0, 1, 0, 1),
            (12, 12, "seeds", 4, 4, 4, 3, 2, 2, 1, 0)]  # fmt: skip
    events = pd.DataFrame(rows, columns=list(EVENT_COLUMNS[: len(rows[0])])).assign(threshold=0.3, null_rate=0.05)
    about = {
        "similarity": {"name": "decoder", "label": "decoder cosine", "unit": "cosine"},
        "alpha": 0.05,
        "model": "model <b>",
        "saes": [{"layer": layer, "neuronpedia": f"m/{layer}-res"} for layer in (11, 12)],
    }
    return Flow(nodes.astype(NODE_TYPES), edges.astype(EDGE_TYPES), events.reindex(columns=[*EVENT_COLUMNS]), about)


def planted_contexts() -> TextContexts:
    """Feature 0 of every layer fires on " alpha" and the hostile token, 1 on " beta", 2 and 3 never."""
    window = np.array([[0, 1], [1, 0], [-1, -1], [-1, -1]], np.int32)
    position = np.array([[2, 2], [4, 5], [-1, -1], [-1, -1]], np.int32)
    value = np.array([[8.0, 4.0], [2.0, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    share = np.zeros((4, 2, 5), np.uint8)
    share[0] = [[0, 64, 255, 0, 0], [0, 0, 128, 0, 0]]
    share[1] = [[0, 0, 255, 0, 0], [0, 0, 128, 0, 0]]
    histogram = np.array([[3, 1, 0, 1], [0, 1, 0, 1], [0] * 4, [0] * 4], np.int32)
    return TextContexts({layer: LayerContexts(window, position, value, share, histogram) for layer in (11, 12, 13)},
                        IDS, TEXTS)  # fmt: skip


def write_flow(folder: Path, text: bool = True) -> Path:
    """The folder of a record that measured everything, or of one without a model."""
    planted_flow(text).save(folder)
    if text:
        write_contexts(folder / CONTEXTS, planted_contexts())
    return folder
