"""Composition, the schema, unknown keys and cross-field rules; every YAML option composes."""

from __future__ import annotations

import re
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from sae_match import UserError
from sae_match.app.build import build
from sae_match.files import config_directory
from sae_match.matching.problem import Metric
from sae_match.rules import check_config, check_train_config
from sae_match.saes.folding import FoldingKind
from sae_match.study import Study
from sae_match.training.options import TrainConfig
from tests import compositions

PATHS = ["paths.output_dir=out", "paths.cache_dir=cache"]


@cache
def composed(*overrides: str) -> Study:
    """The objects of a job, of which every one is kept."""
    return build(compositions.composed(*PATHS, *overrides), Study)


def composed_training(*overrides: str) -> TrainConfig:
    return build(compositions.composed(*PATHS, *overrides, name="train"), TrainConfig)


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (config_directory() / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=1", "sae=native", "sae.root=x y", "matching.metric=decoder", "layers.list=[1,2]"],
        ["layers.first=12", "experiment=flow", "evaluation/controls=[greedy]", "evaluation.controls.greedy.name=other"],
        ["pairs=models", "pairs.map=affine", "+model.max_memory.cpu=10GiB", "++seed=2", "~model.n_layers"],
        ["scheme=best_data_free", "matching=decoder", "matching.weights={W_enc: 2.0}"],
        ["launcher=submitit", "hydra.launcher.partition=gpu", "seed=2"],
    ],
)
def test_tests_compose_as_hydra_does(overrides: list[str]) -> None:
    cfg = compositions.composed(*PATHS, *overrides)
    assert "hydra" not in cfg
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        assert compose("config", [*PATHS, *overrides]) == cfg


def test_the_default_is_the_embedded_demo() -> None:
    cfg = composed()
    check_config(cfg)
    assert (cfg.layers.first, cfg.layers.last) == (11, 18)
    assert cfg.matching.metric is Metric.both
    assert cfg.folding.name is FoldingKind.theta
    assert cfg.evaluation.full
    assert (cfg.sae.name, cfg.model.name, cfg.tracking.mode.value) == ("smollm2_135m", "smollm2_135m", "offline")


REQUIRED = {
    ("sae", "gemma_scope"): ["sae.width=16k"],
    ("sae", "gemma_scope_2"): ["sae.width=16k", "sae.l0=small"],
    ("sae", "llama_scope"): ["sae.folder=x"],
    ("sae", "saelens"): ["sae.folder=x"],
    ("sae", "dictionary_learning"): ["sae.folder=x"],
    ("sae", "release"): ["sae.release=llama_scope_lxr_8x", "sae.id='l{layer}r_8x'"],
    ("sae", "state_dict"): ["sae.filename=x", "sae.activation=relu", "sae.subtracts_b_dec=false"],
    ("matching", "descriptions"): ["judging.neuronpedia='{layer}'"],
    ("model", "hub"): ["model.repo_id=owner/name"],
    ("model", "local"): ["model.path=FILE"],
    ("dataset", "hub"): ["dataset.repo_id=owner/name"],
    ("dataset", "local"): ["dataset.path=FILE"],
}
"""What an option leaves to its user."""
GROUPS = ["matching", "folding", "solver", "sae", "model", "dataset", "evaluation", "judging", "tracking"]


ROUNDS = [
    [(group, option) for group, option in zip(GROUPS, row, strict=True) if option]
    for row in zip_longest(*map(options, GROUPS))
]
"""Every option of every group, one of each group at a time."""


def compose_round(choices: list[tuple[str, str]]) -> Study:
    return composed(*(word for g, o in choices for word in [f"{g}={o}", *REQUIRED.get((g, o), [])]))


def every(group: str) -> dict[str, Any]:
    """Every option of a group by name, as the object that it becomes."""
    return {o: getattr(compose_round(choices), group) for choices in ROUNDS for g, o in choices if g == group}


@pytest.mark.parametrize("choices", ROUNDS, ids=str)
def test_every_option_composes_and_keeps_its_name(choices: list[tuple[str, str]]) -> None:
    cfg = compose_round(choices)
    for group, option in choices:
        if group in ("sae", "model", "dataset", "folding", "solver"):
            expected = "llama_scope_lxr_8x" if option == "release" else option
            assert str(getattr(cfg, group).name) == expected


def test_the_gemma_setting_is_the_papers() -> None:
    cfg = composed("sae=gemma_scope_2b", "model=gemma_2_2b", "dataset=openwebtext")
    check_config(cfg)
    assert (cfg.layers.first, cfg.layers.last) == (0, 25)
    assert (cfg.dataset.documents, cfg.dataset.window_tokens) == (100, 1024)
    assert cfg.model.attn_implementation == "eager"


def test_hub_models_know_their_shape_and_their_bos() -> None:
    """Gemma and Llama 3 add BOS; GPT-2 gets <|endoftext|> in front; Pythia and SmolLM2 begin without."""
    bos = {"gemma": "required", "llama": "required", "gpt2": "required", "pythia": "none", "smollm2": "none"}
    named = {o: model for o, model in every("model").items() if o not in ("hub", "local", "smollm2_135m")}
    assert len(named) >= 18
    for option, model in named.items():
        assert model.bos == bos[option.split("_")[0]], option
        assert model.repo_id and model.n_layers and model.d_model, option
        assert type(model).__name__ == "HubModel", option
        assert (model.attn_implementation == "eager") == option.startswith("gemma_2_"), option
        assert model.dtype != "float16", option
        assert model.sink_positions == (2 if option.startswith("smollm2") else 1), option


def test_real_texts_are_the_papers_100_windows_of_1024() -> None:
    texts = every("dataset")
    for name in ("openwebtext", "github_code", "wikitext", "local", "hub"):
        text = texts[name]
        assert (text.documents, text.window_tokens, text.windows_per_document) == (100, 1024, 1), name


@pytest.mark.parametrize("key", ["matching.foo=1", "foo=1", "matching.weights.W_decoder=2"])
def test_plain_unknown_keys_are_refused(key: str) -> None:
    with pytest.raises(HydraException):
        composed(key)


@pytest.mark.parametrize("prefix", ["+", "++"])
@pytest.mark.parametrize("key", ["matching.foo", "foo", "matching.weights.W_decoder", "sae.foo", "_target_"])
def test_added_unknown_keys_are_refused_and_named(prefix: str, key: str) -> None:
    with pytest.raises(UserError, match=f"unknown configuration key: {key}"):
        composed(f"{prefix}{key}=1")


@pytest.mark.parametrize(
    "override",
    ["matching.metric=neither", "seed=x", "matching=neither", "folding.name=yes", "evaluation.min_count=1.5"],
)
def test_bad_values_are_refused(override: str) -> None:
    with pytest.raises((UserError, HydraException, OmegaConfBaseException)):
        composed(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layers.last=30"], "smollm2_135m has blocks 0..29"),
        (["sae.first_layer=11", "layers.first=10"], r"cover layers 11\.\.29"),
        (["layers.first=13", "layers.last=13"], "at least two layers"),
        (["layers.first=-1"], "must be 0 or more"),
        (["device=tpu"], "device=tpu: must be one of auto, cpu, cuda"),
        (["model.dtype=int8"], "model.dtype=int8"),
        (["dataset=local"], "not set: dataset.path"),
        (["dataset=hub"], "not set: dataset.repo_id"),
        (["dataset=openwebtext", "dataset.pool=99"], "dataset.pool=99: must hold at least the 100 documents"),
        (["dataset=openwebtext", "dataset.fallback_files=x"], "must be hf:// URLs"),
        (["model=hub"], "not set: model.repo_id"),
        (["dataset.window_tokens=2"], "dataset.window_tokens=2: must be at least 4"),
        (["dataset.documents=-1"], "dataset.documents=-1: must be greater than or equal to 0"),
        (["evaluation.bootstrap_samples=0"], "evaluation.bootstrap_samples=0"),
        ([f"tracking.tags=[{'x' * 65}]"], "at most 64 characters"),
        (["model=local"], "not set: model.path"),
        (["seed=-1"], "seed=-1: must be 0 or more"),
        ([f"seed={2**63}"], "and below 2"),
        (["paths.output_dir="], "paths.output_dir is empty"),
        (["layers.list=[]"], "names no layer"),
        (["+metrics.mine=3"], r"metrics.mine=3: takes a class"),
        (["sae=native", "sae.root=x"], "nothing says which layers the SAEs native have"),
        (["matching.weights.W_enc=-2"], "matching.weights.W_enc=-2"),
        (["matching=decoder", "matching.weights.W_dec=0"], "nothing would be compared"),
        (["model.sink_positions=0"], "model.sink_positions=0: must be greater than or equal to 1"),
        (["model.device_map=everywhere"], "model.device_map=everywhere: must be 'auto', 'balanced'"),
        (["+model.max_memory.cpu=10GiB"], "needs model.device_map"),
        (["model.device_map=auto", "+model.max_memory.gpu=10GiB"], "gpu is neither cpu nor the number of a GPU"),
        (["model.device_map=auto", "+model.max_memory.0=much"], "model.max_memory.0=much: must be a size"),
    ],
)
def test_cross_field_rules(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*overrides))


@pytest.mark.parametrize(
    "broken",
    [
        ["dataset.documents=-1", "evaluation.min_count=0", "matching.weights.W_enc=-2"],  # of one object each
        ["device=tpu", "layers.last=30", "seed=-1"],  # of a job whose objects are all well-formed
    ],
)
def test_every_broken_rule_is_reported_at_once(broken: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_config(composed(*broken))
    for part in broken:
        assert part in str(error.value)


def test_weights_only_asks_nothing_of_model_and_text() -> None:
    check_config(composed("evaluation=weights_only", "model.n_layers=5", "dataset.window_tokens=2"))


def test_training_configuration() -> None:
    cfg = composed_training()
    check_train_config(cfg)
    assert (cfg.layers.first, cfg.layers.last) == (11, 18)
    assert list(cfg.datasets) == ["wiki", "news", "code"]
    with pytest.raises(UserError, match=r"training\.width=0"):
        check_train_config(composed_training("training.width=0"))
    with pytest.raises(UserError, match=r"datasets\.wiki\.window_tokens=1"):
        check_train_config(composed_training("datasets.wiki.window_tokens=1"))
    with pytest.raises(UserError, match=r"unknown configuration key: datasets\.wiki\.foo"):
        composed_training("+datasets.wiki.foo=1")


def test_yaml_files_name_classes_of_this_package_only() -> None:
    files = list(Path(config_directory()).rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        for target in re.findall(r"_target_: *(\S+)", path.read_text(encoding="utf-8")):
            assert get_object(target).__module__.startswith("sae_match."), path
