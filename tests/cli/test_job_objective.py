"""What a job returns to a sweeper that optimizes, and Optuna's sweeper where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sae_match import UserError
from sae_match.app.main import returned
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.command import Completed, run_command


def command(root: Path, *more: str) -> Completed:
    for layer in range(2):
        save_native(random_sae(seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
    fixed = ["sae=native", f"sae.root={root / 'saes'}", "layers.first=0", "layers.last=1", "tracking=none",
             "evaluation=weights_only"]  # fmt: skip
    return run_command(*more, *fixed, cwd=root, env={"SAE_MATCH_CACHE": str(root / "cache")})


def test_the_number_that_a_job_returns() -> None:
    numbers = {"matching_score": 0.5, "delta_loss": 0.25}
    assert returned(numbers, None) == 0.5
    assert returned(numbers, "delta_loss") == 0.25
    assert returned({"delta_loss": 0.25}, None) is None
    with pytest.raises(UserError, match=r"objective=delta_lose: .*did you mean delta_loss"):
        returned(numbers, "delta_lose")


def test_an_unknown_objective_ends_a_finished_job_with_an_error(tmp_path: Path) -> None:
    done = command(tmp_path, "objective=decoder_cosin", f"paths.output_dir={tmp_path / 'out'}")
    assert done.code != 0 and "did you mean decoder_cosine?" in done.err
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "done"


def test_optunas_sweeper(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper._impl", reason="pip install hydra-optuna-sweeper")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize",
               "hydra.sweeper.sampler.seed=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]  # fmt: skip
    done = command(tmp_path, "-m", *sweeper, "objective=decoder_cosine", "matching.weights.b_enc=interval(0.0,20.0)")
    assert done.code == 0, done.err
    jobs = [tmp_path / "sweep" / number for number in "012"]
    values = [json.loads((job / "metrics.json").read_text())["decoder_cosine"] for job in jobs]
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert len(set(values)) > 1 and best["best_value"] == max(values)
    config = yaml.safe_load((jobs[values.index(max(values))] / "config.yaml").read_text())
    assert best["best_params"] == {"matching.weights.b_enc": config["matching"]["weights"]["b_enc"]}
