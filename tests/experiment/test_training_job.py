"""`run_training`, the whole training job on the tiny model: files, report, W&B runs, skipping what is done."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from sae_match import UserError, load_sae
from sae_match.app.build import build, register_schemas
from sae_match.files import config_directory
from sae_match.rules import check_train_config
from sae_match.training import run as run_module
from sae_match.training.data import TokenBatches
from sae_match.training.options import TrainConfig
from sae_match.training.run import run_training
from tests.wandb_reader import inspect

TrainConfigured = Callable[..., TrainConfig]


@pytest.fixture
def training(model_directory: Path, text_directory: Path, tmp_path: Path) -> TrainConfigured:
    """A maker of training configurations over the tiny model and local text."""

    def make(*overrides: str, output: str = "saes") -> TrainConfig:
        register_schemas()
        texts = []
        for group, part in (("datasets", "train"), ("held_out", "evaluation")):
            texts += [f"~{group}.{name}" for name in ("wiki", "news", "code")]
            options = {"path": text_directory, "part": part, "documents": 0, "window_tokens": 10}
            texts += [f"+dataset@{group}.mine=local", f"{group}.mine.windows_per_document=0"]
            texts += [f"{group}.mine.{key}={value}" for key, value in options.items()]
        fixed = [
            *texts, "model=local", f"model.path={model_directory}", "layers.first=1", "layers.last=2",
            "training.width=12", "training.target_l0=3", "training.tokens=2048", "training.batch_tokens=32",
            "training.topk_steps=10", "training.warmup_steps=5", "training.log_every_steps=10", "device=cpu",
            f"paths.output_dir={tmp_path / output}", f"paths.cache_dir={tmp_path / 'cache'}", "progress=false",
        ]  # fmt: skip
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = build(compose("train", [*fixed, *overrides]), TrainConfig)
        check_train_config(cfg)
        return cfg

    return make


def test_every_layer_gets_a_file_and_an_entry(training: TrainConfigured, tmp_path: Path) -> None:
    cfg = training()
    entries = run_training(cfg)
    output = Path(cfg.paths.output_dir)
    assert [entry["layer"] for entry in entries] == [1, 2]
    assert json.loads((output / "training_report.json").read_text()) == entries
    saes = [load_sae(output / "layer_{layer:02d}.safetensors", layer) for layer in (1, 2)]
    assert {(sae.d_model, sae.width) for sae in saes} == {(8, 12)}
    assert load_file(output / "layer_01.safetensors")["W_dec"].dtype == torch.bfloat16
    assert entries == run_training(training("training.storage=int8"))  # of a finished layer the format does not matter
    small = run_training(training("training.storage=int8", "layers.last=1", output="small"))
    assert small[0]["recipe"] == entries[0]["recipe"]
    assert load_file(tmp_path / "small" / "layer_01.safetensors")["W_dec"].dtype == torch.int8
    torch.testing.assert_close(
        load_sae(tmp_path / "small" / "layer_01.safetensors").W_dec, saes[0].W_dec, rtol=0, atol=0.01
    )
    # Independent initialization: no feature of one layer starts from the other's.
    assert float((saes[0].W_dec * saes[1].W_dec).sum(dim=1).mean()) < 0.7


def test_finished_layers_are_not_trained_again(training: TrainConfigured, monkeypatch: pytest.MonkeyPatch) -> None:
    run_training(training("layers.last=1"))
    trained: list[int] = []
    inner = run_module.train_sae

    def counting(*arguments: object) -> object:
        trained.append(arguments[4])  # type: ignore[arg-type]
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train_sae", counting)
    assert [entry["layer"] for entry in run_training(training())] == [1, 2]
    assert trained == [2]


def test_the_tokens_of_one_layer_are_gone_before_the_next(
    training: TrainConfigured, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    inner = run_module.train_sae

    def counting(*arguments: object) -> object:
        held.append(sum(type(thing) is TokenBatches for thing in gc.get_objects()))
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train_sae", counting)
    gc.collect()
    gc.disable()  # it might collect them by chance, which it did not with gigabytes of tokens
    try:
        run_training(training())
    finally:
        gc.enable()
    assert held == [0, 0]


def test_same_seed_same_sae_other_seed_another(training: TrainConfigured) -> None:
    hashes = []
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(training("layers.last=1", f"seed={seed}", output=output))
        root = Path(training(output=output).paths.output_dir)
        hashes.append(load_sae(root / "layer_01.safetensors").content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_one_tracked_run_per_layer_with_curves_and_report(training: TrainConfigured, tmp_path: Path) -> None:
    cfg = training("tracking=wandb_offline", "layers.last=1")
    (entry,) = run_training(cfg)
    run = inspect(tmp_path / "saes")
    header = run["run"][0]
    assert header["job_type"] == "train"
    assert header["config"]["update"]["layer"] == 1
    summary: dict[str, object] = {}
    for update in run["summary"]:
        summary |= update.get("update", {})
    assert summary["held_out_fvu"] == entry["held_out_fvu"]
    logged = [item["item"] for item in run["history"]]
    assert len([item for item in logged if "train/l0" in item]) >= 5


def test_another_recipe_is_not_passed_off_as_finished(training: TrainConfigured) -> None:
    run_training(training("layers.last=1"))
    for change in ("seed=1", "training.width=13", "datasets.mine.window_tokens=9"):
        with pytest.raises(UserError, match=r"layer_01.safetensors was trained with another seed"):
            run_training(training("layers.last=1", change))
