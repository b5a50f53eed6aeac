"""The plan: everything that would stop a job, all at once and within seconds, and nothing that would not."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sae_match import UserError
from sae_match.experiment import run
from sae_match.plan.machine import durations
from sae_match.plan.show import render
from sae_match.record.configuration import science_hash
from sae_match.record.job import check_place
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.experiment.gemma import MODEL, SAES, TEXT, TOKEN, Setting, build
from tests.experiment.test_gemma_setting import config
from tests.hub_server import Hub, point_libraries_at, set_offline
from tests.tiny_setting import LAYERS, planned

Configured = Callable[..., Study]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return build(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def published(hub: Hub, setting: Setting) -> Hub:
    setting.publish(hub)
    return hub


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def refused(cfg: Study) -> list[str]:
    """The plan's problems; a real run raises the same, before anything is matched."""
    plan = planned(cfg)
    with pytest.raises(UserError) as raised:
        run(cfg)
    assert str(raised.value) == "\n".join(plan.problems)
    return plan.problems


def test_a_plan_names_every_file_and_writes_nothing(
    published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    before = tree(tmp_path)
    plan = planned(config(tmp_path))
    assert plan.problems == []
    assert plan.saes is not None and plan.model is not None and plan.shape is not None
    assert plan.saes.files[0].filename == "layer_0/width_16k/average_l0_105/params.npz"
    assert {(s.d_model, s.width) for s in plan.saes.shapes.values()} == {(32, 80)}
    names = {file.filename for file in plan.model.files}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 1, "a sharded model"
    assert all(file.size and file.cached is None for file in plan.saes.files + plan.model.files)
    downloads = next(need for need in plan.disk if need.what == "downloads")
    assert downloads.bytes == sum(file.size or 0 for file in plan.saes.files + plan.model.files)
    text = render(plan)
    for words in ("Jobs: 3 layer pairs", "0->1, 1->2, 2->3", "average_l0_141", "4 files", "Gemma2ForCausalLM: 4 blocks",
                  "at most 8 windows of 24 tokens", "match a pair", "splice and resume", "Problems: none"):  # fmt: skip
        assert words in text, words
    assert TOKEN not in text
    assert tree(tmp_path) == before
    # No weights were asked for, only a few kilobytes of one SAE and the model's configuration.
    assert published.asked(r"\.safetensors$") == 0 and published.asked(r"layer_[1-3].*npz$") == 0


def test_counts_and_steps_are_in_the_plan(configured: Configured, random_saes: Path) -> None:
    plan = planned(configured(random_saes, "evaluation/controls=all", "dataset.documents=6"))
    counts = next(need.bytes for need in plan.disk if need.what == "activation counts until it is done")
    assert counts and "activation counts until it is done" in render(plan)
    found = {step.step: step.seconds for step in durations(plan.shape, 50_000_000, plan.device, "float32", plan.layers)}
    assert found.pop("match all pairs") is None
    assert found["download"] == 2 and all(found.values())
    assert {"capture residual streams", "activations of all pairs", "splice and resume"} < set(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dataset.column=txt", "has no column 'txt'. Its columns: content"),
        ("sae.site=resid_pre", "sae.site=resid_pre"),
    ],
)
def test_what_local_files_say_is_refused_by_the_plan(
    configured: Configured, random_saes: Path, tmp_path: Path, change: str, words: str
) -> None:
    (tmp_path / "text.jsonl").write_text('{"content": "some text"}\n')
    text = ["dataset=local", f"dataset.path={tmp_path / 'text.jsonl'}", "dataset.documents=1"]
    assert words in "\n".join(refused(configured(random_saes, *text, change)))


def test_saes_without_thresholds_and_of_unknown_sites_are_refused_together(
    configured: Configured, tmp_path: Path
) -> None:
    """Top-k SAEs in SAELens' layout that do not say what they read."""
    for layer in range(LAYERS):
        folder = tmp_path / "topk" / f"layer_{layer}"
        folder.mkdir(parents=True)
        shapes = {"W_enc": (8, 24), "W_dec": (24, 8), "b_enc": (24,), "b_dec": (8,)}
        save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"d_in": 8, "d_sae": 24, "architecture": "topk", "k": 4}))
    saes = ["sae=saelens", "sae.folder='layer_{layer}'"]
    (problem,) = refused(configured(tmp_path / "topk", *saes))
    assert "sae.site=resid_post" in problem
    (problem,) = refused(configured(tmp_path / "topk", *saes, "sae.site=resid_post"))
    assert "no thresholds to fold by. Choose folding.scale" in problem
    plan = planned(configured(tmp_path / "topk", *saes, "sae.site=resid_post", "folding.scale=decoder_norm"))
    assert plan.problems == []


def test_a_finished_record_of_another_job_is_refused(configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, "evaluation=weights_only")
    run(cfg)
    place = Path(cfg.paths.output_dir)
    check_place(place, science_hash(cfg.config))
    other = configured(random_saes, "evaluation=weights_only", "matching=decoder")
    with pytest.raises(UserError, match="holds the finished record of a job with another configuration"):
        check_place(place, science_hash(other.config))


def test_shapes_of_safetensors_come_from_their_headers(
    hub: Hub, tmp_path: Path, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("me/saes", random_saes)
    changes = ["evaluation=weights_only", "sae=native", "sae.repo_id=me/saes", "sae.d_model=null", "sae.l0=null"]
    plan = planned(config(tmp_path, *changes))
    assert plan.problems == [] and plan.saes is not None
    assert {layer: (s.d_model, s.width) for layer, s in plan.saes.shapes.items()} == dict.fromkeys(range(4), (8, 24))
    assert not (tmp_path / "hub_cache").exists()
    run(config(tmp_path, *changes))
    hub.stop()
    again = planned(config(tmp_path, *changes)).saes
    assert again is not None and again.shapes == plan.saes.shapes
    (problem,) = planned(config(tmp_path, *changes, "sae.site=mlp_out")).problems  # nothing is asked
    assert "sae.site=mlp_out, but the file reads resid_post" in problem
    assert problem.endswith(" (4 layers are refused in this way)")


def test_weights_only_asks_for_no_model(published: Hub, tmp_path: Path) -> None:
    plan = planned(config(tmp_path, "evaluation=weights_only"))
    assert plan.problems == [] and plan.model is None
    assert "evaluation=weights_only needs no language model, and so no license and no token" in render(plan)
    assert not any("gemma-2-2b" in path or "openwebtext" in path for _, path in published.requests)


@pytest.mark.parametrize("token, words", [(None, "HF_TOKEN is not set"), ("other", "has no access")])
def test_a_gated_model(
    published: Hub, tmp_path: Path, token: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    (problem,) = refused(config(tmp_path))
    assert f"accept its license at https://huggingface.co/{MODEL}" in problem and words in problem
    assert "evaluation=weights_only needs no language model" in problem
    assert published.asked(r"npz$") <= 20 and not list((tmp_path / "hub_cache").rglob("*.npz")), "no SAE was fetched"


def test_every_problem_at_once(
    published: Hub, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gated model, an SAE that is not there, a gated text, too little memory for the solver, and no disk."""
    incomplete = tmp_path / "incomplete"
    shutil.copytree(setting.saes, incomplete)
    shutil.rmtree(incomplete / "layer_2")
    published.repositories[("model", SAES)].revisions["main"] = incomplete
    published.publish(TEXT, setting.text, kind="dataset", gate="another token")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    cfg = config(tmp_path, "solver.memory_limit_gib=1e-9")
    problems = refused(cfg)
    assert len(problems) == 5
    for words, problem in zip(
        (f"license at https://huggingface.co/{MODEL}", "layer_2/width_16k/average_l0_141/params.npz: no such file",
         f"https://huggingface.co/datasets/{TEXT}", "solver=certified needs", "the disk needs"),
        problems, strict=True,
    ):  # fmt: skip
        assert words in problem
    text = render(planned(cfg))
    assert "== Problems: 5 ==" in text and all(f"- {problem}" in text for problem in problems)


@pytest.mark.parametrize("change, words", [
    (["sae.repo_id=google/gemma-scope-2b-pt-absent", "sae.l0=105"], "no such repository, or it is private"),
    (["sae.revision=v9"], "no such revision. Set sae.revision"),
    (["model.revision=v9"], "no such revision. Set model.revision"),
    (["dataset.repo_id=nobody/nothing"], "dataset nobody/nothing: no such repository"),
    (["model.n_layers=null", "model.d_model=64", "sae.d_model=null"], "model.d_model=64, but"),
    (["dataset.window_tokens=65"], "the context of gemma_2_2b is 64 tokens"),
    (["layers.last=4", "model.n_layers=null"], "has blocks 0..3"),
])  # fmt: skip
def test_what_does_not_exist_or_fit(
    published: Hub, tmp_path: Path, change: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert words in "\n".join(refused(config(tmp_path, *change)))


def test_saes_of_another_model_are_refused_before_they_are_fetched(
    published: Hub, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    published.publish("other/model", _other_model(tmp_path, setting))
    cfg = config(tmp_path, "model.repo_id=other/model", "model.d_model=null")
    (problem,) = refused(cfg)
    assert "read d_model=32, but the model gemma_2_2b has d_model=48" in problem
    assert not list((tmp_path / "hub_cache").rglob("*.npz"))


def _other_model(tmp_path: Path, setting: Setting) -> Path:
    import transformers

    config = transformers.AutoConfig.from_pretrained(setting.model)
    config.hidden_size = 48
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_hub_that_is_down(published: Hub, tmp_path: Path) -> None:
    published.stop()
    started = time.monotonic()
    problems = refused(config(tmp_path))
    assert time.monotonic() - started < 20
    assert [problem.split(":")[0] for problem in problems] == [
        f"model {MODEL}", f"sae {SAES}", f"dataset {TEXT}",
    ]  # fmt: skip
    assert all("cannot be reached" in problem for problem in problems)
    assert "layers without a cached copy: 0, 1, 2, 3" in problems[1]
    plan = planned(config(tmp_path))
    text = render(plan)
    assert plan.downloads is None and "downloads: size unknown" in text and "nothing to download" not in text
    assert "residual streams: size unknown" in text and "download: unknown" in text and "about" not in text


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """A server that accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    point_libraries_at(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "hub_cache", monkeypatch)
    yield [listener]
    listener.close()


def test_a_hub_that_does_not_answer(silent: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_match.hub.TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("sae_match.hub.Lookup.__init__.__defaults__", (0.3,))
    started = time.monotonic()
    plan = planned(config(tmp_path))
    assert time.monotonic() - started < 5, "one short wait, not one for every file"
    assert len(plan.problems) == 3 and all("cannot be reached" in problem for problem in plan.problems)


def test_a_hub_in_trouble(published: Hub, tmp_path: Path) -> None:
    published.fail(".*", status=503)
    plan = planned(config(tmp_path))
    assert len(plan.problems) == 3 and all("in trouble (503)" in problem for problem in plan.problems)
    assert len(published.requests) == 1, "not asked again"


def test_offline_without_a_cache(published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_offline(monkeypatch)
    problems = refused(config(tmp_path))
    assert len(problems) == 3 and all("offline mode is on (HF_HUB_OFFLINE)" in problem for problem in problems)
    assert published.requests == []


def test_what_is_cached_needs_no_hub(published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(config(tmp_path))
    published.stop()
    plan = planned(config(tmp_path))
    assert plan.problems == []
    assert next(need.bytes for need in plan.disk if need.what == "downloads") == 0
    assert plan.text is not None and "already cut into windows" in plan.text.note


def test_too_little_memory_is_refused_before_the_model_is_loaded(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("sae_match.experiment.inputs.load_language_model", no_model)
    monkeypatch.setattr("sae_match.plan.machine.available_ram", lambda _: 2000)
    (problem,) = refused(configured(random_saes))
    assert "GiB of main memory (" in problem and "evaluation.batch_windows" in problem


def test_second_seeds_are_planned_for(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    saes = tmp_path / "saes"
    shutil.copytree(random_saes, saes)
    seed = saes / "layer_01_seed_1.safetensors"
    needed = {step.name: step.ram_bytes for step in planned(configured(saes)).phases}
    save_native(random_sae(width=240, d=8, seed=9), seed)
    more = {step.name: step.ram_bytes for step in planned(configured(saes)).phases}
    assert more["match a pair"] > needed["match a pair"]
    save_native(random_sae(d=6, seed=9), seed)
    (problem,) = refused(configured(saes))
    assert problem == "layer 1: the second seed reads d_model=6, the first 8"
    seed.write_bytes(b"no SAE")
    (problem,) = refused(configured(saes))
    assert seed.name in problem


def test_captured_streams_need_no_more_disk(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configured(random_saes)
    first = planned(cfg)
    streams = {need.what: need.bytes for need in first.disk}["residual streams"]
    assert streams == 4 * 20 * 12 * 8 * 4
    run(cfg)
    needs = {need.what: need for need in planned(configured(random_saes, "matching=decoder", output="b")).disk}
    assert needs["residual streams"].bytes == 0


def test_an_unknown_number_of_windows_is_said_to_be_unknown(configured: Configured, random_saes: Path) -> None:
    plan = planned(configured(random_saes, "dataset.windows_per_document=0"))
    assert plan.problems == [] and plan.text is not None and plan.text.windows is None
    text = render(plan)
    assert "unknown number of windows" in text and "residual streams: size unknown" in text
    assert "number of windows not known" in text


def test_a_full_disk_names_the_key_that_moves_the_files(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=1000))
    (problem,) = planned(configured(random_saes)).problems
    assert "the disk needs 0.0 GiB (residual streams" in problem and "paths.cache_dir or paths.output_dir" in problem


def test_broken_rules_come_first_and_together(configured: Configured, random_saes: Path) -> None:
    plan = planned(configured(random_saes, "layers.first=3", "seed=-1", "device=tpu"))
    assert len(plan.problems) == 1 and len(plan.problems[0].splitlines()) == 3
    assert plan.machine is None and "Problems: 1" in render(plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test expects to be missing")
def test_a_missing_gpu_is_one_problem_among_others(configured: Configured, random_saes: Path) -> None:
    (random_saes / "layer_02.safetensors").unlink()
    problems = refused(configured(random_saes, "device=cuda"))
    assert len(problems) == 2 and "sees no CUDA device" in problems[0] and "layer_02.safetensors" in problems[1]
