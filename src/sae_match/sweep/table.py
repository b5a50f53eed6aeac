"""The table that a sweep ends with: every job of the launch, by number, as the files on disk tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_match.files import write_json, write_text
from sae_match.record.labels import joined
from sae_match.report.records import comparison_keys, setting
from sae_match.report.tables import format_value, markdown_table
from sae_match.sweep.notes import NOT_STARTED, SweepJob, jobs_of

TABLE_JSON, TABLE_MD = "sweep.json", "sweep.md"


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
        row = {"job": job.number, "state": job.state, "action": job.action}
        row |= {key: None if record is None else setting(record, key) for key in keys}
        done = record is not None and job.state == "done"
        row |= {name: record.metrics.get(name) if done and record is not None else None for name in numbers}
        row["seconds"] = None if record is None else record.seconds
        row["error"] = None if error is None else error.partition("\n")[0]
        rows.append({**row, "record": None if record is None else str(record.path), "overrides": list(job.overrides)})
    return rows


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, with a line that counts states."""
    hidden = ("record", "overrides", "action")
    header = [name for name in (rows[0] if rows else {}) if name not in hidden]
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
    if name == "error" and row["state"] == NOT_STARTED:
        return " ".join(row["overrides"])
    if name == "error":
        return value or ""
    return f"{value:.1f}" if name == "seconds" and value is not None else format_value(value)


def write_table(sweep: Path) -> list[dict[str, Any]]:
    """Write sweep.json and sweep.md from what is on disk now, and return the rows; for any launcher, at any time."""
    rows = table(jobs_of(sweep))
    write_json(sweep / TABLE_JSON, rows)
    write_text(sweep / TABLE_MD, f"# Sweep {sweep.name}\n\n{render(rows)}")
    return rows
