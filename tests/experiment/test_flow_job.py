"""Jobs that find the flow graph: its files, rows, figure and report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import metadata_load

from sae_match import Flow, Permutation, UserError, flow, load_permutations
from sae_match.experiment import run
from sae_match.record.contexts import CONTEXTS, read_contexts
from sae_match.report.cli import main as report
from sae_match.rules import check_config
from sae_match.saes import load_native
from sae_match.study import Study

Configured = Callable[..., Study]
FLOW = ("experiment=flow", "evaluation.flow_alpha=0.5")
FEWER = "dataset.documents=5"


@pytest.mark.drawn
def test_a_job_writes_the_flow_graph_of_its_span(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    result = run(configured(random_saes, *FLOW, FEWER))
    found = Flow.load(result.directory)
    saes = [load_native(random_saes / f"layer_{layer:02d}.safetensors") for layer in range(4)]
    second = load_native(random_saes / "layer_01_seed_1.safetensors")
    assert found.events["role"].tolist() == ["adjacent", "seeds", "adjacent", "adjacent"]
    assert {entry["content_hash"] for entry in found.about["saes"]} == {sae.content_hash for sae in saes}
    assert found.about["similarity"] == {"name": "decoder_cosine", "label": "cosine of decoder rows", "unit": "cosine"}
    assert found.about["alpha"] == 0.5 and found.about["model"] == "local" and "torch" in found.about["versions"]
    dead = result.pairs[result.pairs["metric"] == "dead_features"].set_index("layer")["value"]
    counts = found.nodes.groupby("layer").size()
    assert (counts == 24 - dead).all() and (found.nodes["firing_rate"] > 0).all()
    # Co-activation and firing rates agree with the pass of the evaluation, where partners are the same.
    both = found.edges.merge(
        result.features, left_on=["layer", "feature", "feature_to"], right_on=["layer", "feature", "partner"]
    )
    assert len(both) > 10
    np.testing.assert_allclose(both["coactivation"], both["matching_score"], atol=1e-6)
    contexts = read_contexts(result.directory / "flow" / CONTEXTS)
    for layer, of in contexts.layers.items():  # places for exactly the features that are nodes, each in its own window
        fires = sorted(found.nodes.loc[found.nodes["layer"] == layer, "feature"])
        assert np.flatnonzero(of.value[:, 0]).tolist() == fires and (of.histogram.sum(axis=1)[fires] > 0).all()
        assert (of.share[fires, 0, of.share.shape[2] // 2] == 255).all()
    alone = flow(saes, alpha=0.5, second_seed={1: second}.get).events  # without text, by the library
    weights = run(configured(random_saes, *FLOW, "evaluation=weights_only", "evaluation.flow_alpha=0.5", output="w"))
    pd.testing.assert_frame_equal(Flow.load(weights.directory).events, alone)
    rows = weights.pairs[weights.pairs["metric"] == "flow/persist"].set_index(["layer", "layer_to", "variant"])["value"]
    by_role = alone.set_index(["layer", "layer_to"])
    assert rows[0, 1, "matched"] == pytest.approx(by_role.loc[(0, 1), "persist"] / 24)
    assert rows[0, 1, "rotated"] == pytest.approx(by_role.loc[(0, 1), "null_persist"] / 24)
    assert rows[1, 1, "ceiling"] == pytest.approx(by_role.loc[(1, 1), "persist"] / 24)
    assert weights.metrics["flow/persist"] == pytest.approx(rows[:, :, "matched"].mean())
    assert weights.metrics["flow/persist/ceiling"] == rows[1, 1, "ceiling"]
    assert (result.directory / "figures" / "flow.png").is_file()
    assert report([str(result.directory), str(weights.directory), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    row = by_role.loc[(1, 1)]
    assert f"| 1 → 1 (two seeds) | 24       | {row['persist']} ({row['null_persist']})" in text
    table = pd.read_csv(tmp_path / "report" / "flow_events.csv")
    pd.testing.assert_frame_equal(table[table["job"] == "w"].drop(columns="job").reset_index(drop=True), alone)
    assert {path.name for path in (tmp_path / "report").glob("flow*.html")} == {"flow_0.html", "flow_1.html"}
    assert {path.stem for path in (tmp_path / "report").glob("flow*.png")} == {"flow_0", "flow_1", "flow_persist"}


def test_edges_of_tested_partners_have_their_causal_weight(configured: Configured, random_saes: Path) -> None:
    controls = "evaluation/controls=[vanilla,random,decoder_cosine_nearest]"
    tests = [
        "evaluation/functional=all",
        "evaluation.functional.tests=[deactivation]",
        "evaluation.functional.features=24",
    ]
    result = run(configured(random_saes, *FLOW, *tests, controls, "layers.last=1", FEWER))
    edges = Flow.load(result.directory).edges
    effects = pd.read_parquet(result.directory / "functional.parquet")
    nearest = effects[effects["variant"] == "decoder_cosine_nearest"].set_index(["feature", "partner"])["drop"]
    children = edges[edges["best_child"]]
    assert len(children) and children["deactivation"].notna().all()
    for edge in children.itertuples():
        assert edge.deactivation == pytest.approx(nearest[edge.feature, edge.feature_to], abs=1e-6)


def test_a_tracked_job_sends_events_as_curves(
    configured: Configured, random_saes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    curves: list[dict[str, float]] = []
    monkeypatch.setattr(
        "sae_match.tracking.wandb_mirror.WandbMirror.log_curves", lambda self, axis, rows: curves.extend(rows)
    )
    with caplog.at_level(logging.WARNING):
        run(configured(random_saes, *FLOW, "evaluation=weights_only", "tracking=wandb_offline"))
    assert "incomplete" not in caplog.text
    (first,) = [row for row in curves if row["layer"] == 0]
    names = {name for name in first if name.startswith("flow/")}
    assert names >= {f"flow/{event}/matched" for event in ("persist", "split", "merge", "birth", "death")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["matching.n_pairs=3"], "evaluation.flow_alpha looks for best partners"),
        (["matching=descriptions", "matching.folder='x/{layer}'"], "evaluation.flow_alpha turns an SAE's parameters"),
    ],
)
def test_what_gives_no_flow_is_refused_before_the_job(
    configured: Configured, random_saes: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_config(configured(random_saes, *FLOW, *overrides))


def test_a_second_attempt_leaves_nothing_of_the_first(configured: Configured, random_saes: Path) -> None:
    first = run(configured(random_saes, *FLOW, "evaluation=weights_only"))
    (first.directory / "status.json").write_text('{"state": "failed", "process": {}}', "utf-8")
    run(configured(random_saes, "evaluation=weights_only", "matching=decoder_cosine"))
    assert list((first.directory / "flow").iterdir()) == []


def test_a_record_gives_its_graph_and_what_one_would_upload(
    configured: Configured, random_saes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(configured(random_saes, *FLOW, "evaluation=weights_only"))
    where, folder, graph = str(result.directory), tmp_path / "upload", tmp_path / "flow.graphml"
    assert report([where, "--graph", str(graph), "--publish", str(folder)]) == 0
    assert nx.read_graphml(graph).number_of_edges() == len(Flow.load(result.directory).edges)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "flow", "permutations.safetensors"]
    saes = {layer: load_native(random_saes / f"layer_{layer:02d}.safetensors") for layer in range(4)}
    found = load_permutations(folder, saes=saes)
    for (a, b), one in found.items():
        own = Permutation.load(result.directory / "permutations" / f"layer_{a:02d}_to_{b:02d}.safetensors")
        assert torch.equal(one.indices, own.indices) and one.provenance == own.provenance
    assert list(found) == [(0, 1), (1, 2), (2, 3)] and Flow.load(folder).layers == [0, 1, 2, 3]
    card = (folder / "README.md").read_text("utf-8")
    assert metadata_load(folder / "README.md")["library_name"] == "sae_match"
    assert "| 2 → 3  | 24 of 24" in card and str(random_saes) not in card
    assert not (result.directory / "report").exists()
    without = run(configured(random_saes, "evaluation=weights_only", output="without"))
    assert report([str(without.directory), "--graph", str(graph)]) == 2
    assert "one finished job with flow/events.csv; there: none" in capsys.readouterr().err
