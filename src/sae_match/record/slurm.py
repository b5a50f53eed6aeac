"""What Slurm itself says of a job: on any host that has its commands, for as long as it remembers (MinJobAge)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "TIMEOUT",
)  # fmt: skip
"""States after which a job does not run again."""
TIMEOUT_S = 30.0
FRESH_S = 3.0
"""How long an answer counts: many records are of one array."""
_VARIABLES = ("CLUSTER_NAME", "JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "PROCID", "RESTART_COUNT")


class JobState(NamedTuple):
    """State (`PENDING`, `RUNNING`, ...) and reason (`Resources`, `NonZeroExitCode`, ...) in Slurm's words."""

    state: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job is over and will not be started again."""
        return self.state in ENDED

    def __str__(self) -> str:
        if self == GONE:
            return "gone from the queue"
        return self.state if self.reason in ("", "None") else f"{self.state} ({self.reason})"


GONE = JobState("GONE")
"""Of a job that Slurm does not know, or not any more."""


def this_job() -> dict[str, str | None] | None:
    """The Slurm job that this process belongs to, and which attempt of it; None outside Slurm."""
    job = {name: os.environ.get(f"SLURM_{name}") for name in _VARIABLES}
    return job if job["JOB_ID"] else None


def job_name(job: Mapping[str, str | None]) -> str:
    """A job as Slurm's commands take it: 23_1 for the second one of an array, otherwise its number."""
    array = job.get("ARRAY_JOB_ID")
    return f"{array}_{job.get('ARRAY_TASK_ID')}" if array else str(job["JOB_ID"])


def is_gone(job: object) -> bool:
    """Whether the job that `this_job` described is over; False where Slurm cannot be asked, or is another cluster."""
    if not isinstance(job, Mapping) or not job.get("JOB_ID") or job.get("CLUSTER_NAME") != cluster_name():
        return False
    state = job_state(job_name(job))
    return state is not None and state.ended


def job_state(name: str) -> JobState | None:
    """The state of a job, `GONE` where Slurm does not know it any more; None where Slurm cannot be asked."""
    found = _jobs(name.partition("_")[0], int(time.monotonic() / FRESH_S))
    return None if found is None else found.get(name, GONE)


@lru_cache(maxsize=256)
def _jobs(number: str, _moment: int) -> Mapping[str, JobState] | None:
    """The jobs of an array, or a single job, by name."""
    answer = _ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={number}", "--format=%i|%T|%r")
    if answer is None:
        return None
    rows = (line.split("|") for line in answer.splitlines())
    return {row[0].strip(): JobState(row[1], row[2].strip()) for row in rows if len(row) == 3}


@lru_cache(maxsize=1)
def cluster_name() -> str | None:
    """The cluster's name; None where there is no Slurm."""
    inside = os.environ.get("SLURM_CLUSTER_NAME")
    found = None if inside else re.search(r"^ClusterName\s*=\s*(\S+)", _ask("scontrol", "show", "config") or "", re.M)
    return inside or (found[1] if found else None)


def _ask(*command: str) -> str | None:
    """What a command of Slurm's prints, nothing where it does not know the job; None where it fails otherwise."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return "" if "Invalid job id" in done.stderr else None
    return done.stdout
