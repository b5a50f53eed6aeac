"""What Slurm says of the process that has claimed a record: started again, over, or of another cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match.record import JobRecord, slurm
from sae_match.record.claim import claim, release
from tests.record.test_claim import ELSEWHERE, running, status

JOB = {"CLUSTER_NAME": "c", "JOB_ID": "77", "ARRAY_JOB_ID": "76", "ARRAY_TASK_ID": "1", "PROCID": "0"}


@pytest.fixture
def queue(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what Slurm's commands answer, as a shell script; the cluster's name is c."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answers(script: str) -> None:
        for name, code in (("squeue", script), ("scontrol", "echo 'ClusterName             = c'")):
            (folder / name).write_text(f"#!/bin/sh\n{code}\n")
            (folder / name).chmod(0o755)
        slurm._jobs.cache_clear()
        slurm.cluster_name.cache_clear()

    yield answers
    slurm._jobs.cache_clear()
    slurm.cluster_name.cache_clear()


def test_a_job_that_slurm_has_started_again_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path, {**ELSEWHERE, "slurm": {**JOB, "RESTART_COUNT": None}})
    assert status(tmp_path).alive
    for name, value in {**JOB, "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert status(tmp_path).state == "killed"
    JobRecord(tmp_path).write_config("seed: 0")
    release(tmp_path)
    running(tmp_path, {**ELSEWHERE, "slurm": {**JOB, "JOB_ID": "78", "RESTART_COUNT": None}})
    assert status(tmp_path).alive


@pytest.mark.parametrize(
    ("script", "state", "told"),
    [
        ("echo '76_0|FAILED|None'; echo '76_1|RUNNING|None'", "running", None),
        ("echo '76_1|PENDING|BeginTime'", "running", None),  # to be started again: the old attempt may live
        ("echo '76_1|OUT_OF_MEMORY|OutOfMemory'", "killed", "Slurm's job 76_1 is OUT_OF_MEMORY (OutOfMemory)"),
        ("echo '76_0|RUNNING|None'", "killed", "Slurm's job 76_1 is gone from the queue"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "killed", "is gone from the queue"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "running", None),
    ],
)
def test_on_another_host_slurm_says_whether_a_job_lives(
    tmp_path: Path, queue: Callable[[str], None], script: str, state: str, told: str | None
) -> None:
    """A job that was killed a moment ago has a heartbeat that is recent."""
    queue(script)
    running(tmp_path, {**ELSEWHERE, "slurm": JOB})
    found = status(tmp_path)
    assert (found.state, found.alive) == (state, state == "running")
    assert told is None or told in (found.error or {})["message"]
    assert (claim(tmp_path) is None) == (state == "killed")
    release(tmp_path)


def test_the_slurm_of_another_cluster_is_not_asked(tmp_path: Path, queue: Callable[[str], None]) -> None:
    queue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    running(tmp_path, {**ELSEWHERE, "slurm": {**JOB, "CLUSTER_NAME": "other"}})
    assert status(tmp_path).alive
