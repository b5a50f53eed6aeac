"""The flow graph on dictionaries whose events are planted, on random ones, and against the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import sae_match
from sae_match import Flow, SparseAutoencoder, UserError, flow
from sae_match.evaluation.correlation import ActivationCorrelation, activation_correlations
from sae_match.evaluation.nulls import rotated
from sae_match.flows.graph import EDGE_TYPES, EVENT_COLUMNS, NODE_TYPES
from sae_match.flows.partners import best_partners
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Comparison, WeightDistance
from sae_match.matching.weight_similarities import DecoderCosine, VirtualWeights
from tests.builders import random_sae
from tests.flows.planted import Parents, directions, next_layer, sae_of, shuffled

# Of 200 features: 0..149 persist, 150..159 split in two, 160..179 merge two and two, 180..199 end; 30 begin.
STEP: Parents = [
    *([i] for i in range(160)),
    *([i] for i in range(150, 160)),
    *([i, i + 1] for i in range(160, 180, 2)),
    *([] for _ in range(30)),
]


@pytest.fixture(scope="module")
def planted() -> tuple[SparseAutoencoder, SparseAutoencoder, list[int]]:
    """A, B, and at which place each child of `STEP` stands in B."""
    a = sae_of(directions(200, 1))
    order = shuffled(len(STEP), 2)
    place = np.argsort(order).tolist()
    return a, next_layer(a, [STEP[i] for i in order], 3), place


def nodes_with(found: Flow, event: str, layer: int) -> list[int]:
    nodes = found.nodes
    return nodes.loc[nodes[event] & (nodes["layer"] == layer), "feature"].tolist()


def test_planted_events_are_found_exactly(planted: tuple[SparseAutoencoder, SparseAutoencoder, list[int]]) -> None:
    a, b, place = planted
    found = flow([a, b], layers=[4, 5], alpha=1e-3)
    expected = {(parent, place[child]) for child, parents in enumerate(STEP) for parent in parents}
    assert set(zip(found.edges["feature"], found.edges["feature_to"], strict=True)) == expected
    assert nodes_with(found, "split", 4) == list(range(150, 160))
    assert nodes_with(found, "death", 4) == list(range(180, 200))
    assert nodes_with(found, "merge", 5) == sorted(place[child] for child in range(170, 180))
    assert nodes_with(found, "birth", 5) == sorted(place[child] for child in range(180, 210))
    # A feature that splits persists in one of its children, one of two that merge persists in the child.
    assert nodes_with(found, "persist", 4)[:160] == list(range(160)) and len(nodes_with(found, "persist", 4)) == 170
    row = found.events.iloc[0]
    assert row[["layer", "layer_to", "role", "features", "features_to", "edges"]].tolist() == [
        4, 5, "adjacent", 200, 210, len(expected),
    ]  # fmt: skip
    assert row[["persist", "split", "merge", "birth", "death"]].tolist() == [170, 10, 10, 30, 20]
    assert row["null_persist"] + row["null_death"] == 200 and row["null_rate"] < 0.02
    assert not found.nodes.loc[found.nodes["layer"] == 4, ["merge", "birth"]].any(axis=None)
    assert found.edges["coactivation"].isna().all() and found.nodes["firing_rate"].isna().all()


def test_the_similarity_of_an_edge_is_that_of_its_two_features(
    planted: tuple[SparseAutoencoder, SparseAutoencoder, list[int]],
) -> None:
    a, b, _ = planted
    for similarity, matrix in (
        (DecoderCosine(), a.W_dec @ b.W_dec.T),
        (VirtualWeights(), (0.5 * a.W_dec) @ (b.W_enc / 0.5)),
        (WeightDistance(metric="decoder"), -(torch.cdist(0.5 * a.W_dec, 0.5 * b.W_dec) ** 2)),
    ):
        edges = flow([a, b], similarity=similarity).edges
        values = matrix[torch.tensor(edges["feature"]), torch.tensor(edges["feature_to"])]
        np.testing.assert_allclose(edges["similarity"], values, atol=1e-5)
        best_child = matrix.argmax(dim=1)[torch.tensor(edges["feature"])].numpy() == edges["feature_to"]
        best_parent = matrix.argmax(dim=0)[torch.tensor(edges["feature_to"])].numpy() == edges["feature"]
        assert (edges["best_child"] == best_child).all() and (edges["best_parent"] == best_parent).all()
        assert (best_child | best_parent).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_independent_dictionaries_have_edges_at_the_rate_of_alpha(alpha: float) -> None:
    events = flow([sae_of(directions(1500, seed, 64)) for seed in range(4)], alpha=alpha).events
    for table in (events["null_rate"], (1 - events["death"] / events["features"])):
        assert abs(table.mean() - alpha) < 0.25 * alpha, table.tolist()


class Text:
    """Given residual streams by layer."""

    key = "text"

    def __init__(self, *streams: Tensor) -> None:
        self.streams = streams

    def layer(self, layer: int) -> Tensor:
        return self.streams[layer]


@pytest.fixture
def text() -> Text:
    generator = torch.Generator().manual_seed(5)
    return Text(*(torch.randn(6, 20, 8, generator=generator) for _ in range(2)))


@pytest.mark.parametrize("similarity", [DecoderCosine(), VirtualWeights(), WeightDistance(metric="both"),
                                        ActivationCorrelation()])  # fmt: skip
def test_blocks_of_any_size_give_what_the_whole_matrix_gives(similarity: Comparison, text: Text) -> None:
    a, b = random_sae(30, seed=1), random_sae(41, seed=2)
    excluded = torch.arange(30) % 7 == 0, torch.arange(41) % 5 == 0
    pair = FeaturePair(a, b, excluded=excluded, fit=text)
    whole = best_partners(similarity, pair, 1000)
    for rows in (1, 7, 26):
        blocks = best_partners(similarity, pair, rows)
        for name in ("features_a", "features_b", "child", "parent"):
            assert (getattr(blocks, name) == getattr(whole, name)).all()
        np.testing.assert_allclose(blocks.similarity, whole.similarity, atol=1e-5)
    assert not excluded[0][whole.parent].any() and not excluded[1][whole.child].any()
    if isinstance(similarity, ActivationCorrelation):
        matrix = activation_correlations(a, b, text.layer(0), text.layer(1))[~excluded[0]][:, ~excluded[1]]
        np.testing.assert_allclose(whole.child_similarity, matrix.max(dim=1).values, atol=1e-6)


def test_nodes_fire_and_edges_say_how_often_together(text: Text) -> None:
    a = random_sae(30, seed=1)
    a = a.replace(threshold=torch.where(torch.arange(30) < 3, 100.0, a.threshold))
    b = random_sae(30, seed=2)
    found = flow([a, b], streams=text, alpha=0.5, similarity=ActivationCorrelation())
    f_a, f_b = ((sae.encode(x[:, 1:]) > 0).flatten(0, 1) for sae, x in ((a, text.layer(0)), (b, text.layer(1))))
    rates = dict(zip(*(found.nodes.loc[found.nodes["layer"] == 0, c] for c in ("feature", "firing_rate")), strict=True))
    assert rates == {i: pytest.approx(float(f_a[:, i].float().mean())) for i in range(30) if f_a[:, i].any()}
    assert not {0, 1, 2} & set(rates) and not {0, 1, 2} & set(found.edges["feature"])
    assert found.events.loc[0, "features"] == len(rates)
    for edge in found.edges.itertuples():
        both = (f_a[:, edge.feature] & f_b[:, edge.feature_to]).sum() / f_a[:, edge.feature].sum()
        assert edge.coactivation == pytest.approx(float(both))


def test_two_seeds_of_a_layer_stand_beside_its_counts() -> None:
    """The other seed: half of the features again, in another order."""
    a = sae_of(directions(200, 1))
    other = next_layer(a, [[i] if i < 100 else [] for i in shuffled(200, 4)], 5)
    layers = [a, next_layer(a, [[i] for i in range(200)], 6)]
    events = flow(layers, layers=[7, 8], alpha=1e-3, second_seed={7: other}.get).events
    assert events[["layer", "layer_to", "role"]].values.tolist() == [[7, 7, "seeds"], [7, 8, "adjacent"]]
    assert events["persist"].tolist() == [100, 200]
    assert events["birth"].tolist() == events["death"].tolist() == [100, 0]


def test_saes_are_loaded_one_at_a_time_and_a_planted_step_may_be_anywhere() -> None:
    first = sae_of(directions(60, 1))
    held: list[int] = []

    def load() -> Iterator[SparseAutoencoder]:
        sae = first
        for layer in range(4):
            held.append(layer)
            yield sae
            sae = next_layer(sae, [[i] for i in shuffled(60, layer)], 10 + layer)

    found = flow(load(), alpha=1e-3)
    assert held == [0, 1, 2, 3] and found.layers == held
    assert found.events["persist"].tolist() == [60, 60, 60]
    at, path = 7, [7]
    for layer in range(3):
        at = shuffled(60, layer).index(at)
        path.append(at)
    for layer in range(4):  # from wherever one begins
        through = found.through(layer, path[layer])
        assert list(zip(through.nodes["layer"], through.nodes["feature"], strict=True)) == list(enumerate(path))
        assert len(through.edges) == 3


def test_a_flow_reaches_ancestors_and_descendants_and_not_their_other_relatives() -> None:
    a = sae_of(directions(100, 1))
    # 0 and 1 merge into child 0; 2 splits into children 1 and 2.
    b = next_layer(a, [[0, 1], [2], [2], *([i] for i in range(3, 100))], 2)
    c = next_layer(b, [[0], [0], [1, 2], *([i] for i in range(3, 100))], 3)
    found = flow([a, b, c], alpha=1e-3)
    nodes = found.through(1, 0).nodes
    assert list(zip(nodes["layer"], nodes["feature"], strict=True)) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    nodes = found.through(0, 0).nodes  # not its sibling 1
    assert list(zip(nodes["layer"], nodes["feature"], strict=True)) == [(0, 0), (1, 0), (2, 0), (2, 1)]
    nodes = found.through(2, 2).nodes
    assert list(zip(nodes["layer"], nodes["feature"], strict=True)) == [(0, 2), (1, 1), (1, 2), (2, 2)]
    with pytest.raises(UserError, match="feature 100 of layer 0 is no node"):
        found.through(0, 100)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    a = random_sae(30, seed=1)
    found = flow([a, random_sae(30, seed=2)], layers=[3, 4], alpha=0.5)
    found.save(tmp_path / "flow")
    for folder in (tmp_path, tmp_path / "flow"):
        again = Flow.load(folder)
        pd.testing.assert_frame_equal(again.nodes, found.nodes)
        pd.testing.assert_frame_equal(again.edges, found.edges)
        pd.testing.assert_frame_equal(again.events, found.events)
        assert again.about == found.about
    assert again.nodes.dtypes.astype(str).to_dict() == NODE_TYPES
    assert again.edges.dtypes.astype(str).to_dict() == EDGE_TYPES
    assert tuple(again.events.columns) == EVENT_COLUMNS
    assert again.about["saes"][0] == {
        "layer": 3, "name": a.source, "content_hash": a.content_hash, "width": 30, "neuronpedia": None,
    }  # fmt: skip
    (tmp_path / "flow" / "edges.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"edges\.parquet: not a readable table with layer"):
        Flow.load(tmp_path)
    (tmp_path / "flow" / "edges.parquet").unlink()
    with pytest.raises(UserError, match=r"edges.parquet: is missing"):
        Flow.load(tmp_path / "flow")


def test_what_gives_no_flow_is_refused(text: Text) -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    assert sae_match.flow is flow and sae_match.Flow is Flow
    for message, saes, options in (
        ("at least two layers", [a], {}),
        ("ascending", [a, b], {"layers": [2, 1]}),
        ("one layer for each SAE", [a, b], {"layers": [1, 2, 3]}),
        ("one layer for each SAE", [a, b, a], {"layers": [1, 2]}),
        ("alpha=1", [a, b], {"alpha": 1}),
        ("d_model 8 and 9", [a, random_sae(d=9)], {}),
        ("is fitted on text", [a, b], {"similarity": ActivationCorrelation()}),
        ("do not apply", [a, b], {"similarity": DecoderCosine(n_pairs=3)}),
        ("no feature of B fires", [a, b.replace(threshold=torch.full((24,), 1e9))], {"streams": text}),
    ):
        with pytest.raises(UserError, match=message):
            flow(saes, **options)


def test_a_rotation_leaves_no_edge_of_a_dictionary_with_itself() -> None:
    a = sae_of(directions(300, 1))
    events = flow([a, rotated(a, 9)], alpha=0.01).events
    assert events.loc[0, "persist"] < 10
    assert flow([a, a], alpha=0.01).events.loc[0, "persist"] == 300
