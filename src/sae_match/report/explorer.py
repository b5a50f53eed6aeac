"""The page to walk through a flow graph: its data as columns inside one HTML file that opens offline."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped
from jinja2.utils import htmlsafe_json_dumps

from sae_match.flows import Flow
from sae_match.flows.events import EVENTS

from ..errors import UserError
from ..record.contents import FLOW
from ..record.contexts import CONTEXTS, TextContexts, read_contexts
from .pages import NEURONPEDIA, dumps, html_page, visible
from .records import Record

SOURCE, TARGET = ["layer", "feature"], ["layer_to", "feature_to"]
WEIGHTS = ("similarity", "coactivation", "deactivation")
"""Numbers of an edge; the last two where they were measured."""
TOP = 3
"""Tokens by which a feature is called in lists and drawings."""
DETAIL_BYTES = 64_000_000
"""Room, before compression, for contexts and histograms. If they need more, features keep fewer contexts, and those
without an edge none."""
LIBRARY = "assets", "d3", "d3.min.js"


def flow_of(record: Record) -> str:
    """`explorer_page` of a record that holds a flow graph."""
    return explorer_page(f"Feature flow: {record.factors.get('sae', record.name)} ({record.name})", record.path / FLOW)


def explorer_page(title: str, folder: Path) -> str:
    """The page as HTML text, from the folder of a flow graph, with the contexts of its features where it holds them.

    Raises:
        UserError: a file is damaged, or they do not fit each other.
    """
    found = read_contexts(folder / CONTEXTS) if (folder / CONTEXTS).is_file() else None
    data = htmlsafe_json_dumps(page_data(Flow.load(folder), found), dumps)
    library = files("sae_match").joinpath(*LIBRARY).read_text("utf-8")
    return html_page("explorer", title, library, parts=("data", "draw"), data=data, events=EVENTS)


def page_data(flow: Flow, contexts: TextContexts | None) -> dict[str, Any]:
    """What the page is given: facts, events, and columns (`packed`) of nodes, edges and text.

    Nodes are ordered by layer and feature; edges name them by their place in that order, and are ordered by parent.

    Raises:
        UserError: an edge of a feature that is no node, or contexts of other features.
    """
    nodes = flow.nodes.sort_values(["layer", "feature"], ignore_index=True)
    place = pd.MultiIndex.from_frame(nodes[SOURCE])
    if place.has_duplicates:
        raise UserError("nodes of the flow: a feature is there twice")
    ends = [place.get_indexer(pd.MultiIndex.from_frame(flow.edges[names])) for names in (SOURCE, TARGET)]
    if any((end < 0).any() for end in ends):
        raise UserError("edges of the flow: a feature that is no node")
    edges = flow.edges.assign(source=ends[0], target=ends[1]).sort_values(["source", "target"])
    measured = [name for name in WEIGHTS if edges[name].notna().any()]
    sources = {sae.get("layer"): sae.get("neuronpedia") for sae in flow.about.get("saes", ())}
    return {
        "facts": {name: flow.about.get(name) for name in ("model", "similarity", "alpha")},
        "events": json.loads(flow.events.to_json(orient="records")),
        "layers": flow.layers,
        "links": [f"{NEURONPEDIA}/{sources[layer]}/" if sources.get(layer) else None for layer in flow.layers],
        "starts": [*np.searchsorted(nodes["layer"], flow.layers).tolist(), len(nodes)],
        "nodes": {
            "feature": packed(nodes["feature"].to_numpy(np.uint32)),
            "rate": packed(short(nodes["firing_rate"])),
            "flags": packed(_bits(nodes, EVENTS)),
        },
        "edges": {
            **{end: packed(edges[end].to_numpy(np.uint32)) for end in ("source", "target")},
            **{name: packed(short(edges[name])) for name in ["similarity", *measured]},
            "flags": packed(_bits(edges, ("best_child", "best_parent"))),
        },
        "text": None if contexts is None else _text(contexts, nodes, np.union1d(*ends)),
    }


def _text(found: TextContexts, nodes: pd.DataFrame, linked: Int[np.ndarray, " linked"]) -> dict[str, Any]:
    """The text, the tokens by which features are called, and per layer the contexts and histograms of its features.

    Args:
        linked: the nodes with an edge.
    """
    groups = {int(str(layer)): of["feature"].to_numpy() for layer, of in nodes.groupby("layer")}
    for layer, features in groups.items():
        if layer not in found.layers or features.max() >= len(found.layers[layer].value):
            raise UserError(f"{CONTEXTS} does not hold all features of layer {layer}: is it another job's?")
    whole = found.layers[nodes["layer"].iloc[0]]
    (_, places, context), bins = whole.share.shape, whole.histogram.shape[1]
    per_place, per_histogram = context + 8, 4 * bins
    kept = np.ones(len(nodes), bool)
    if len(nodes) * (places * per_place + per_histogram) > DETAIL_BYTES:
        kept[:] = False
        kept[linked] = True
        places = max(1, min(places, int((DETAIL_BYTES / max(1, len(linked)) - per_histogram) // per_place)))
    layers, top = [], []
    for layer, features in groups.items():
        of, shown = found.layers[layer], kept[(nodes["layer"] == layer).to_numpy()]
        place = np.where(of.window < 0, -1, of.window.astype(np.int64) * found.ids.shape[1] + of.position)
        top.append(_top_tokens(place[features], found.ids.ravel()))
        chosen = features[shown]
        details = {"place": (place[chosen, :places] + 1).astype(np.uint32), "value": short(of.value[chosen, :places])}
        details |= {"share": of.share[chosen, :places], "histogram": of.histogram[chosen].astype(np.uint32)}
        layers.append({name: packed(values) for name, values in ({"kept": shown.astype(np.uint8)} | details).items()})
    return {
        "tokens": packed(found.ids.ravel().astype(np.uint32)), "vocabulary": [visible(text) for text in found.texts],
        "windows": found.ids.shape[0], "window": found.ids.shape[1], "contexts": places, "around": context // 2,
        "bins": bins, "top": packed(np.concatenate(top)), "layers": layers,
    }  # fmt: skip


def _top_tokens(place: Int[np.ndarray, "nodes k"], ids: Int[np.ndarray, " tokens"]) -> Shaped[np.ndarray, "nodes top"]:
    """The first distinct tokens at the places, as 1 + row of the vocabulary; 0 where there are fewer."""
    tokens = np.where(place < 0, 0, ids[np.maximum(place, 0)] + 1)
    top = np.zeros((len(place), TOP), np.uint32)
    for row, found in enumerate(tokens.tolist()):
        distinct = [token for token in dict.fromkeys(found) if token][:TOP]
        top[row, : len(distinct)] = distinct
    return top


def packed(values: Shaped[np.ndarray, "..."]) -> dict[str, str]:
    """Numbers as the page reads them: their kind (u8, u32, f32), and base64 of gzip of the little-endian bytes."""
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    kind = f"{values.dtype.kind}{8 * values.dtype.itemsize}"
    return {"kind": kind, "data": base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()}


def short(values: Any) -> Shaped[np.ndarray, "..."]:
    """float32 rounded to 12 bits of mantissa, a relative error of at most 2^-13, which packs well; NaN stays NaN."""
    exact = np.array(values, np.float32)
    bits = exact.view(np.uint32)
    return np.where(np.isfinite(exact), (bits + 1024) & np.uint32(0xFFFFF800), bits).view(np.float32)


def _bits(table: pd.DataFrame, names: Sequence[str]) -> Shaped[np.ndarray, " rows"]:
    """Columns of booleans as one number per row, the first column its lowest bit."""
    return np.packbits(table[[*names]].to_numpy(bool), axis=1, bitorder="little").ravel()
