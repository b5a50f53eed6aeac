"""Jobs on SAEs by the name of their release: the plan's files, the job's numbers, and what is refused before them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_match import UserError
from sae_match.experiment import run
from sae_match.plan.show import render
from sae_match.rules import check_config
from tests.config.test_configuration import composed
from tests.experiment.gemma import BLOCKS, D_MODEL, TOKEN, Setting, build
from tests.experiment.test_gemma_setting import config
from tests.hub_server import Hub
from tests.saes.layouts import D, F, write_cross_layer, write_state_dict, write_temporal
from tests.tiny_setting import planned

CANONICAL = ("sae=release", "sae.release=gemma-scope-2b-pt-res-canonical", "sae.l0=null")
ID = "sae.id='layer_{layer}/width_16k/canonical'"
WEIGHTS_ONLY = "evaluation=weights_only"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def published(hub: Hub, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    setting.publish(hub)
    return hub


def test_the_plan_names_repository_and_files_and_the_job_is_that_of_the_files(published: Hub, tmp_path: Path) -> None:
    cfg = config(tmp_path, *CANONICAL, ID, WEIGHTS_ONLY)
    plan = planned(cfg)
    assert plan.problems == [] and plan.saes is not None
    assert [file.filename for file in plan.saes.files] == [
        f"layer_{layer}/width_16k/average_l0_{l0}/params.npz" for layer, l0 in enumerate((105, 102, 141, 59))
    ]
    assert all(file.size for file in plan.saes.files) and published.asked(r"layer_[1-3].*npz$") == 0
    assert {(shape.d_model, shape.width) for shape in plan.saes.shapes.values()} == {(D_MODEL, 80)}
    assert "SAEs google/gemma-scope-2b-pt-res, revision main: " in render(plan)
    assert cfg.config["sae"]["repo_id"] == "google/gemma-scope-2b-pt-res"
    by_name = run(cfg).pairs
    by_layout = run(config(tmp_path, WEIGHTS_ONLY, f"paths.output_dir={tmp_path / 'layout'}")).pairs
    timeless = ~by_name["metric"].str.startswith("solver/")
    assert by_name[timeless].equals(by_layout[timeless]) and timeless.sum() > 50


def test_the_sae_encodes_the_models_stream(published: Hub, tmp_path: Path) -> None:
    cfg = config(tmp_path, *CANONICAL, ID, "layers.last=1", "evaluation/controls=[]")
    assert "matching_score" in run(cfg).metrics


def test_a_layer_without_a_file_is_told_by_the_plan(published: Hub, tmp_path: Path) -> None:
    cfg = config(tmp_path, *CANONICAL, ID, WEIGHTS_ONLY, "layers.first=25", "layers.last=26", "sae.n_layers=26")
    with pytest.raises(UserError, match=r"no SAE of layers 26; there are layers\.first=0 layers\.last=25"):
        check_config(cfg)


def test_state_dicts_of_a_release(hub: Hub, tmp_path: Path) -> None:
    """Pickled files tell nothing before they are here; the plan says so and goes on, the job reads them."""
    names = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for layer in (0, 2):
        write_state_dict(tmp_path / "repo" / f"layer{layer}.sae.pt", names, width=128)
    hub.publish("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", tmp_path / "repo")
    named = ("sae=release", "sae.release=qwen-scope-3-1.7b-base-w32k-l50", "sae.id='layer{layer}'", "tracking=none")
    scale = ("folding.scale=decoder_norm", "evaluation/controls=[]", f"paths.output_dir={tmp_path / 'out'}")
    cfg = composed(*named, *scale, WEIGHTS_ONLY, "layers.list=[0,2]", f"paths.cache_dir={tmp_path / 'cache'}")
    plan = planned(cfg)
    assert plan.problems == [] and plan.saes is not None
    assert [file.filename for file in plan.saes.files] == ["layer0.sae.pt", "layer2.sae.pt"]
    assert "0->2" in render(plan)
    result = run(cfg)
    assert set(zip(result.pairs["layer"], result.pairs["layer_to"], strict=True)) == {(0, 2)}
    assert {shape.width for shape in (planned(cfg).saes or plan.saes).shapes.values()} == {128}


def test_weights_only_layouts(hub: Hub, tmp_path: Path) -> None:
    """A cross-layer transcoder's layers and temporal SAEs, from plan to matching."""
    write_cross_layer(tmp_path / "clt", 3)
    write_cross_layer(tmp_path / "clt", 4)
    for layer in (15, 26):
        write_temporal(tmp_path / "temporal" / f"llama-3.1-8B/layer_{layer}" / "temporal")
    hub.publish("mntss/clt-gemma-2-2b-2.5M", tmp_path / "clt")
    hub.publish("canrager/temporalSAEs", tmp_path / "temporal")
    named = {
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer": ["sae.id='layer_{layer}'", "layers.first=3", "layers.last=4"],
        "temporal-sae-llama-3.1-8b": ["sae.id='blocks.{layer}.hook_resid_post'", "layers.list=[15,26]"],
    }
    for release, chosen in named.items():
        paths = (f"paths.output_dir={tmp_path / release}", f"paths.cache_dir={tmp_path / 'cache'}")
        job = ("sae=release", f"sae.release={release}", *chosen, "tracking=none", "evaluation/controls=[]")
        cfg = composed(*job, "folding.scale=decoder_norm", WEIGHTS_ONLY, *paths)
        plan = planned(cfg)
        assert plan.problems == [] and plan.saes is not None and len(plan.saes.files) == 4
        assert {(shape.d_model, shape.width) for shape in plan.saes.shapes.values()} == {(D, F)}
        assert run(cfg).metrics["matched_pairs"] == F


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=gemma_2_9b"], r"sae\.model=gemma-2-2b, model=google/gemma-2-9b: .* is not the model"),
        ([], r"sae\.model=gemma-2-2b, model=smollm2_135m: .* is not the model"),
        (["model=gemma_2_2b", "sae.release=gemma-scope-2b-pt-mlp-canonical"], r"sae\.site=mlp_out: activations"),
        (["model=gemma_2_2b", "sae.site=mlp_out"], r"sae\.site=mlp_out: activations"),
        (
            ["model=gpt2", "sae.release=gpt2-small-res-jb", "sae.id='blocks.{layer}.hook_resid_pre'"],
            r"resid_pre: activations .* \{next\} in place of \{layer\}",
        ),
        (["sae.release=gemma-scope-2b-pt-res", "sae.id=embedding/width_4k/average_l0_6"], "is of no layer"),
        (["sae.release=gemma-scope-2b-res"], "no such release in SAELens' registry; nearest: gemma-scope-2b-pt-res"),
        (["sae.id=layer_3/width_16k/canonical"], "no SAE of layers 0, 1, 2; there are"),
        ([WEIGHTS_ONLY, "layers.last=30"], r"no SAE of layers 26, 27, 28, 29, 30"),
    ],
)
def test_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*CANONICAL, ID, "layers.first=0", f"layers.last={BLOCKS - 1}", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gemma_2_2b"],
        ["model=gemma_2_2b", "model.repo_id=unsloth/gemma-2-2b"],
        ["model=gemma_2_9b", "sae.model=gemma-2-9b"],
        ["model=local", "model.path=DIR"],
        ["model=gpt2", "sae.release=gpt2-small-res-jb", "sae.id='blocks.{next}.hook_resid_pre'"],
        ["sae.release=gemma-scope-2b-pt-mlp-canonical", WEIGHTS_ONLY],
        ["model=gpt2", "sae.release=gpt2-small-resid-post-v5-32k", "sae.id='blocks.{layer}.hook_resid_post'"],
    ],
)
def test_allowed(overrides: list[str]) -> None:
    check_config(composed(*CANONICAL, ID, "layers.first=0", f"layers.last={BLOCKS - 1}", *overrides))
