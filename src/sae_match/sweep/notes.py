"""Notes of a sweep's jobs, on disk below its directory: it does not matter which launcher runs a job, or where.

.jobs/sweep.json     the jobs that the launch consists of, written before the first one starts
.jobs/NUMBER.json    what became of each: its record, and whether it ran or was found finished
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_match.files import format_duration, write_json

NOTES, PLANNED = ".jobs", "sweep.json"


def begin(sweep: Path, jobs: list[list[str]]) -> None:
    """Start the notes of a launch."""
    for path in (sweep / NOTES).glob("[0-9]*.json"):
        path.unlink(missing_ok=True)
    write_json(sweep / NOTES / PLANNED, jobs)


def note_job(sweep: Path, number: int, overrides: Sequence[str], record: Path, action: str) -> None:
    """Note where a job's record is and what happens to it, before it runs."""
    if record.absolute().is_relative_to(sweep):
        record = record.absolute().relative_to(sweep)  # so that a sweep's directory can be moved
    content = {"job": number, "overrides": list(overrides), "action": action, "error": None, "record": str(record)}
    write_json(sweep / NOTES / f"{number}.json", content)


def note_error(sweep: Path, number: int, overrides: Sequence[str], error: str) -> None:
    """Note what ended a job, also one that ended before its record was known."""
    path = sweep / NOTES / f"{number}.json"
    note = read_note(path) or {"job": number, "overrides": list(overrides), "action": None, "record": None}
    write_json(path, {**note, "error": error})


def read_note(path: Path) -> Any:
    """A note's content; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_notes(sweep: Path) -> tuple[list[list[str]], dict[int, dict[str, Any] | None]]:
    """The overrides of the jobs that were planned, and the jobs' notes by number."""
    noted = {int(path.stem): read_note(path) for path in (sweep / NOTES).glob("[0-9]*.json")}
    return read_note(sweep / NOTES / PLANNED) or [], noted


def progress_line(sweep: Path, number: int, now: float | None = None) -> str:
    """One line for the job `number` (from 0), which begins: `job 3 of 12, about 14 min left`.

    The time left is that of the jobs that ran so far in this launch, per job, times the jobs that are left; jobs that
    were found finished count as neither. It is named once one job has ended.

    Args:
        sweep: the sweep's directory.
        now: seconds since the epoch; None = now.
    """
    planned, noted = read_notes(sweep)
    if not planned:
        return f"job {number + 1}"
    line = f"job {number + 1} of {len(planned)}"
    ended = [note for note in noted.values() if note and _has_ended(sweep, note)]
    ran = sum(note.get("action") == "run" for note in ended)
    elapsed = (time.time() if now is None else now) - (sweep / NOTES / PLANNED).stat().st_mtime
    if not ran or elapsed <= 0:
        return line
    return f"{line}, about {format_duration(max(1.0, elapsed / ran * (len(planned) - len(ended))))} left"


def _has_ended(sweep: Path, note: dict[str, Any]) -> bool:
    """Whether a noted job is over: found finished, failed, or so by its record."""
    if note.get("action") != "run" or note.get("error") is not None:
        return True
    status = read_note(sweep / str(note["record"]) / "status.json") if note.get("record") else None
    return isinstance(status, dict) and status.get("seconds") is not None
