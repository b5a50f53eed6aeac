"""A flow for other tools: a networkx graph, GraphML, JSON, supernodes of circuit viewers, lists of Neuronpedia."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd

from sae_match.errors import UserError
from sae_match.files import atomic_path, write_json
from sae_match.flows.graph import Flow


def to_networkx(flow: Flow) -> nx.DiGraph:
    """Nodes are named LAYER_FEATURE, as in circuit viewers; they and edges have the columns of the tables as plain
    values, without those that were not measured. The graph has `similarity`, `alpha` and `model`."""
    graph = nx.DiGraph(
        similarity=flow.about["similarity"]["label"], alpha=flow.about["alpha"], model=flow.about["model"] or ""
    )
    for values in _rows(flow.nodes):
        graph.add_node(f"{values['layer']}_{values['feature']}", **values)
    for values in _rows(flow.edges):
        parent, child = (f"{values.pop(f'layer{to}')}_{values.pop(f'feature{to}')}" for to in ("", "_to"))
        graph.add_edge(parent, child, **values)
    return graph


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.to_dict("records")
    return [{str(k): v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))} for row in rows]


def write_graph(flow: Flow, path: Path | str) -> None:
    """Write `to_networkx` as NAME.graphml (Gephi, Cytoscape, yEd) or NAME.json (networkx' node-link form, with the keys
    `nodes` and `links` of d3).

    Raises:
        UserError: a name with another suffix.
    """
    path = Path(path)
    if path.suffix not in (".graphml", ".json"):
        raise UserError(f"{path}: a graph is written as .graphml or .json")
    graph = to_networkx(flow)
    if path.suffix == ".json":
        write_json(path, nx.node_link_data(graph, edges="links"))
    else:
        with atomic_path(path) as temporary:
            nx.write_graphml(graph, temporary)


def supernodes(flows: Mapping[str, Flow], position: int | None = None) -> str:
    """Flows by label as the groups of features that circuit viewers take, such as the `supernodes` of a graph's address
    on Neuronpedia and of circuit-tracer: a JSON list of [label, LAYER_FEATURE, ...].

    Args:
        position: of the token in the prompt of an attribution graph, whose names are LAYER_FEATURE_POSITION.
    """
    end = "" if position is None else f"_{position}"
    groups = [
        [label, *(f"{layer}_{feature}{end}" for layer, feature in _places(flow))] for label, flow in flows.items()
    ]
    return json.dumps(groups, ensure_ascii=False)


def neuronpedia_list(flow: Flow, description: str = "") -> list[dict[str, str]]:
    """The features of a flow in the form in which Neuronpedia's lists take them: `modelId`, `layer` (the SAE's name
    there), `index`, `description`.

    Raises:
        UserError: a layer whose SAE is not on Neuronpedia, as far as is known (`sae.neuronpedia`).
    """
    sources = {sae["layer"]: sae["neuronpedia"] for sae in flow.about["saes"]}
    if missing := [layer for layer in flow.layers if not sources.get(layer)]:
        raise UserError(f"the SAEs of layers {missing} have no name on Neuronpedia (sae.neuronpedia)")
    found = []
    for layer, feature in _places(flow):
        model, source = sources[layer].split("/", 1)
        found.append({"modelId": model, "layer": source, "index": str(feature), "description": description})
    return found


def _places(flow: Flow) -> list[tuple[int, int]]:
    return list(zip(flow.nodes["layer"].tolist(), flow.nodes["feature"].tolist(), strict=True))
