"""The state of a job as its directory shows it. One that SIGKILL ended could not record that: its claim shows it."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json_object
from . import slurm
from .claim import newest_claim, owns

STATUS = "status.json"
ADVICE = {
    "FAILED": ", most likely killed for its memory (hydra.launcher.mem_gb)",
    "OUT_OF_MEMORY": ": ask for more hydra.launcher.mem_gb",
    "TIMEOUT": ": ask for more hydra.launcher.timeout_min",
}
"""By Slurm's state of a job whose process could not say itself why it ended."""


@dataclass(frozen=True)
class Status:
    """What is known of a job without reading its results.

    Attributes:
        state: running, done, failed or killed; a running job whose process is gone counts as killed.
        error: type and message of what ended it.
        key: content key of the job (`experiment.job_key`), None where an input could not be identified.
        science: hash of the scientific configuration alone (`record.configuration`).
        alive: a process writes the record, as far as this host can know (`record.claim`).
        pid, host: that process.
        own: it is this process.
    """

    state: str
    error: Mapping[str, Any] | None = None
    seconds: float | None = None
    key: str | None = None
    science: str | None = None
    alive: bool = False
    pid: int | None = None
    host: str | None = None
    own: bool = False


def read_status(directory: Path) -> Status | None:
    """The status of the record in a directory; None where there is none that can be read."""
    content = read_json_object(directory / STATUS)
    try:
        return None if content is None else interpret(content, directory)
    except (OSError, KeyError):
        return None


def refuse_other_job(directory: Path, science: str) -> None:
    """Refuse a directory where another process runs a job, or that holds the finished record of one with another
    scientific configuration: where results go and how they are tracked does not count.

    Raises:
        UserError: it is another job's.
    """
    status = read_status(directory)
    if status is not None and status.alive and not status.own:
        raise UserError(
            f"{directory}: process {status.pid} on {status.host} is running a job there. Wait for it, or choose "
            "another paths.output_dir."
        )
    if status is not None and status.state == "done" and status.science != science:
        raise UserError(
            f"{directory} holds the finished record of a job with another configuration. "
            "Choose another paths.output_dir, or remove that directory first."
        )


def records_in(sweep: Path) -> Iterator[tuple[Path, Status]]:
    """The records directly below a sweep's directory, by name."""
    for path in sorted(sweep.glob(f"*/{STATUS}")):
        status = read_status(path.parent)
        if status is not None:
            yield path.parent, status


def interpret(status: Mapping[str, Any], directory: Path, probe: bool = True) -> Status:
    """What the content of a record's status.json means now.

    Args:
        probe: as for `Claim.age`.

    Raises:
        KeyError: it holds no state.
    """
    state, error = str(status["state"]), status.get("error")
    process: Mapping[str, Any] = status["process"] if isinstance(status.get("process"), Mapping) else {}
    alive = False
    if state == "running":
        claim = newest_claim(directory)
        alive = claim is not None and claim.alive(probe)
        # Without a claim nothing can be said of another host's: a copy may lack hidden files.
        if not alive and (claim is not None or process.get("host") == socket.gethostname()):
            age = None if claim is None else claim.age(probe)
            state, error = "killed", {"type": "Killed", "message": _gone(process, age)}
    return Status(
        state=state,
        error=error,
        **{name: status.get(name) for name in ("seconds", "key", "science")},
        alive=alive,
        **{name: process.get(name) for name in ("pid", "host")},
        own=state == "running" and owns(directory),
    )


def _gone(process: Mapping[str, Any], age: float | None) -> str:
    text = f"process {process.get('pid')} on {process.get('host')} is gone"
    if isinstance(job := process.get("slurm"), Mapping) and job.get("JOB_ID"):
        name = slurm.job_name(job)
        said = slurm.job_state(name) if job.get("CLUSTER_NAME") == slurm.cluster_name() else None
        if said is not None and said.ended:
            return f"{text}: Slurm's job {name} is {said}{ADVICE.get(said.state, '')}"
        text += f", Slurm's job {name}"
    if age is not None:
        text += f" (last heartbeat {age / 60:.0f} minutes ago)"
    return f"{text}: SIGKILL, out of memory, or the machine went down"
