"""Notes of a sweep's jobs, on disk below its directory: it does not matter which launcher runs a job, or where.

.jobs/sweep.json     the jobs that the launch consists of, written before the first one starts
.jobs/NUMBER.json    what became of each: its record, and whether it ran or was found finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.files import write_json
from sae_match.record.state import STATUS
from sae_match.report.records import BAD_STATES, Record, read_record

NOTES, PLANNED = ".jobs", "sweep.json"
NOT_STARTED = "not started"


@dataclass(frozen=True)
class SweepJob:
    """One job of a launch.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: what its command line says.
        action: run, skip (was finished), report (rerun=none), or None where it never began.
        record: what its directory tells; None where there is no record.
        error: what ended it, also where it could not write a record, or was refused the place of another job's.
    """

    number: int
    overrides: Sequence[str]
    action: str | None
    record: Record | None
    error: str | None = None

    @property
    def state(self) -> str:
        """done, failed, killed, running, unreadable, or `not started`."""
        recorded = None if self.record is None else self.record.state
        if self.error is not None and recorded not in BAD_STATES:
            return "failed"
        return recorded or NOT_STARTED


def begin(sweep: Path, jobs: list[list[str]]) -> None:
    """Start the notes of a launch."""
    notes = sweep / NOTES
    notes.mkdir(parents=True, exist_ok=True)
    for path in notes.glob("[0-9]*.json"):
        path.unlink(missing_ok=True)
    write_json(notes / PLANNED, jobs)


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


def jobs_of(sweep: Path) -> list[SweepJob]:
    """The jobs of the last launch in a directory, by number, as the files there tell now."""
    planned = read_note(sweep / NOTES / PLANNED) or []
    noted = {int(path.stem): read_note(path) for path in (sweep / NOTES).glob("[0-9]*.json")}
    numbers = sorted({*range(len(planned)), *noted})
    return [_job(sweep, n, planned[n] if n < len(planned) else [], noted.get(n)) for n in numbers]


def _job(sweep: Path, number: int, overrides: list[str], note: Mapping[str, Any] | None) -> SweepJob:
    if note is None:
        return SweepJob(number, overrides, None, None)
    directory = None if note["record"] is None else sweep / note["record"]
    there = directory is not None and (directory / STATUS).exists()
    record = read_record(directory, str(number)) if directory is not None and there else None
    return SweepJob(number, note["overrides"], note["action"], record, note["error"])


def read_note(path: Path) -> Any:
    """A note's content; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
