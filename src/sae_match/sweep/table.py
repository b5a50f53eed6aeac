"""The table that a sweep ends with: every job of the launch, by number, as the files on disk show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.files import write_json, write_text
from sae_match.record.labels import joined
from sae_match.record.state import STATUS
from sae_match.report.records import BAD_STATES, Record, comparison_keys, read_record, setting
from sae_match.report.tables import format_value, markdown_table
from sae_match.sweep.notes import read_notes

NOT_STARTED = "not started"


@dataclass(frozen=True)
class SweepJob:
    """One job of a launch.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: what its command line sets.
        action: run, skip (was finished), report (rerun=none), or None where it never began.
        record: what its directory holds; None where there is no record.
        error: what ended it, also where it could not write a record, or was refused the place of another job's.
    """

    number: int
    overrides: Sequence[str]
    action: str | None = None
    record: Record | None = None
    error: str | None = None

    @property
    def state(self) -> str:
        """done, failed, killed, running, unreadable, or `not started`."""
        recorded = None if self.record is None else self.record.state
        if self.error is not None and recorded not in BAD_STATES:
            return "failed"
        return recorded or NOT_STARTED


def jobs_of(sweep: Path) -> list[SweepJob]:
    """The jobs of the last launch in a directory, by number, as the files there show now."""
    planned, noted = read_notes(sweep)
    jobs = []
    for number in sorted({*range(len(planned)), *noted}):
        note = noted.get(number)
        if note is None:
            jobs.append(SweepJob(number, planned[number] if number < len(planned) else []))
            continue
        directory = sweep / (note["record"] or "")
        there = note["record"] is not None and (directory / STATUS).exists()
        record = read_record(directory, str(number)) if there else None
        jobs.append(SweepJob(number, note["overrides"], note["action"], record, note["error"]))
    return jobs


def table(jobs: Sequence[SweepJob]) -> list[dict[str, Any]]:
    """One row per job: number, state, action, factors that vary, headline numbers, seconds, first line of the error."""
    records = [job.record for job in jobs if job.record is not None]
    keys = comparison_keys(records)
    labels = joined(record.labels for record in records)
    numbers = [name for name in labels.headlines if any(name in record.metrics for record in records)]
    rows = []
    for job in jobs:
        record = job.record
        # An error of its own comes first: the record in its place may be another job's.
        error = job.error or (None if record is None else record.error)
        metrics = record.metrics if record is not None and job.state == "done" else {}
        rows.append(
            {"job": job.number, "state": job.state, "action": job.action}
            | {key: None if record is None else setting(record, key) for key in keys}
            | {name: metrics.get(name) for name in numbers}
            | {
                "seconds": None if record is None else record.seconds,
                "error": None if error is None else error.partition("\n")[0],
                "record": None if record is None else str(record.path),
                "overrides": list(job.overrides),
            }
        )
    return rows


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, with a line that counts states."""
    header = [name for name in (rows[0] if rows else {}) if name not in ("record", "overrides", "action")]
    cells = [[_cell(name, row) for name in header] for row in rows]
    states = [row["state"] for row in rows]
    skipped = sum(row["action"] == "skip" for row in rows)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    note = f" ({skipped} of them already done before)" if skipped else ""
    return f"{len(rows)} jobs: {counts}{note}\n\n{markdown_table(header, cells, right=['seconds'])}"


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if name == "job":
        return str(value)
    if name == "state":
        return str(value) if value == "done" else f"**{value}**"
    if name == "error":
        return " ".join(row["overrides"]) if row["state"] == NOT_STARTED else value or ""
    return f"{value:.1f}" if name == "seconds" and value is not None else format_value(value)


def write_table(sweep: Path) -> list[dict[str, Any]]:
    """Write sweep.json and sweep.md from what is on disk now, and return the rows; for any launcher, at any time."""
    rows = table(jobs_of(sweep))
    write_json(sweep / "sweep.json", rows)
    write_text(sweep / "sweep.md", f"# Sweep {sweep.name}\n\n{render(rows)}")
    return rows
