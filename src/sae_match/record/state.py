"""The state of a job as its directory tells it: what was written, and whether the process that wrote it still lives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import is_alive

STATUS = "status.json"


@dataclass(frozen=True)
class Status:
    """What is known of a job without reading its results.

    Attributes:
        state: running, done, failed or killed; a job whose process is gone without a word counts as killed.
        error: type and message of what ended it.
        key: content key of the job (`experiment.job_key`), None where an input could not be identified.
        science: hash of the scientific configuration alone (`record.science`).
        alive: its process runs on this host.
        pid: that process.
    """

    state: str
    error: Mapping[str, Any] | None = None
    seconds: float | None = None
    key: str | None = None
    science: str | None = None
    alive: bool = False
    pid: int | None = None


def interpret(status: Mapping[str, Any]) -> Status:
    """What the content of a status.json means now.

    Raises:
        KeyError: it holds no state.
    """
    state, error, process = str(status["state"]), status.get("error"), status.get("process")
    alive = is_alive(process) if state == "running" else None
    pid = process.get("pid") if isinstance(process, Mapping) else None
    if state == "running" and alive is False:
        message = f"process {pid} is gone without a word: SIGKILL, out of memory, or the machine went down"
        state, error = "killed", {"type": "Killed", "message": message}
    return Status(state, error, status.get("seconds"), status.get("key"), status.get("science"), alive is True, pid)


def read_status(directory: Path) -> Status | None:
    """The status of the record in a directory; None where there is none that can be read."""
    try:
        content = json.loads((directory / STATUS).read_text(encoding="utf-8"))
        return interpret(content) if isinstance(content, dict) else None
    except (OSError, ValueError, KeyError):
        return None


def records_in(sweep: Path) -> Iterator[tuple[Path, Status]]:
    """The records directly below a sweep's directory, by name."""
    for path in sorted(sweep.glob(f"*/{STATUS}")):
        status = read_status(path.parent)
        if status is not None:
            yield path.parent, status
