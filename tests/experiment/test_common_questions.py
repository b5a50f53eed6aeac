"""The experiments that are named by their question, run by the command itself on small SAEs of the real layouts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from sae_match import app
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.saes.layouts import write_saelens

QUIET = ["tracking=none", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What the command sets in its process does not outlive the test."""
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setitem(os.environ, name, "1")
    monkeypatch.chdir(tmp_path)
    yield


def sae_match(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    folders = ["hydra.run.dir=job", "hydra.sweep.dir=jobs", "paths.cache_dir=cache"]
    monkeypatch.setattr(sys, "argv", ["sae-match", *words, *QUIET, *folders])
    app.main()


def state(job: Path) -> str:
    return str(json.loads((job / "status.json").read_text())["state"])


def test_my_saes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"architecture": "jumprelu", "hook_name": "blocks.{}.hook_resid_post", "apply_b_dec_to_input": False}
    for layer in range(2):
        hook = f"blocks.{layer}.hook_resid_post"
        write_saelens(tmp_path / "my_saes" / f"layer_{layer}", {**cfg, "hook_name": hook}, seed=layer)
    sae_match(monkeypatch, "experiment=my_saes")
    assert state(tmp_path / "job") == "done"
    permutation = load_file(tmp_path / "job" / "permutations" / "layer_00_to_01.safetensors")["permutation"]
    assert sorted(permutation.tolist()) == list(range(len(permutation)))


def test_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (12, 13):
        folder = tmp_path / "scope" / f"layer_{layer}" / "width_65k" / "average_l0_72"
        folder.mkdir(parents=True)
        sae = random_sae(seed=layer)
        np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in sae.parameters().items()})
    sae_match(monkeypatch, "experiment=wide", "sae.root=scope", "sae.l0=72", "sae.d_model=8")
    assert state(tmp_path / "job") == "done"
    assert (tmp_path / "job" / "permutations" / "layer_12_to_13.safetensors").is_file()


def test_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in range(4):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    mine = ["sae=native", "sae.root=saes", "evaluation=weights_only", "layers.pair=range(0,3)"]
    sae_match(monkeypatch, "experiment=each_pair", *mine)
    jobs = [tmp_path / "jobs" / str(number) for number in range(3)]
    assert [state(job) for job in jobs] == ["done"] * 3
    names = [path.name for job in jobs for path in (job / "permutations").iterdir()]
    assert names == [f"layer_{t:02d}_to_{t + 1:02d}.safetensors" for t in range(3)]
