"""The state of a job as its directory tells it: what was written, and whether the process that wrote it still lives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .heartbeat import lives, silence
from .process import is_alive, this_process

STATUS = "status.json"


@dataclass(frozen=True)
class Status:
    """What is known of a job without reading its results.

    Attributes:
        state: running, done, failed or killed; a job whose process is gone without a word counts as killed.
        error: type and message of what ended it.
        key: content key of the job (`experiment.job_key`), None where an input could not be identified.
        science: hash of the scientific configuration alone (`record.configuration`).
        alive: its process runs on this host, or has lately given a sign of life from another.
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


def interpret(status: Mapping[str, Any], silence_of: Callable[[], float | None] = lambda: None) -> Status:
    """What the content of a status.json means now.

    Args:
        silence_of: seconds since the record's last sign of life (`heartbeat.silence`), asked where this host does not
            know about the process.

    Raises:
        KeyError: it holds no state.
    """
    state, error, process = str(status["state"]), status.get("error"), status.get("process")
    alive = is_alive(process) if state == "running" else False
    pid, host = (process.get("pid"), process.get("host")) if isinstance(process, Mapping) else (None, None)
    gone = "is gone without a word"
    silent = silence_of() if alive is None else None
    if silent is not None:
        alive = lives(process, silent)
        gone = f"on {host} has given no sign of life for {silent / 60:.0f} minutes"
    if state == "running" and alive is False:
        message = f"process {pid} {gone}: SIGKILL, out of memory, or the machine went down"
        state, error = "killed", {"type": "Killed", "message": message}
    seconds, key, science = (status.get(name) for name in ("seconds", "key", "science"))
    own = state == "running" and process == this_process()
    return Status(state, error, seconds, key, science, alive is True, pid, host, own)


def read_status(directory: Path) -> Status | None:
    """The status of the record in a directory; None where there is none that can be read."""
    try:
        content = json.loads((directory / STATUS).read_text(encoding="utf-8"))
        return interpret(content, lambda: silence(directory)) if isinstance(content, dict) else None
    except (OSError, ValueError, KeyError):
        return None


def records_in(sweep: Path) -> Iterator[tuple[Path, Status]]:
    """The records directly below a sweep's directory, by name."""
    for path in sorted(sweep.glob(f"*/{STATUS}")):
        status = read_status(path.parent)
        if status is not None:
            yield path.parent, status
