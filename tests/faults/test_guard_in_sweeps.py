"""Launchers compose every job once more, in a process of its own: what is refused there, and how that is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae

CANARY = "canary"
JOB_LOGGING = f"""# @package _global_
hydra: {{job_logging: {{handlers: {{x: {{'()': pathlib.Path.touch, self: {CANARY}}}}}}}}}
"""
WORKERS = {
    "joblib": "${oc.env:ONLY_IN_WORKERS,''}",
    "submitit_local": "${oc.env:SUBMITIT_EXECUTOR,''}",
}
"""An interpolation that is empty in the launching process and not in the launcher's own: what passes the composition
of all jobs with which Hydra's sweeper begins is something else when a job's process composes it."""


def sweep(root: Path, launcher: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = [f"launcher={launcher}", "sae=native", f"sae.root={root / 'saes'}", "layers.first=0", "layers.last=1",
                 "evaluation=weights_only", "tracking=none", "solver=greedy",
                 f"hydra.sweep.dir={root / 'out'}"]  # fmt: skip
    variables = {**os.environ, "SAE_MATCH_CACHE": str(root / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "sae_match", *arguments, *more, "-m", f"--config-dir={root / 'conf'}"],
        cwd=root, env=variables, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def write(root: Path, name: str, text: str) -> None:
    path = root / "conf" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for layer in range(2):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    return tmp_path


@pytest.mark.parametrize("launcher", ["local", "joblib", "submitit_local"])
def test_a_swept_group_is_refused_before_anything_is_launched(root: Path, launcher: str) -> None:
    write(root, "experiment/fine", "# @package _global_\nseed: 3\n")
    write(root, "experiment/evil", JOB_LOGGING)
    done = sweep(root, launcher, "experiment=fine,evil")
    assert done.returncode == 2, done.stderr
    assert "names code to run" in done.stderr and "Traceback" not in done.stderr
    assert not (root / CANARY).exists()
    assert not list((root / "out").rglob("status.json"))


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_what_shows_in_a_jobs_own_process_only(root: Path, launcher: str) -> None:
    """The sweep's table names it, and the exit code is not 0."""
    write(root, "evil/x", "{}")
    write(root, "evil/xlocal", JOB_LOGGING)
    write(root, "experiment/evil", f'# @package _global_\ndefaults:\n  - /evil@_global_: "x{WORKERS[launcher]}"\n')
    environment = {"PYTHONPATH": _setting_in_workers(root)} if launcher == "joblib" else {}
    done = sweep(root, launcher, "experiment=evil", "seed=1,2", **environment)
    assert done.returncode not in (0, None), done.stderr
    assert not (root / CANARY).exists()
    refused = [row for row in json.loads((root / "out" / "sweep.json").read_text()) if row["state"] == "failed"]
    assert refused  # joblib ends a sweep with the first error
    for row in refused:
        assert "names code to run" in row["error"] and "hydra.job_logging.handlers.x.()" in row["error"]
    assert "names code to run" in done.stdout
    assert not list((root / "out").rglob("status.json"))


def _setting_in_workers(root: Path) -> str:
    """A path for Python on which the processes of joblib's pool, which are told so on their command line, find a
    variable set."""
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(
        "import os, sys\nif 'loky' in ' '.join(sys.orig_argv):\n    os.environ['ONLY_IN_WORKERS'] = 'local'\n"
    )
    return f"{root / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def test_the_table_of_a_sweep_over_a_pattern(root: Path) -> None:
    """`glob` asks the configuration loader which options there are, also for the plan of the sweep."""
    write(root, "experiment/fine_a", "# @package _global_\nseed: 3\n")
    write(root, "experiment/fine_b", "# @package _global_\nseed: 4\n")
    done = sweep(root, "local", "experiment=glob(fine*)")
    assert done.returncode == 0, done.stderr
    planned = json.loads((root / "out" / ".jobs" / "sweep.json").read_text())
    assert [job[-1] for job in planned] == ["experiment=fine_a", "experiment=fine_b"]
