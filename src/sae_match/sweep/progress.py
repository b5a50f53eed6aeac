"""Where a sweep stands when one of its jobs begins: `job 3 of 12, about 14 min left`.

Everything comes from the notes that jobs leave below the sweep's directory, so it holds for every launcher.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sae_match.record.state import STATUS
from sae_match.sweep.notes import NOTES, PLANNED, read_note


def progress_line(sweep: Path, number: int, now: float | None = None) -> str:
    """One line for the job `number` (from 0), which begins.

    The time left is that of the jobs that ran so far in this launch, per job, times the jobs that are left; jobs that
    were found finished count as neither. It is named once one job has ended.

    Args:
        sweep: the sweep's directory.
        now: seconds since the epoch; None = now.
    """
    planned = read_note(sweep / NOTES / PLANNED)
    if not planned:
        return f"job {number + 1}"
    line = f"job {number + 1} of {len(planned)}"
    notes = [read_note(path) for path in (sweep / NOTES).glob("[0-9]*.json")]
    ended = [note for note in notes if note and _has_ended(sweep, note)]
    ran = sum(note.get("action") == "run" for note in ended)
    elapsed = (time.time() if now is None else now) - (sweep / NOTES / PLANNED).stat().st_mtime
    if not ran or elapsed <= 0:
        return line
    return f"{line}, about {duration(elapsed / ran * (len(planned) - len(ended)))} left"


def duration(seconds: float) -> str:
    """A rough duration: `40 s`, `14 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _has_ended(sweep: Path, note: dict[str, Any]) -> bool:
    """Whether a noted job is over: found finished, failed, or its record says so."""
    if note.get("action") != "run" or note.get("error") is not None:
        return True
    status = read_note(sweep / str(note["record"]) / STATUS) if note.get("record") else None
    return isinstance(status, dict) and status.get("seconds") is not None
