"""Sweeps in Slurm's hands as their notes and its queue show them, and what the launcher refuses; without a Slurm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_match.errors import UserError
from sae_match.record import slurm
from sae_match.record.pairs import write_pairs
from sae_match.sweep import notes
from sae_match.sweep.table import jobs_of, render, table
from tests.command import run_command
from tests.report.conftest import job_table

launcher = pytest.importorskip("sae_match.sweep.slurm", reason="needs the extra [slurm]")

PLANNED = [[f"seed={i}"] for i in range(6)]
SETTINGS: dict[str, Any] = {
    "nodes": 1, "tasks_per_node": 1, "timeout_min": 240, "signal_delay_s": 120, "wait": True, "gpus_per_node": None,
}  # fmt: skip


@pytest.fixture
def queue(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the lines that squeue prints."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def shows(*lines: str) -> None:
        (folder / "squeue").write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        (folder / "squeue").chmod(0o755)
        slurm._jobs.cache_clear()

    yield shows
    slurm._jobs.cache_clear()


def record(sweep: Path, number: int, state: str) -> None:
    (sweep / str(number)).mkdir()
    content = {"state": state, "process": None, "seconds": 1.0, "error": None}
    if state == "killed":
        content["error"] = {"type": "Terminated", "message": "received SIGTERM"}
    (sweep / str(number) / "status.json").write_text(json.dumps(content))
    (sweep / str(number) / "config.yaml").write_text("{}")
    (sweep / str(number) / "metrics.json").write_text("{}")
    write_pairs(sweep / str(number) / "pairs.csv", job_table())
    notes.note_job(sweep, number, PLANNED[number], sweep / str(number), "run")


# -- notes -----------------------------------------------------------------------------------------------


def test_a_late_job_of_an_earlier_launch_leaves_the_notes_of_the_last_one(tmp_path: Path) -> None:
    notes.begin(tmp_path, PLANNED[:3])
    notes.begin(tmp_path, [["layers.pair=3"], ["layers.pair=4"]])
    notes.note_job(tmp_path, 1, ["layers.pair=4"], tmp_path / "1", "run")
    before = notes.read_notes(tmp_path)
    notes.note_job(tmp_path, 0, PLANNED[0], tmp_path / "0", "run")
    notes.note_job(tmp_path, 1, PLANNED[1], tmp_path / "1", "run")
    notes.note_error(tmp_path, 1, PLANNED[1], "it failed")
    notes.note_job(tmp_path, 2, PLANNED[2], tmp_path / "2", "run")
    assert notes.read_notes(tmp_path) == before


def test_notes_of_jobs_that_another_sweeper_decides(tmp_path: Path) -> None:
    notes.begin(tmp_path, [])
    notes.note_job(tmp_path, 4, ["seed=9"], tmp_path / "4", "run")
    notes.note_error(tmp_path, 4, ["seed=9"], "it failed")
    ((number, note),) = notes.read_notes(tmp_path)[1].items()
    assert number == 4 and note is not None and (note["action"], note["error"]) == ("run", "it failed")


def test_a_launch_keeps_what_slurm_still_has_of_an_earlier_one(tmp_path: Path, queue: Callable[..., None]) -> None:
    queue("7_0|RUNNING|None", "7_1|FAILED|NonZeroExitCode", "7_2|PENDING|Resources")
    notes.begin(tmp_path, PLANNED[:3])
    notes.note_submitted(tmp_path, {i: (f"7_{i}", PLANNED[i]) for i in range(3)})
    for number in range(2):
        record(tmp_path, number, "running")
    notes.begin(tmp_path, [*PLANNED[:2], ["seed=5"]])
    assert set(notes.read_notes(tmp_path)[1]) == {0}
    found = [notes.in_queue(tmp_path, i, job) for i, job in enumerate([*PLANNED[:2], ["seed=5"]])]
    assert found == ["7_0", None, None]
    assert notes.submitted(tmp_path, 1, PLANNED[1]) is None


# -- the table -------------------------------------------------------------------------------------------


def test_the_table_of_jobs_that_slurm_has(tmp_path: Path, queue: Callable[..., None]) -> None:
    notes.begin(tmp_path, PLANNED)
    notes.note_submitted(tmp_path, {i: (f"7_{i}", PLANNED[i]) for i in range(6)})
    record(tmp_path, 0, "done")
    record(tmp_path, 1, "killed")
    record(tmp_path, 2, "killed")
    queue(
        "7_0|COMPLETED|None", "7_1|PENDING|BeginTime", "7_2|TIMEOUT|TimeLimit", "7_3|PENDING|PartitionTimeLimit",
        "7_4|CANCELLED|None",
    )  # fmt: skip
    rows = table(jobs_of(tmp_path))
    assert [row["state"] for row in rows] == ["done", "waiting", "killed", "waiting", "killed", "killed"]
    assert [row["error"] for row in rows] == [
        None,
        "Slurm's job 7_1 is PENDING (BeginTime)",  # it is started again
        "Terminated: received SIGTERM",
        "Slurm's job 7_3 is PENDING (PartitionTimeLimit)",
        "Slurm's job 7_4 is CANCELLED",
        "Slurm's job 7_5 is gone from the queue",
    ]
    text = render(rows)
    assert "6 jobs: 1 done, 2 waiting, 3 killed" in text and "| 7_4 " in text
    assert ".submitit/<slurm>/" in text


def test_without_slurm_the_table_says_nothing_of_it(tmp_path: Path) -> None:
    notes.begin(tmp_path, PLANNED[:3])
    record(tmp_path, 0, "done")
    rows = table(jobs_of(tmp_path))
    assert [row["state"] for row in rows] == ["done", "not started", "not started"]
    assert "slurm" not in render(rows)


# -- the launcher ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sweep", "basic", "named"),
    [
        ({"tasks_per_node": 2}, "s", True, "tasks_per_node"),
        ({"nodes": 2}, "s", True, "hydra.launcher.nodes"),
        ({"timeout_min": 2}, "s", True, "timeout_min=2"),
        ({"wait": False}, "s", False, "wait=false"),
        ({}, "s/%a", True, "hydra.sweep.dir"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], sweep: str, basic: bool, named: str) -> None:
    launcher.check_settings(SETTINGS, Path("s"), True)
    with pytest.raises(UserError, match=named):
        launcher.check_settings(SETTINGS | changes, Path(sweep), basic)


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ("Invalid partition name specified", "hydra.launcher.partition"),
        ("Invalid account or account/partition combination specified", "hydra.launcher.account"),
        ("Invalid qos specification", "hydra.launcher.qos"),
        ("Requested node configuration is not available", "gpus_per_node"),
        ("Memory specification can not be satisfied", "hydra.launcher.mem_gb"),
        ("Invalid job array specification", "hydra.sweeper.max_batch_size"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "hydra.launcher.timeout_min"),
        ("Unable to contact slurm controller (connect failure)", "a key of hydra.launcher"),
    ],
)
def test_a_refusal_is_slurms_with_the_key_to_change(told: str, key: str) -> None:
    message = launcher.refusal(f"sbatch: error: Batch job submission failed: {told}\n")
    assert told in message and key in message.partition("To change: ")[2]


def test_inside_of_an_allocation_the_new_jobs_do_not_inherit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    with launcher.outside_of_allocations():
        left = {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))}
    assert left == {"SLURM_CONF", "SBATCH_ACCOUNT"} and os.environ["SLURM_MEM_PER_CPU"] == "1"


@pytest.mark.parametrize("name", ["submitit", "joblib"])
def test_a_launcher_without_m_is_refused(tmp_path: Path, name: str) -> None:
    """Hydra would run the job in this process, without a word."""
    done = run_command(f"launcher={name}", "evaluation=weights_only", cwd=tmp_path)
    assert done.code == 2 and f"sae-match -m launcher={name}" in done.err
    assert not list(tmp_path.rglob("status.json"))
