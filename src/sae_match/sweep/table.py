"""The table that a sweep ends with: every job of the launch, by number, as the files on disk and Slurm's queue show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.files import write_json, write_text
from sae_match.record.labels import joined
from sae_match.record.slurm import JobState, job_state
from sae_match.record.state import STATUS
from sae_match.report.records import BAD_STATES, Record, comparison_keys, read_record, setting
from sae_match.report.tables import format_value, markdown_table
from sae_match.sweep.notes import read_notes, submitted

NOT_STARTED, WAITING = "not started", "waiting"


@dataclass(frozen=True)
class SweepJob:
    """One job of a launch.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: what its command line sets.
        action: run, skip (was finished), report (rerun=none), or None where it never began.
        record: what its directory holds; None where there is no record.
        error: what ended it, also where it could not write a record, or was refused the place of another job's.
        slurm: Slurm's name for it, such as 23_1.
        queue: what Slurm says of it; None where it cannot be asked.
    """

    number: int
    overrides: Sequence[str]
    action: str | None = None
    record: Record | None = None
    error: str | None = None
    slurm: str | None = None
    queue: JobState | None = None

    @property
    def state(self) -> str:
        """done, failed, killed, running, unreadable, `waiting` (in Slurm's queue, also to be started again), or `not
        started`."""
        recorded = None if self.record is None else self.record.state
        if self.queue is not None and not self.queue.ended and recorded in (None, "killed"):
            return WAITING
        if self.error is not None and recorded not in BAD_STATES:
            return "failed"
        if recorded is None and self.queue is not None:
            return "failed" if self.queue.state == "FAILED" else "killed"
        return recorded or NOT_STARTED

    @property
    def reason(self) -> str | None:
        """What ended it, or what it waits for, in one line; None where there is nothing to say."""
        if self.state == WAITING or (self.error is None and self.record is None and self.queue is not None):
            return f"Slurm's job {self.slurm} is {self.queue}"
        # An error of its own comes first: the record in its place may be another job's.
        text = self.error or (None if self.record is None else self.record.error)
        return None if text is None else text.partition("\n")[0]


def jobs_of(sweep: Path) -> list[SweepJob]:
    """The jobs of the last launch in a directory, by number, as the files there, and Slurm's queue, show now."""
    planned, noted = read_notes(sweep)
    jobs = []
    for number in sorted({*range(len(planned)), *noted}):
        overrides = planned[number] if number < len(planned) else []
        note = noted.get(number) or {"overrides": overrides, "action": None, "record": None, "error": None}
        directory = sweep / (note["record"] or "")
        there = note["record"] is not None and (directory / STATUS).exists()
        record = read_record(directory, str(number)) if there else None
        name = submitted(sweep, number, note["overrides"])
        queue = None if name is None else job_state(name)
        jobs.append(SweepJob(number, note["overrides"], note["action"], record, note["error"], name, queue))
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
        metrics = record.metrics if record is not None and job.state == "done" else {}
        rows.append(
            {"job": job.number, "state": job.state, "action": job.action}
            | {key: None if record is None else setting(record, key) for key in keys}
            | {name: metrics.get(name) for name in numbers}
            | {
                "seconds": None if record is None else record.seconds,
                "error": job.reason,
                "slurm": job.slurm,
                "record": None if record is None else str(record.path),
                "overrides": list(job.overrides),
            }
        )
    return rows


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, with a line that counts states."""
    hidden = {"record", "overrides", "action"} | ({"slurm"} if all(row["slurm"] is None for row in rows) else set())
    header = [name for name in (rows[0] if rows else {}) if name not in hidden]
    cells = [[_cell(name, row) for name in header] for row in rows]
    states = [row["state"] for row in rows]
    skipped = sum(row["action"] == "skip" for row in rows)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    note = f" ({skipped} of them already done before)" if skipped else ""
    jobs = f"{len(rows)} job{'' if len(rows) == 1 else 's'}"
    text = f"{jobs}: {counts}{note}\n\n{markdown_table(header, cells, right=['seconds'])}"
    return text if "slurm" in hidden else f"{text}\nLogs: .submitit/<slurm>/ in the sweep's directory\n"


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
