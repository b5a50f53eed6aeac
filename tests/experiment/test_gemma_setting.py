"""`experiment=gemma_2_2b` from end to end, in miniature: gated model, SAEs and text from a loopback hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from sae_match import load_sae
from sae_match.app.build import build
from sae_match.experiment import Result, run
from sae_match.language_model import load_language_model
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows
from tests.builders import scientific
from tests.compositions import composed
from tests.experiment.gemma import BLOCKS, BOS, OVERRIDES, TOKEN, WINDOW, Setting
from tests.experiment.gemma import build as build_setting
from tests.hub_server import Hub
from tests.tiny_setting import planned


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build_setting(tmp_path_factory.mktemp("gemma"))


def config(tmp_path: Path, *overrides: str) -> Study:
    paths = [f"paths.output_dir={tmp_path / 'out'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    return build(composed(*OVERRIDES, *paths, *overrides), Study)


def value(result: Result, layer: int, variant: str, metric: str) -> float:
    table = result.pairs
    found = table[(table.layer == layer) & (table.variant == variant) & (table.metric == metric)]
    assert len(found) == 1, (layer, variant, metric)
    return float(found["value"].iloc[0])


def test_the_full_evaluation(hub: Hub, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    setting.publish(hub)
    cfg = config(tmp_path, "model.dtype=float32")
    plan = planned(cfg)
    assert plan.problems == []
    result = run(cfg)
    for layer, planted in setting.planted.items():
        name = f"layer_{layer:02d}_to_{layer + 1:02d}.safetensors"
        assert load_file(result.directory / "permutations" / name)["permutation"].tolist() == planted.tolist()
        # The same feature in both layers, and so nearly the same row.
        assert value(result, layer, "matched", "decoder_cosine") > 0.95
        assert value(result, layer, "random", "decoder_cosine") < 0.5
        assert value(result, layer, "matched", "matching_score") > value(result, layer, "random", "matching_score")
    assert {"matching_score", "delta_loss/encode_permute_decode", "explained_variance/layer_drop"} <= set(
        result.metrics
    )
    assert "l0/sae" in result.metrics and result.metrics["l0/sae"] > 1
    text = json.loads((result.directory / "text.json").read_text())
    assert (text["documents"], text["windows"], text["tokens"]) == (8, 8, 8 * WINDOW)
    assert text["recipe"]["bos"] == BOS

    # delta_loss against an ordinary hook and full passes through the model as transformers runs it.
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    assert (windows.ids[:, 0] == BOS).all() and not (windows.ids[:, 1:] == BOS).any()
    layer = 2
    sae = load_sae(next((setting.saes / f"layer_{layer}").rglob("params.npz")), layer)
    residual = model.resid_post(windows.ids, [layer])[layer]
    spliced = sae(residual)
    spliced[:, 0] = residual[:, 0]
    delta = losses(model.hf, windows.ids, model.blocks[layer], spliced) - losses(model.hf, windows.ids)
    expected = float(delta[:, 1:].double().mean())
    found = value(result, layer - 1, "encode_decode_current", "delta_loss")
    assert found == pytest.approx(expected, abs=1e-5) and abs(found) > 1e-3

    # Everything that was planned is now in the cache, and the plan knows it.
    again = planned(cfg)
    assert again.problems == [] and again.saes is not None and again.model is not None and again.text is not None
    assert all(file.cached is not None for file in again.saes.files + again.model.files)
    assert {file.filename for file in plan.model.files} == {file.filename for file in again.model.files}  # type: ignore[union-attr]
    assert "already cut" in again.text.note
    needs = {need.what: need.bytes for need in again.disk}
    assert needs["downloads"] == 0 and needs["residual streams"] == 0


def losses(
    model: torch.nn.Module, ids: torch.Tensor, block: torch.nn.Module | None = None, output: torch.Tensor | None = None
) -> torch.Tensor:
    handle = None if block is None else block.register_forward_hook(lambda *_: output)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        if handle is not None:
            handle.remove()
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def test_as_configured_in_bfloat16(hub: Hub, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    setting.publish(hub)
    cfg = config(tmp_path)
    assert (cfg.model.dtype, cfg.model.attn_implementation, cfg.sae.l0) == ("bfloat16", "eager", "paper")
    result = run(cfg)
    assert len(list((result.directory / "permutations").iterdir())) == BLOCKS - 1
    assert result.metrics["gap"] == 0.0 and "delta_loss/layer_drop" in result.metrics


def test_offline_with_everything_cached(
    hub: Hub, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.hub_server import set_offline

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    setting.publish(hub)
    first = run(config(tmp_path))
    hub.requests.clear()
    set_offline(monkeypatch)
    again = run(config(tmp_path, f"paths.output_dir={tmp_path / 'again'}"))
    assert hub.requests == []
    assert scientific(again.metrics) == scientific(first.metrics)


def test_weights_only_needs_neither_token_nor_model(hub: Hub, setting: Setting, tmp_path: Path) -> None:
    setting.publish(hub)
    result = run(config(tmp_path, "evaluation=weights_only"))
    assert value(result, 0, "matched", "decoder_cosine") > 0.95
    assert hub.asked("gemma-2-2b", "GET") + hub.asked("gemma-2-2b", "HEAD") + hub.asked("openwebtext", "GET") == 0
    assert not any(hub.tokens)
