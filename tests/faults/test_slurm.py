"""Sweeps on a real Slurm, where it is installed: what table, exit code and messages say when jobs and nodes die."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_match.record.slurm import job_name
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli.test_launchers import pairs, permutation
from tests.command import run_command
from tests.faults.slurm_cluster import Cluster, cluster, wait_until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
long_form = pytest.mark.skipif("SLURM_FAULTS" not in os.environ, reason="the long form: SLURM_FAULTS=1 pytest ...")

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
    """Launches sweeps over pairs of layers whose jobs rest in the middle until `open` is called."""

    def __init__(self, slurm: Cluster, root: Path) -> None:
        self.slurm, self.root, self.gate = slurm, root, root / "gate"
        self.commands: list[subprocess.Popen[str]] = []
        for layer in range(4):
            save_native(random_sae(seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
        (root / "own").mkdir()
        (root / "own" / "resting.py").write_text(RESTING)
        paths = [str(root / "own"), *sys.path]
        self.environment = {**slurm.environment, "PYTHONPATH": os.pathsep.join(paths), "GATE": str(self.gate)}
        self.environment["SAE_MATCH_CACHE"] = str(root / "cache")

    def words(self, name: str, *more: str, layers: str = "0,1", launcher: str = "submitit") -> list[str]:
        """The command line of a sweep into a folder of that name."""
        words = [
            "-m", f"launcher={launcher}", "sae=native", f"sae.root={self.root / 'saes'}", f"layers.pair={layers}",
            "evaluation=weights_only", "tracking=none", "device=cpu", f"hydra.sweep.dir={self.root / name}",
            "+metrics.rest._target_=resting.Rest", "trusted_packages=[resting]",
        ]  # fmt: skip
        if launcher == "submitit":
            words += ["hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30"]
        return [*words, *more]

    def start(self, *arguments: str, layers: str = "0,1") -> subprocess.Popen[str]:
        """Launch a sweep whose jobs rest."""
        self.gate.unlink(missing_ok=True)
        command = [sys.executable, "-m", "sae_match", *self.words(*arguments, layers=layers)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.commands.append(subprocess.Popen(command, env=self.environment, cwd=self.root, **pipes))
        return self.commands[-1]

    def open(self) -> None:
        self.gate.touch()

    def end(self, command: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        out, err = command.communicate(timeout=400)
        return command.returncode, out, err

    def status(self, name: str, job: int) -> dict[str, Any]:
        path = self.root / name / str(job) / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"state": None}

    def wait(self, name: str, state: str, *jobs: int) -> None:
        wait_until(f"{state}: {jobs}", lambda: all(self.status(name, job)["state"] == state for job in jobs), 150)

    def states(self, name: str) -> list[str]:
        return [row["state"] for row in self.rows(name)]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads((self.root / name / "sweep.json").read_text()))

    def name_of(self, name: str, job: int) -> str:
        return job_name(self.status(name, job)["process"]["slurm"])

    def results(self, name: str) -> list[Any]:
        """What must not depend on launchers and accidents."""
        return [
            (pairs(self.root / name / str(job)), [permutation(path) for path in sorted(
                (self.root / name / str(job) / "permutations").iterdir())])
            for job in range(2)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweeps]:
    folder = tmp_path_factory.mktemp("slurm")
    with cluster(folder / "cluster") as slurm:
        found = Sweeps(slurm, folder)
        yield found
        for command in found.commands:
            command.kill()


def test_a_killed_job_and_a_node_that_crashes(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 0's node loses its power, so that Slurm starts the job again; job 1 is killed as for its memory."""
    slurm = sweeps.slurm
    command = sweeps.start("sweep", "+hydra.launcher.additional_parameters.exclude=n2")
    sweeps.wait("sweep", "running", 0, 1)
    assert {sweeps.status("sweep", job)["process"]["host"] for job in range(2)} == {"n1"} or not slurm.names
    names = [sweeps.name_of("sweep", job) for job in range(2)]
    for process in slurm.processes(names[1]):
        process.kill()
    wait_until("its end", lambda: slurm.state(names[1]) == "FAILED")
    slurm.crash("n1")
    slurm.start("n1")
    sweeps.open()
    monkeypatch.syspath_prepend(sweeps.root / "own")
    environment = {"GATE": str(sweeps.gate), "SAE_MATCH_CACHE": str(sweeps.root / "cache")}
    local = run_command(*sweeps.words("local", launcher="local"), cwd=sweeps.root, env=environment)
    assert local.code == 0, local.err
    code, out, err = sweeps.end(command)
    assert code == 1, err
    assert sweeps.states("sweep") == ["done", "killed"], out
    assert sweeps.status("sweep", 0)["process"]["slurm"]["RESTART_COUNT"] == "1"
    assert f"Slurm's job {names[1]} is FAILED" in sweeps.rows("sweep")[1]["error"]
    assert [row["slurm"] for row in sweeps.rows("sweep")] == names and names[1] in out
    assert (sweeps.root / "sweep" / ".submitit" / names[1] / f"{names[1]}_0_log.out").exists()

    again = sweeps.start("sweep")
    sweeps.open()
    code, out, err = sweeps.end(again)
    assert code == 0, err
    assert [row["action"] for row in sweeps.rows("sweep")] == ["skip", "run"]
    assert sweeps.results("sweep") == sweeps.results("local")


def test_what_slurm_refuses(sweeps: Sweeps) -> None:
    code, _, err = sweeps.end(sweeps.start("refused", "hydra.launcher.partition=nope"))
    assert code == 2 and "Invalid partition name specified" in err and "hydra.launcher.partition" in err
    assert "Traceback" not in err and not (sweeps.root / "refused" / ".submitit").exists()


def test_a_sweep_that_is_left_and_looked_at_again(sweeps: Sweeps) -> None:
    """Its second job fails, which Slurm hears of, and is tried again; its first one is not submitted twice."""
    code, out, err = sweeps.end(sweeps.start("left", "hydra.launcher.wait=false", layers="0,7"))
    assert code == 0 and "Slurm's job" in err, err
    assert sweeps.states("left") == ["waiting", "waiting"] and "sae-match-report" in out
    first = [row["slurm"] for row in sweeps.rows("left")]
    sweeps.wait("left", "running", 0)
    wait_until("its end", lambda: sweeps.slurm.state(first[1]) == "FAILED")
    command = sweeps.start("left", layers="0,7")
    notes = sweeps.root / "left" / ".jobs" / "slurm.json"
    wait_until("the second launch", lambda: json.loads(notes.read_text()).get("1", first[1:])[0] != first[1])
    sweeps.open()
    code, out, err = sweeps.end(command)
    assert code == 1 and "no SAE for layer 7" in out and "1 jobs of an earlier launch" in err, err
    assert sweeps.states("left") == ["done", "failed"]
    second = [row["slurm"] for row in sweeps.rows("left")]
    assert second[0] == first[0] and second[1] != first[1]


# -- the long form ---------------------------------------------------------------------------------------


@long_form
def test_two_processes_of_one_job(sweeps: Sweeps) -> None:
    """The daemon of a node dies, its job does not; Slurm starts the job again on the other node."""
    slurm = sweeps.slurm
    command = sweeps.start("writers", layers="0")
    sweeps.wait("writers", "running", 0)
    first = sweeps.status("writers", 0)["process"]
    node = slurm.ask("squeue", "--noheader", f"--jobs={first['slurm']['JOB_ID']}", "--format=%N").strip()
    slurm.crash(node, jobs=False)
    wait_until("the second one", lambda: sweeps.status("writers", 0)["process"] != first, 180)
    log = sweeps.root / "writers" / "0" / "sae_match.log"
    wait_until("the first one's end", lambda: "It is left to that process" in log.read_text(), 60)
    assert sweeps.status("writers", 0)["state"] == "running"
    sweeps.open()
    code, _, err = sweeps.end(command)
    slurm.start(node)
    assert code == 0, err
    assert sweeps.states("writers") == ["done"] and sweeps.status("writers", 0)["process"] != first


@long_form
def test_the_first_job_is_cancelled_while_the_controller_is_away(sweeps: Sweeps) -> None:
    slurm = sweeps.slurm
    command = sweeps.start("cancelled", layers="0,1")
    sweeps.wait("cancelled", "running", 0, 1)
    slurm.ask("scancel", sweeps.name_of("cancelled", 0))
    sweeps.wait("cancelled", "killed", 0)
    time.sleep(10)  # until the controller has saved that
    slurm.crash("ctl")
    time.sleep(5)
    assert command.poll() is None
    slurm.start("ctl")
    sweeps.open()
    code, out, _ = sweeps.end(command)
    assert code == 1 and sweeps.states("cancelled") == ["killed", "done"], out


@long_form
def test_batches_from_inside_of_an_allocation(sweeps: Sweeps) -> None:
    """Longer than this cluster's arrays may be, and the second job fails."""
    words = sweeps.words("batches", "hydra.sweeper.max_batch_size=3", layers="0,7,1,2,0")
    command = shlex.join([sys.executable, "-m", "sae_match", *words])
    sweeps.open()
    log = sweeps.root / "batches.log"
    asked = ["sbatch", "--wait", f"--output={log}", "--mem-per-cpu=500", f"--wrap=cd {sweeps.root}; {command}"]
    done = subprocess.run(asked, env=sweeps.environment, check=False, timeout=400)
    assert done.returncode == 1, log.read_text()
    assert sweeps.states("batches") == ["done", "failed", "done", "done", "done"]


@long_form
def test_the_time_limit(sweeps: Sweeps) -> None:
    """A job is started again as often as it may be, and then says what ended it."""
    words = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60", "hydra.launcher.max_num_timeout=1"]
    command = sweeps.start("limit", *words, layers="0")
    sweeps.wait("limit", "running", 0)
    code, out, err = sweeps.end(command)
    assert code == 1 and sweeps.states("limit") == ["killed"], err
    assert "hydra.launcher.timeout_min" in out
    assert sweeps.status("limit", 0)["process"]["slurm"]["RESTART_COUNT"] == "1"
