"""Sweeps on a real Slurm, where it is installed: what table, exit code and messages say when jobs and nodes die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli.test_launchers import pairs, permutation
from tests.faults.slurm_cluster import Cluster, cluster, wait_until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

RESTING = '''
import os, time
from sae_match.metrics.description import Description
from sae_match.metrics.metric import WeightMetric

class Rest(WeightMetric):
    """Holds a job up until the gate is open."""

    about = Description(name="rest", label="rest", unit="", better="higher")

    def value(self, pair):
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.1)
        return 1.0
'''


class Sweeps:
    """Launches sweeps over three pairs of layers whose jobs rest in the middle until `open` is called."""

    def __init__(self, slurm: Cluster, root: Path) -> None:
        self.slurm, self.root, self.gate = slurm, root, root / "gate"
        for layer in range(4):
            save_native(random_sae(seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
        (root / "own").mkdir()
        (root / "own" / "resting.py").write_text(RESTING)
        paths = [str(root / "own"), *sys.path]
        self.environment = {**slurm.environment, "PYTHONPATH": os.pathsep.join(paths), "GATE": str(self.gate)}
        self.environment["SAE_MATCH_CACHE"] = str(root / "cache")

    def start(self, name: str, *more: str, launcher: str = "submitit") -> subprocess.Popen[str]:
        self.gate.unlink(missing_ok=True)
        words = [
            "-m", f"launcher={launcher}", "sae=native", f"sae.root={self.root / 'saes'}", "layers.pair=0,1,2",
            "evaluation=weights_only", "tracking=none", "device=cpu", f"hydra.sweep.dir={self.root / name}",
            "+metrics.rest._target_=resting.Rest", "trusted_packages=[resting]", *more,
        ]  # fmt: skip
        if launcher == "submitit":
            words += ["hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30"]
        return subprocess.Popen(
            [sys.executable, "-m", "sae_match", *words], env=self.environment, cwd=self.root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def open(self) -> None:
        self.gate.touch()

    def end(self, command: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        out, err = command.communicate(timeout=150)
        return command.returncode, out, err

    def status(self, name: str, job: int) -> dict[str, Any]:
        path = self.root / name / str(job) / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"state": None}

    def wait(self, name: str, state: str, *jobs: int) -> None:
        wait_until(f"{state}: {jobs}", lambda: all(self.status(name, job)["state"] == state for job in jobs), 90)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads((self.root / name / "sweep.json").read_text()))

    def name_of(self, name: str, job: int) -> str:
        slurm = self.status(name, job)["process"]["slurm"]
        return f"{slurm['ARRAY_JOB_ID']}_{slurm['ARRAY_TASK_ID']}"

    def results(self, name: str) -> list[Any]:
        """What must not depend on launchers and accidents."""
        return [
            (pairs(self.root / name / str(job)), [permutation(path) for path in sorted(
                (self.root / name / str(job) / "permutations").iterdir())])
            for job in range(3)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweeps]:
    folder = tmp_path_factory.mktemp("slurm")
    with cluster(folder / "cluster") as slurm:
        yield Sweeps(slurm, folder)


def test_a_killed_job_a_node_that_crashes_and_what_slurm_starts_again(sweeps: Sweeps) -> None:
    """Job 0's node loses its power, job 1 is killed as for its memory, job 2 is asked to begin again."""
    slurm = sweeps.slurm
    local = sweeps.start("local", launcher="local")
    sweeps.open()
    assert sweeps.end(local)[0] == 0
    pinned = sweeps.start("sweep", "+hydra.launcher.additional_parameters.exclude=n2")
    sweeps.wait("sweep", "running", 0, 1, 2)
    assert {sweeps.status("sweep", job)["process"]["host"] for job in range(3)} == {"n1"} or not slurm.names
    names = [sweeps.name_of("sweep", job) for job in range(3)]
    for process in slurm.processes(names[1]):
        process.kill()
    wait_until("its end", lambda: "FAILED" in slurm.ask("squeue", "-h", "-tall", "-r", f"-j{names[1]}", "-o%T"))
    slurm.ask("scontrol", "requeue", names[2])
    sweeps.wait("sweep", "killed", 2)
    slurm.crash("n1")
    slurm.start("n1")
    sweeps.open()
    code, out, err = sweeps.end(pinned)
    assert code == 1, err
    assert [row["state"] for row in sweeps.rows("sweep")] == ["done", "killed", "done"], out
    assert f"Slurm's job {names[1]} is FAILED" in sweeps.rows("sweep")[1]["error"]
    assert [row["slurm"] for row in sweeps.rows("sweep")] == names and names[1] in out
    assert (sweeps.root / "sweep" / ".submitit" / names[1] / f"{names[1]}_0_log.out").exists()

    again = sweeps.start("sweep")
    sweeps.open()
    code, out, err = sweeps.end(again)
    assert code == 0, err
    assert [row["action"] for row in sweeps.rows("sweep")] == ["skip", "run", "skip"]
    assert sweeps.results("sweep") == sweeps.results("local")
