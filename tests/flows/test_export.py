"""Exports of a flow, read back by the tools that they are for."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from sae_match import Flow, UserError, flow
from sae_match.flows.export import neuronpedia_list, supernodes, to_networkx, write_graph
from tests.flows.planted import directions, next_layer, sae_of


@pytest.fixture(scope="module")
def found() -> Flow:
    """Feature 0 of layer 5 splits into 0 and 1 of layer 6, feature 1 ends; the others persist."""
    a = sae_of(directions(60, 1))
    b = next_layer(a, [[0], [0], *([i] for i in range(2, 60))], 2)
    made = flow([a, b], layers=[5, 6], alpha=1e-3)
    made.edges.loc[0, "coactivation"] = 0.25
    for sae in made.about["saes"]:
        sae["neuronpedia"] = f"my-model/{sae['layer']}-my-res-1k"
    return made


@pytest.mark.parametrize("suffix", [".graphml", ".json"])
def test_networkx_reads_the_graph_with_its_values(found: Flow, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flow{suffix}"
    write_graph(found, path)
    if suffix == ".json":
        graph = nx.node_link_graph(json.loads(path.read_text("utf-8")), edges="links")
    else:
        graph = nx.read_graphml(path)
    whole = to_networkx(found)
    assert isinstance(graph, nx.DiGraph) and graph.nodes == whole.nodes and graph.adj == whole.adj
    assert set(graph["5_0"]) == {"6_0", "6_1"} and graph.in_degree("6_1") == 1
    assert graph.nodes["5_0"] == {"layer": 5, "feature": 0, "persist": True, "split": True, "merge": False,
                                  "birth": False, "death": False}  # fmt: skip
    assert graph.nodes["5_1"]["death"] is True and graph.out_degree("5_1") == 0
    assert [edge["coactivation"] for _, _, edge in graph.edges(data=True) if "coactivation" in edge] == [0.25]
    np.testing.assert_allclose(graph["5_2"]["6_2"]["similarity"], found.edges["similarity"][2], rtol=1e-6)
    assert graph.graph["similarity"] == "cosine of decoder rows" and graph.graph["alpha"] == 1e-3


def test_another_suffix_is_refused(found: Flow, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as .graphml or .json"):
        write_graph(found, tmp_path / "flow.gexf")


def test_flows_are_supernodes_and_lists(found: Flow) -> None:
    flows = {"splits": found.through(5, 0), "persists": found.through(6, 7)}
    assert json.loads(supernodes(flows)) == [["splits", "5_0", "6_0", "6_1"], ["persists", "5_7", "6_7"]]
    assert json.loads(supernodes(flows, position=9))[1] == ["persists", "5_7_9", "6_7_9"]
    assert neuronpedia_list(flows["persists"], "seven") == [
        {"modelId": "my-model", "layer": "5-my-res-1k", "index": "7", "description": "seven"},
        {"modelId": "my-model", "layer": "6-my-res-1k", "index": "7", "description": "seven"},
    ]
    other = flow([sae_of(directions(9, seed)) for seed in (1, 2)])
    with pytest.raises(UserError, match=r"layers \[0, 1\] have no name on Neuronpedia"):
        neuronpedia_list(other)
