"""Notes of a sweep's jobs, on disk below its directory: it does not matter which launcher runs a job, or where.

.jobs/sweep.json     the jobs that the last launch consists of, written before the first one starts
.jobs/NUMBER.json    what became of each: its record, and whether it ran or was found finished
.jobs/slurm.json     jobs in Slurm's hands: [its name for the job, overrides] by number
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_match.files import format_duration, write_json

NOTES, PLANNED, SUBMITTED = ".jobs", "sweep.json", "slurm.json"


def begin(sweep: Path, jobs: list[list[str]]) -> None:
    """Start the notes of a launch; those of its jobs that Slurm has in its queue since an earlier one stay."""
    queued = {str(number): name for number, job in enumerate(jobs) if (name := in_queue(sweep, number, job))}
    for path in (sweep / NOTES).glob("[0-9]*.json"):
        if path.stem not in queued:
            path.unlink(missing_ok=True)
    if (sweep / NOTES / SUBMITTED).exists():
        write_json(sweep / NOTES / SUBMITTED, {number: [queued[number], jobs[int(number)]] for number in queued})
    write_json(sweep / NOTES / PLANNED, jobs)


def note_job(sweep: Path, number: int, overrides: Sequence[str], record: Path, action: str) -> None:
    """Note where a job's record is and what happens to it, before it runs."""
    if record.absolute().is_relative_to(sweep):
        record = record.absolute().relative_to(sweep)  # so that a sweep's directory can be moved
    _write(sweep, {"job": number, "overrides": list(overrides), "action": action, "error": None, "record": str(record)})


def note_error(sweep: Path, number: int, overrides: Sequence[str], error: str) -> None:
    """Note what ended a job, also one that ended before its record was known."""
    note = read_note(sweep / NOTES / f"{number}.json")
    if note is None or note["overrides"] != list(overrides):
        note = {"job": number, "overrides": list(overrides), "action": None, "record": None}
    _write(sweep, {**note, "error": error})


def _write(sweep: Path, note: dict[str, Any]) -> None:
    planned, number = read_note(sweep / NOTES / PLANNED), note["job"]
    if planned and planned[number : number + 1] != [note["overrides"]]:
        return  # a late job of an earlier launch: another one has its number now
    write_json(sweep / NOTES / f"{number}.json", note)


def note_submitted(sweep: Path, jobs: Mapping[int, tuple[str, list[str]]]) -> None:
    """Note Slurm's names and the overrides of jobs by number."""
    entries = {str(number): list(entry) for number, entry in jobs.items()}
    write_json(sweep / NOTES / SUBMITTED, _entries(sweep) | entries)


def submitted(sweep: Path, number: int, overrides: Sequence[str]) -> str | None:
    """Slurm's name for a job that was submitted last with this number and these overrides, such as 23_1."""
    name, given = _entries(sweep).get(str(number), (None, None))
    return name if given == list(overrides) else None


def in_queue(sweep: Path, number: int, overrides: Sequence[str]) -> str | None:
    """As `submitted`, if the job still waits or runs."""
    name = submitted(sweep, number, overrides)
    if name is None:
        return None
    from sae_match.record.slurm import job_state  # the package loads pandas

    state = job_state(name)
    return None if state is None or state.ended else name


def _entries(sweep: Path) -> dict[str, Any]:
    return read_note(sweep / NOTES / SUBMITTED) or {}


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
