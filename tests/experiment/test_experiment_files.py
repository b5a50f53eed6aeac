"""Every experiment file runs through the real command on a miniature of the demo: SAEs under the demo's names, and a
tiny model with as many blocks. Of a sweep the last job runs, which is the furthest from the defaults; some run whole.
That all jobs of all files compose is checked in `tests/config/test_experiment_commands.py`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from omegaconf import OmegaConf

from sae_match import app
from sae_match.files import config_directory
from sae_match.report import find_records
from sae_match.report.features import write_pair_figures
from sae_match.report.figures import write_paper_figures
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.experiments import EXPERIMENTS, jobs
from tests.judging.chat_server import Response, chat_server, completion
from tests.tiny_setting import D_MODEL, WORDS

pytestmark = pytest.mark.slow
ELSEWHERE = {"gemma_2_2b": "experiment/gemma.py", "baselines": "cli/test_command_line.py"}
ELSEWHERE["stability"] = "experiment/test_stability_job.py"
ELSEWHERE |= {name: "experiment/test_common_questions.py" for name in ("each_pair", "my_saes", "wide")}
ELSEWHERE |= {name: "experiment/test_other_pairs.py" for name in EXPERIMENTS if name.startswith("pairs_")}
ELSEWHERE["pairs_smollm2_gemma"] = "experiment/test_other_tokenizers.py"
"""Experiments that tests of their own run (the first one needs a hub), and the file that names them."""
ALIKE = {"fig10_pruning_by_dataset": "datasets", "fig7_matching_score": "fig11_baselines"}
"""Experiments that have the same content as another one, which runs."""
SWEPT = {"seed_ceiling": [], "fig3_weight_mse": [], "fig14_sparsity": ["sae.l0=16,128"]}
"""Experiments of which several jobs run, because a figure or table compares them."""
LAYERS = range(11, 19)
TEXT = ["dataset=local", "dataset.path={text}", "dataset.documents=6", "dataset.window_tokens=12"]
EMBEDDED = ["dataset.documents=4", "dataset.window_tokens=12", "dataset.windows_per_document=1"]
SPAN, PAIR = ["layers.first=12", "layers.last=15"], ["layers.first=13", "layers.last=14"]
EXTRA = {
    "fig5_pairs": ["judging=offline"],
    "fig4_llm_judge": ["judging.pairs=4", "judging.api_key_variable=null"],
    "controls": ["evaluation.fit_documents=4"],
    "depth": ["sae.first_layer=12", "sae.last_layer=15"],
} | {
    name: ["evaluation.fit_documents=4", "evaluation.functional.features=4", "evaluation.functional.checked=2"]
    for name in ("referee", "referee_seeds", "referee_depth")
}
OWN_FIGURE = {"fig3_weight_mse": "weight_mse.png", "fig5_pairs": "pairs.png", "fig14_sparsity": "sparsity.png"}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, text_directory: Path) -> dict[str, Path]:
    """SAEs, model, text and a cache that all experiments share."""
    root = tmp_path_factory.mktemp("miniature")
    names = {f"layer_{layer:02d}": layer for layer in LAYERS}
    names |= {f"layer_{layer:02d}_seed_1": 50 + layer for layer in LAYERS}
    names |= {f"layer_{layer:02d}_l0_{l0}": l0 + layer for layer in (13, 14) for l0 in (8, 16, 64, 128)}
    for name, seed in names.items():
        save_native(random_sae(width=24, d=D_MODEL, seed=seed), root / "saes" / f"{name}.safetensors")
    config = transformers.LlamaConfig(
        vocab_size=WORDS + 2, hidden_size=D_MODEL, intermediate_size=16, num_hidden_layers=30, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(root / "model")
    for path in model_directory.glob("tokenizer*"):
        (root / "model" / path.name).write_bytes(path.read_bytes())
    return {"saes": root / "saes", "model": root / "model", "text": text_directory, "cache": root / "cache"}


@pytest.fixture
def plain_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command sets in its process does not outlive the test."""
    monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "1")
    yield


def arguments(experiment: str, places: dict[str, Path], judge: str) -> list[str]:
    """The experiment on the miniature: its own values stay, what it says nothing about is made small."""
    named = [f"experiment={experiment}"]
    last = [override for override in jobs(named)[-1] if override not in named]
    swept = {override.partition("=")[0] for override in last}
    small = ["model=local", f"model.path={places['model']}", f"sae.root={places['saes']}", "model.sink_positions=2"]
    small += EMBEDDED if "dataset" in swept else [text.format(text=places["text"]) for text in TEXT]
    if not (_sets_layers(experiment) or "layers.first" in swept):
        small += SPAN if len(jobs(named)) == 1 else PAIR
    small += [override.format(judge=judge) for override in EXTRA.get(experiment, [])]
    small += [f"judging.base_url={judge}"] if experiment == "fig4_llm_judge" else []
    fixed = ["tracking=none", "evaluation.bootstrap_samples=20", "evaluation.min_count=1", "device=cpu"]
    fixed += [f"paths.cache_dir={places['cache']}", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    return [*named, *SWEPT.get(experiment, last), *small, *fixed]


def _sets_layers(experiment: str) -> bool:
    text = (config_directory() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return "\nlayers:" in text


@pytest.mark.drawn
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ELSEWHERE | ALIKE])
def test_an_experiment_runs(
    experiment: str,
    miniature: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain_process: None,
) -> None:
    with chat_server(lambda _, body: completion("SAME") if body else Response(200, {"data": []})) as server:
        words = arguments(experiment, miniature, server.url)
        folders = [f"hydra.sweep.dir={tmp_path / 'jobs'}", f"hydra.run.dir={tmp_path / 'jobs' / '0'}"]
        monkeypatch.setattr(sys, "argv", ["sae-match", *words, *folders])
        app.main()
    expected = jobs(words)
    records = find_records([tmp_path / "jobs"])
    assert [record.state for record in records] == ["done"] * len(expected)
    assert len({json.dumps(record.config, sort_keys=True, default=str) for record in records}) == len(expected)
    for record in records:
        assert {"overview.png", "decoder_mse.png"} <= {path.name for path in (record.path / "figures").iterdir()}
        assert record.metrics["weight_mse/W_dec"] > 0
        assert record.metrics.get("l0/sae", 1.0) > 0.5
        full = record.factors["evaluation"] == "full"
        assert ("delta_loss/encode_permute_decode" in record.metrics) == full
        assert (record.path / "top_tokens.parquet").is_file() == (full and record.config["composition"]["paths"])
    if experiment in OWN_FIGURE:
        figures = write_paper_figures(records, tmp_path) + write_pair_figures(records, tmp_path)
        assert [path.name for path in figures] == [OWN_FIGURE[experiment]]


@pytest.mark.parametrize(("experiment", "other"), ALIKE.items())
def test_what_is_alike_is_alike(experiment: str, other: str) -> None:
    one, two = (OmegaConf.load(config_directory() / "experiment" / f"{name}.yaml") for name in (experiment, other))
    assert one == two


def test_what_is_run_elsewhere_is_run_there() -> None:
    for experiment, file in ELSEWHERE.items():
        assert experiment in EXPERIMENTS
        assert f'"experiment={experiment}"' in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
