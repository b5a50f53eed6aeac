"""Which jobs run again, known by configuration and inputs, and where their records go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_match.errors import UserError
from sae_match.experiment import run
from sae_match.experiment.rerun import Action, decide, job_key
from sae_match.record.claim import CLAIM, this_process
from sae_match.record.state import read_status
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import random_sae

Configured = Callable[..., Study]


@pytest.fixture
def weights(configured: Configured, random_saes: Path) -> Configured:
    """A maker of weights-only configurations over two layers."""

    def make(*overrides: str, output: str = "sweep/0", saes: Path = random_saes) -> Study:
        return configured(saes, "evaluation=weights_only", "layers.last=1", *overrides, output=output)

    return make


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- the key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("tracking.project=other", True),
        ("progress=true", True),
        ("rerun=all", True),
        ("objective=gap", True),
        ("solver.memory_limit_gib=3", True),
        ("paths.cache_dir=elsewhere", True),
        ("seed=1", False),
        ("matching=decoder", False),
        ("device=auto", False),  # another device changes last bits
        ("solver.time_limit_s=5", False),  # stops a solver before it is done
        ("evaluation.min_count=3", False),
        ("layers.last=2", False),
    ],
)
def test_the_key_is_what_decides_results(weights: Configured, override: str, same: bool) -> None:
    assert (job_key(weights()) == job_key(weights(override))) is same
    assert job_key(weights()) is not None


def test_the_key_follows_content_not_names(weights: Configured, random_saes: Path, tmp_path: Path) -> None:
    before = job_key(weights())
    shutil.copytree(random_saes, tmp_path / "copy")
    assert job_key(weights(saes=tmp_path / "copy")) == before
    save_native(random_sae(seed=77), tmp_path / "copy" / "layer_01.safetensors")
    assert job_key(weights(saes=tmp_path / "copy")) not in (None, before)
    (tmp_path / "copy" / "layer_01.safetensors").unlink()
    assert job_key(weights(saes=tmp_path / "copy")) is None


def test_text_and_model_count_where_they_are_used(
    configured: Configured, random_saes: Path, text_directory: Path, model_directory: Path, tmp_path: Path
) -> None:
    before = job_key(configured(random_saes))
    for folder, key in ((text_directory, "dataset.path"), (model_directory, "model.path")):
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        assert job_key(configured(random_saes, f"{key}={copy}")) == before
        victim = copy / ("d1.txt" if key == "dataset.path" else "config.json")
        victim.write_text(victim.read_text() + " ")
        assert job_key(configured(random_saes, f"{key}={copy}")) not in (None, before)
        assert job_key(configured(random_saes, f"{key}=/absent")) is None


def test_a_second_seed_is_an_input(weights: Configured, random_saes: Path) -> None:
    before = job_key(weights())
    save_native(random_sae(seed=5), random_saes / "layer_01_seed_1.safetensors")
    assert job_key(weights()) != before


# -- one job ---------------------------------------------------------------------------------------------


def test_a_finished_job_is_skipped_with_its_numbers(weights: Configured) -> None:
    result = run(weights())
    status = read_status(result.directory)
    assert status is not None and status.key == job_key(weights())
    decision = decide(weights("tracking.tags=[x]"))
    assert decision.action is Action.skip and decision.metrics == result.metrics
    assert decide(weights("rerun=none")).action is Action.skip
    again = decide(weights("rerun=all"))
    assert (again.action, again.directory) == (Action.run, result.directory)


@pytest.mark.parametrize("state", ["failed", "killed", "running"])
def test_what_is_not_done_runs_again(weights: Configured, state: str) -> None:
    directory = run(weights()).directory
    # The process of a `running` record is gone: this boot never was.
    rewrite(directory / "status.json", state=state, process={"pid": 1, "host": os.uname().nodename, "boot": "gone"})
    assert decide(weights()).action is Action.run
    assert decide(weights("rerun=none")).action is Action.report


def test_new_content_in_the_same_files_runs_again_in_its_place(
    weights: Configured, random_saes: Path, tmp_path: Path
) -> None:
    directory = run(weights()).directory
    save_native(random_sae(seed=50), random_saes / "layer_00.safetensors")
    decision = decide(weights(output="sweep/3"), tmp_path / "sweep")
    assert (decision.action, decision.directory) == (Action.run, directory)
    run(decision.study)
    assert decide(weights(output="sweep/3"), tmp_path / "sweep").action is Action.skip


def test_damaged_results_are_not_reused(weights: Configured, caplog: pytest.LogCaptureFixture) -> None:
    directory = run(weights()).directory
    (directory / "metrics.json").write_text("{")
    decision = decide(weights())
    assert (decision.action, decision.directory) == (Action.run, directory)
    assert "missing or damaged" in caplog.text


def test_another_process_in_the_same_place_is_respected(weights: Configured) -> None:
    cfg = weights()
    directory = run(cfg).directory
    status = json.loads((directory / "status.json").read_text())
    code = "import json, sys, time; from sae_match.record.claim import claim, this_process; from pathlib import Path; "
    code += "claim(Path(sys.argv[1])); print(json.dumps(this_process()), flush=True); time.sleep(100)"
    other = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        rewrite(directory / "status.json", state="running", process=json.loads(other.stdout.readline()))
        with pytest.raises(UserError, match="is running a job there"):
            run(cfg)
        assert json.loads((directory / "status.json").read_text())["state"] == "running"
    finally:
        other.kill()
        other.communicate()
    killed = read_status(directory)
    assert killed is not None and killed.state == "killed"
    assert run(cfg).metrics and json.loads((directory / "status.json").read_text())["key"] == status["key"]


# -- sweeps ----------------------------------------------------------------------------------------------


def test_a_sweep_knows_its_jobs_by_key_wherever_they_lie(weights: Configured, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    both, decoder = run(weights(output="sweep/0")), run(weights("matching=decoder", output="sweep/1"))
    moved = decide(weights("matching=decoder", output="sweep/0"), sweep)
    assert (moved.action, moved.directory, moved.metrics) == (Action.skip, decoder.directory, decoder.metrics)
    new = decide(weights("matching=encoder", output="sweep/0"), sweep)
    assert new.action is Action.run and new.directory.parent == sweep
    assert new.directory.name.startswith("0-") and new.directory != both.directory
    run(new.study)
    assert decide(weights("matching=encoder", output="sweep/7"), sweep).directory == new.directory
    free = decide(weights("seed=3", output="sweep/2"), sweep)
    assert (free.action, free.directory) == (Action.run, sweep / "2")
    again = decide(weights("matching=decoder", "rerun=all", output="sweep/0"), sweep)
    assert (again.action, again.directory) == (Action.run, decoder.directory)


def test_a_failed_record_of_another_job_may_be_replaced(weights: Configured, tmp_path: Path) -> None:
    directory = run(weights(output="sweep/0")).directory
    rewrite(directory / "status.json", state="failed")
    decision = decide(weights("seed=2", output="sweep/0"), tmp_path / "sweep")
    assert (decision.action, decision.directory) == (Action.run, directory)


def test_outside_a_sweep_another_configuration_is_still_refused(weights: Configured) -> None:
    run(weights(output="plain"))
    decision = decide(weights("seed=1", output="plain"))
    assert decision.action is Action.run
    with pytest.raises(UserError, match="another configuration"):
        run(decision.study)


def test_a_wrong_configuration_has_no_key_and_fails_by_itself(weights: Configured) -> None:
    cfg = replace(weights(), seed=-1)
    assert job_key(cfg) is None
    assert decide(cfg).action is Action.run


def test_a_job_that_another_host_is_running_is_left_to_it(weights: Configured, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    directory = run(weights(output="sweep/0")).directory
    process = {**this_process(), "host": "elsewhere"}
    rewrite(directory / "status.json", state="running", process=process)
    (directory / f"{CLAIM}.1").write_text(json.dumps(process))
    decision = decide(weights(output="sweep/0"), sweep)
    assert (decision.action, decision.directory) == (Action.report, directory)
    assert decide(weights("matching=decoder", output="sweep/1"), sweep).action is Action.run
    alone = decide(weights(output="sweep/0"))
    with pytest.raises(UserError, match="elsewhere is running a job there"):
        run(alone.study)
    os.utime(directory / f"{CLAIM}.1", (0, 0))
    assert decide(weights(output="sweep/0"), sweep).action is Action.run
