"""SAEs of neighboring layers that share an initialization are told from those that do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sae_match import Permutation, SparseAutoencoder
from sae_match.experiment import run
from sae_match.matching.planted import decoder_cosines, planted_identity
from sae_match.report import find_records
from sae_match.report.report import Options, make_report, report_text
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.command import run_command


def drifted(sae: SparseAutoencoder, seed: int, noise: float) -> SparseAutoencoder:
    """As after a training that moved each decoder row by `noise` times its length."""
    g = torch.Generator().manual_seed(seed)
    step = torch.randn(sae.W_dec.shape, generator=g) * noise / sae.d_model**0.5
    return sae.replace(W_dec=torch.nn.functional.normalize(sae.W_dec + step, dim=1))


def told(a: SparseAutoencoder, b: SparseAutoencoder, seed: int = 0) -> str | None:
    permutations = Permutation.identity(a.width, b.width), Permutation.random(a.width, b.width, seed=seed)
    return planted_identity(*(decoder_cosines(a, b, permutation) for permutation in permutations))


def test_one_initialization_is_told_from_two() -> None:
    start = random_sae(width=200, d=16, seed=1)
    message = told(drifted(start, 2, 1.0), drifted(start, 3, 1.0))
    assert message is not None and message.startswith("feature i resembles") and "seeds" in message
    others = [random_sae(width=200, d=16, seed=seed) for seed in range(40)]
    assert [told(a, b, seed) for seed, (a, b) in enumerate(pairwise(others))] == [None] * 39


def test_a_single_feature_tells_nothing() -> None:
    one = random_sae(width=1)
    assert told(one, one) is None


@pytest.mark.parametrize("level", ["full", "weights_only"])
def test_a_job_says_so_in_its_log_and_record(
    configured: Callable[..., Study], tmp_path: Path, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    start = random_sae(seed=7)
    for layer in range(3):
        save_native(drifted(start, layer, 0.3), tmp_path / "one" / f"layer_{layer:02d}.safetensors")
    span = ["layers.first=0", "layers.last=2", "sae.ceiling_filename=null", f"evaluation.level={level}"]
    result = run(configured(tmp_path / "one", *span))
    warnings = planted_warnings(result.directory)
    assert [text.split(":")[0] for text in warnings] == ["layers 0 -> 1", "layers 1 -> 2"]
    assert all(text in caplog.text for text in warnings)
    report = report_text(make_report(find_records([result.directory]), Options()))
    assert all(f"Warning of out: {text}" in report for text in warnings)
    for layer in range(3):
        save_native(random_sae(seed=layer), tmp_path / "seeds" / f"layer_{layer:02d}.safetensors")
    result = run(configured(tmp_path / "seeds", *span, output="two"))
    assert planted_warnings(result.directory) == []


def planted_warnings(record: Path) -> list[str]:
    warnings = json.loads((record / "status.json").read_text())["warnings"]
    return [text for text in warnings if "resembles" in text]  # random SAEs explain nothing, which is warned of too


def test_a_sweep_shows_a_warning_once_and_every_job_logs_it(tmp_path: Path) -> None:
    start = random_sae(width=64, seed=7)
    for layer in range(2):
        save_native(drifted(start, layer, 0.3), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    done = run_command(
        "-m", "sae=native", f"sae.root={tmp_path / 'saes'}", "layers.pair=0", "evaluation=weights_only",
        "solver=certified,greedy", "tracking=none", "matching=decoder", "folding=none",
        f"hydra.sweep.dir={tmp_path / 'out'}", f"paths.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    logs = [(tmp_path / "out" / job / "sae_match.log").read_text() for job in ("0", "1")]
    assert [log.count("WARNING") for log in logs] == [1, 1]
    assert all("layers 0 -> 1: feature i resembles" in log for log in logs)
    assert done.err.count("layers 0 -> 1: feature i resembles") == 1
