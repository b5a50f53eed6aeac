"""The example of a W&B sweep: every combination that its agents ask for is a job, and becomes the agent's run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from sae_match.app.build import build, register_schemas
from sae_match.files import config_directory
from sae_match.study import Study
from tests.wandb_reader import inspect


@pytest.fixture
def sweep(repository: Path) -> dict[str, Any]:
    """The example as W&B reads it."""
    return dict(yaml.safe_load((repository / "multirun" / "wandb_sweep.yaml").read_text("utf-8")))


def test_every_combination_composes(sweep: dict[str, Any]) -> None:
    register_schemas()
    values = [each["values"] for each in sweep["parameters"].values()]
    assert (sweep["method"], sweep["metric"]) == ("grid", {"name": "matching_score", "goal": "maximize"})
    found = set()
    for chosen in itertools.product(*values):
        given = {key: {"value": value} for key, value in zip(sweep["parameters"], chosen, strict=True)}
        # As an agent does it.
        overrides = create_sweep_command_args({"args": given})["args_no_hyphens"]
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            study = build(compose("config", ["tracking=wandb", "paths.output_dir=out", *overrides]), Study)
        assert study.tracking.mode.value == "online"
        found.add((study.matching.name, study.folding.name, study.config["matching"]["include_bias"]))
    assert found == set(itertools.product(*values))


def test_the_command_is_ours(sweep: dict[str, Any]) -> None:
    command = create_sweep_command(sweep["command"])
    assert command[1:] == ["${program}", "tracking=wandb", "${args_no_hyphens}"] and sweep["program"] == "sae-match"


MIRROR = """
import sys
from pathlib import Path
from sae_match.tracking.wandb_mirror import WandbMirror
job = Path(sys.argv[1])
with WandbMirror(job, mode="offline", config={"folding": {"name": "theta"}}, cache_dir=job, run_id="ours") as mirror:
    mirror.summary({"matching_score": 0.5})
"""


def test_an_agents_job_becomes_the_agents_run(tmp_path: Path) -> None:
    """W&B's own variables name run and sweep; the id of the job's configuration must not get in their way."""
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, "folding": {"value": "theta"}}))
    agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "theirs", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    job = tmp_path / "job"
    subprocess.run([sys.executable, "-c", MIRROR, str(job)], env={**os.environ, **agent}, check=True, timeout=240)
    logged = inspect(job)
    (run,) = logged["run"]
    assert (run["run_id"], run["sweep_id"]) == ("theirs", "s1")
    assert {name: v for e in logged["summary"] for name, v in e.get("update", {}).items()}["matching_score"] == 0.5
