"""Sweeps: failures are loud, what is done is not done twice, and the end is a table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.command import Completed, run_command


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """SAEs of layers 0..2; layer 3 is missing."""
    for layer in range(3):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    return tmp_path


FIXED = ["sae=native", "sae.root=saes", "layers.first=0", "evaluation=weights_only", "hydra.sweep.dir=sweep"]


def launch(place: Path, *arguments: str) -> Completed:
    # argparse wants overrides in one piece.
    words = sorted([*FIXED, "tracking=none", *arguments], key="-m".__ne__)
    return run_command(*words, cwd=place, env={"SAE_MATCH_CACHE": str(place / "cache")})


def rows(place: Path) -> list[dict[str, Any]]:
    return json.loads((place / "sweep" / "sweep.json").read_text())


def stamps(place: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (place / "sweep").glob("*/status.json")}


def test_a_sweep_with_a_failing_job_from_the_first_launch_to_the_last(place: Path) -> None:
    """One sweep through its life: failing, again, mended, extended, asked about, and all over."""
    jobs = ["-m", "layers.last=1,3,2"]  # layer 3 has no file
    done = launch(place, *jobs)
    assert done.code not in (0, None)
    assert [row["state"] for row in rows(place)] == ["done", "failed", "done"]
    assert [row["layers_last"] for row in rows(place)] == [1, 3, 2]
    assert "no SAE for layer 3" in rows(place)[1]["error"] and "\n" not in rows(place)[1]["error"]
    assert rows(place)[0]["weight_mse/W_dec"] > 0 and rows(place)[0]["seconds"] > 0
    assert "3 jobs: 2 done, 1 failed" in done.out and "**failed**" in done.out
    assert done.out.strip().endswith((place / "sweep" / "sweep.md").read_text().split("\n\n", 1)[1].strip())
    assert "Traceback" not in done.err
    for name in ("sae_match.log", "error.log"):
        assert "Traceback" in (place / "sweep" / "1" / name).read_text()
    assert "Traceback" not in (place / "sweep" / "0" / "sae_match.log").read_text()

    before = stamps(place)
    done = launch(place, *jobs)
    assert done.code not in (0, None)
    again = stamps(place)
    assert {name for name in again if again[name] != before[name]} == {"1"}
    assert done.err.count("done already") == 2
    assert "2 of them already done before" in done.out

    shutil.copy(place / "saes" / "layer_02.safetensors", place / "saes" / "layer_03.safetensors")
    done = launch(place, *jobs)
    assert done.code == 0, done.err
    assert [(row["state"], row["action"]) for row in rows(place)] == [
        ("done", "skip"),
        ("done", "run"),
        ("done", "skip"),
    ]
    assert not (place / "sweep" / "1" / "error.log").exists()

    before = stamps(place)
    done = launch(place, *jobs, "matching=decoder,both")  # the old jobs are now 1, 3 and 5
    assert done.code == 0, done.err
    after = stamps(place)
    assert {name: after[name] for name in before} == before
    found = rows(place)
    assert [row["action"] for row in found] == ["run", "skip"] * 3
    assert [Path(row["record"]).name for row in found[1::2]] == ["0", "1", "2"]
    names = [Path(row["record"]).name for row in found[::2]]
    assert names[0].startswith("0-") and names[1].startswith("2-") and names[2] == "4"
    assert len({row["record"] for row in found}) == 6

    before = after
    done = launch(place, *jobs, "matching=both,encoder", "rerun=none")
    assert done.code == 1
    assert stamps(place) == before
    assert [row["state"] for row in rows(place)] == ["done", "not started"] * 3

    done = launch(place, "-m", "layers.last=1", "rerun=all")
    assert done.code == 0, done.err
    after = stamps(place)
    assert {name for name in after if after[name] != before[name]} == {"0"}


def test_a_plain_run_again_is_quick_and_makes_no_second_wandb_run(place: Path) -> None:
    arguments = ["layers.last=1", "tracking=wandb_offline", "paths.output_dir=out", "hydra.run.dir=out"]
    for _ in range(2):
        done = launch(place, *arguments)
        assert done.code == 0, done.err
    assert done.err.count("done already") == 1
    assert len(list((place / "out" / "wandb").glob("offline-run-*"))) == 1
    done = launch(place, "layers.last=2", "paths.output_dir=nothing_there", "rerun=none")
    assert done.code == 2 and "no finished record" in done.err
    assert not (place / "nothing_there").exists()


@pytest.mark.slow
def test_sigterm_in_a_sweep_leaves_a_table(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sae_match",
        "-m",
        *FIXED,
        "tracking=none",
        "layers.last=1,2",
        "matching=both,decoder",
    ]
    environment = {**os.environ, "SAE_MATCH_CACHE": str(place / "cache")}
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    while not (place / "sweep" / "0" / "status.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 143
    states = [row["state"] for row in rows(place)]
    assert states[0] in ("killed", "done") and states[-1] == "not started"
    assert "not started" in out and "layers.last=2 matching=decoder" in out


def test_a_refused_configuration_of_one_job_is_a_failed_row(place: Path) -> None:
    done = launch(place, "-m", "seed=0,-1", "layers.last=1", "+surprise=1")
    assert done.code == 2
    assert "unknown configuration key: surprise" in done.err
    assert [row["state"] for row in rows(place)] == ["failed", "failed"]
    assert "2 jobs: 2 failed" in done.out


def test_a_dry_run_of_a_sweep_leaves_nothing(place: Path) -> None:
    done = launch(place, "-m", "layers.last=1,2", "dry_run=true")
    assert done.code == 0, done.err
    assert not (place / "sweep").exists()
    assert "jobs:" not in done.out


def test_ctrl_c_in_a_sweep_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_match.experiment

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sae_match.experiment, "run", interrupted)
    done = launch(place, "-m", "layers.last=1,2")
    assert done.code == 130
    assert "job 0 was interrupted" in done.err and "failed: \n" not in done.err and "Traceback" not in done.err
    assert done.err.rstrip().endswith("goes on")
    assert [(row["state"], row["error"]) for row in rows(place)] == [("failed", "interrupted"), ("not started", None)]
