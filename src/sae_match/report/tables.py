"""Tables of records, each made once for Markdown and for HTML: the same records give the same bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_match.files import atomic_path

from ..metrics.description import CEILING
from ..record.contents import METRICS, PAIRS
from ..record.labels import BUILT_IN_LABELS, Labels
from .controls import NUMBERS
from .records import BAD_STATES, Record, comparison_keys, setting, shared

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """A table cell: plain text, escaped where it is rendered. The rest is for HTML: the number to sort by, where the
    number comes from (shown on hovering), a relative path that the text links to, and the CSS class."""

    text: str
    sort: float | None = None
    title: str = ""
    href: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a note on how it is to be read; `numbers` names the columns that align right, `filters` those that
    have a choice of their values in HTML."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Collection[str] = ()
    filters: Sequence[str] = ()
    note: str = ""

    @property
    def markdown(self) -> str:
        """The cells' texts as a Markdown table."""
        return markdown_table(self.header, [[cell.text for cell in row] for row in self.rows], self.numbers)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """A pipe table, columns padded so that the source reads well; the columns named in `right` align right."""
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * (width - 1) + (":" if name in right else "-") for name, width in zip(header, widths, strict=True)]
    lines = [cells[0], rule, *cells[1:]]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded) + "\n"


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def format_value(value: Any, low: Any = None, high: Any = None) -> str:
    """Three or four significant digits; with an interval, `value [low, high]`, all to as many decimals.

    Numbers below 1e-3 or from 1e5 up are written with an exponent.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, float if low is None else (int, float)):
        return str(value)
    size = max(abs(number) for number in (value, low, high) if number is not None)
    if size and not 1e-3 <= size < 1e5:
        pattern = "{:.3e}"
    else:
        magnitude = math.floor(math.log10(size)) if size else 0
        pattern = f"{{:.{max(0, 3 - magnitude) if magnitude >= 0 else 2 - magnitude}f}}"
    text = pattern.format(value)
    return text if low is None or high is None else f"{text} [{pattern.format(low)}, {pattern.format(high)}]"


def format_row(row: Mapping[Any, Any], value: str, low: str, high: str) -> str:
    """`format_value` of three columns of a frame's row, where missing numbers are NaN."""
    return format_value(*(None if pd.isna(row[name]) else row[name] for name in (value, low, high)))


def titled(name: str, labels: Labels = BUILT_IN_LABELS) -> str:
    """The name of a headline number as a column's heading: marked where the lower value is the better one."""
    return f"{name} ↓" if labels.of_number(name).better == "lower" else name


def headline_names(records: Sequence[Record], labels: Labels, asked: Sequence[str] | None = None) -> list[str]:
    """The names asked for, or the usual ones, that any record has."""
    return [name for name in asked or labels.columns if any(record.metrics.get(name) is not None for record in records)]


def legend(names: Sequence[str], labels: Labels) -> str:
    """What the columns show: label and unit of each metric that a name is no substitute for."""
    metrics = {about.name: about for about in map(labels.of_number, names)}
    parts = [f"{name}: {about.axis}" for name, about in metrics.items() if about.axis != name]
    if any(labels.split(name)[1] == CEILING for name in names):
        parts.append(f"{CEILING}: two seeds of one layer, a reference and no bound")
    return f"{'; '.join(parts)}." if parts else ""


def settings_of_all(records: Sequence[Record], quote: str = "") -> str:
    """A sentence with the settings that every record has; empty where there are none."""
    same = shared([record.factors for record in records if record.config])
    listed = ", ".join(f"{quote}{key}={value}{quote}" for key, value in same.items())
    return f"Settings of every job: {listed}." if listed else ""


def relative(record: Record, folder: Path) -> str:
    """The record's directory, relative to the folder of the report (both without symbolic links)."""
    return Path(os.path.relpath(record.path, folder)).as_posix()


def _job(record: Record, folder: Path) -> Cell:
    return Cell(record.name, href=relative(record.sources[0], folder))


def _settings(record: Record, keys: Sequence[str]) -> list[Cell]:
    return [Cell(str(setting(record, key)) if record.config else ABSENT) for key in keys]


def _begin(record: Record, keys: Sequence[str], folder: Path) -> list[Cell]:
    """The first cells of a row: job, state, settings."""
    state = Cell(record.outcome, kind="bad" if record.state in BAD_STATES else "")
    return [_job(record, folder), state, *_settings(record, keys)]


def _seconds(record: Record) -> Cell:
    return Cell(ABSENT) if record.seconds is None else Cell(f"{record.seconds:.1f}", sort=float(record.seconds))


def _number(record: Record, name: str, folder: Path, place: str | None = None) -> Cell:
    """A headline number with its interval (and rank); the state where the job has not finished and has none."""
    value = record.metrics.get(name) if place is None else record.number(name)
    if value is None and record.state != "done":
        return Cell(record.outcome, title=record.reason, kind="bad" if record.state in BAD_STATES else "")
    text = format_value(value, record.metrics.get(f"{name}_low"), record.metrics.get(f"{name}_high"))
    if value is None:
        return Cell(text)
    if record.parts:
        places = ", ".join(f"{relative(part, folder)}/{PAIRS}" for part in record.parts)
        source = f"{name}: mean over the pairs of {places}"
    else:
        source = f"{name} in {relative(record, folder)}/{METRICS} (job {record.name}); per pair in {PAIRS} beside it"
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    text, kind = (f"{text} {place}", "first" if place == "#1" else "") if place else (text, "")
    return Cell(text, float(value) if plain else None, source, kind=kind)


def jobs_table(jobs: Sequence[Record], folder: Path) -> Table:
    """Every job with its state, settings, error, and links to its files."""
    keys = comparison_keys(jobs)
    rows = []
    for job in jobs:
        unknown = "no reason recorded" if job.state in BAD_STATES else ""
        reason = Cell(job.reason or unknown, title=job.error or "", kind="error")
        there = {name: (job.path / name).is_file() for name in (METRICS, PAIRS)}
        files = [Cell(name, href=f"{relative(job, folder)}/{name}") if there[name] else Cell(ABSENT) for name in there]
        rows.append([*_begin(job, keys, folder), _seconds(job), reason, *files])
    states = pd.Series([job.outcome for job in jobs]).value_counts().sort_index()
    note = ", ".join(f"{count} {state}" for state, count in states.items()) + "."
    header = ["job", "state", *keys, "seconds", "error", "metrics", "pairs"]
    return Table(header, rows, ["seconds"], ["state", *keys], note)


def comparison_table(records: Sequence[Record], names: Sequence[str], labels: Labels, folder: Path) -> Table:
    """One row per job with the settings that vary and headline numbers."""
    keys = comparison_keys(records)
    rows = [
        [*_begin(record, keys, folder), *(_number(record, name, folder) for name in names), _seconds(record)]
        for record in records
    ]
    header = ["job", "state", *keys, *names, "seconds"]
    return Table(header, rows, [*names, "seconds"], ["state", *keys], legend(names, labels))


def summary_table(
    records: Sequence[Record], metrics: Sequence[str] | None = None, labels: Labels = BUILT_IN_LABELS
) -> str:
    """Markdown: one row per job with the settings that vary and the headline metrics (or those named) as
    `value [low, high]`. What is the same in every job stands once, above the table. Jobs that did not finish keep their
    row, with their state in bold and in place of every number."""
    names = headline_names(records, labels, metrics)
    finished = [record for record in records if record.state == "done"]
    texts = [{name: _number(record, name, Path()).text for name in names} for record in finished]
    common = shared(texts) if len(finished) > 1 else {}
    table = comparison_table(records, [name for name in names if name not in common], labels, Path())
    rows = [
        [f"**{cell.text}**" if i == 1 and cell.kind == "bad" else cell.text for i, cell in enumerate(row)]
        for row in table.rows
    ]
    same = ", ".join(f"{key} {text}" for key, text in common.items())
    above = [settings_of_all(records, "`"), f"Same in every finished job: {same}." if same else ""]
    below = legend([*common, *(name for name in names if name not in common)], labels)
    return (
        "".join(f"{line}\n\n" for line in above if line)
        + markdown_table(table.header, rows, table.numbers)
        + (f"\n{below}\n" if below else "")
    )


def comparison_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Everything as one wide table: job, state, error, seconds, the factors, every metric (sorted by name)."""
    keys = comparison_keys(records)
    rows = []
    for record in records:
        row = {"job": record.name, "state": record.outcome, "error": record.error, "seconds": record.seconds}
        rows.append(row | {key: setting(record, key) for key in [*record.factors, *keys]})
    metrics = sorted({name for record in records for name in record.metrics})
    numbers = pd.DataFrame([{name: record.metrics.get(name) for name in metrics} for record in records])
    return pd.concat([pd.DataFrame(rows), numbers.reindex(columns=metrics)], axis=1)


def _place(row: Mapping[Any, Any], name: str) -> str:
    """A job's rank, or why it has none; nothing where no other job is over its layers."""
    if not pd.isna(rank := row[f"{name}_rank"]):
        return f"#{rank}"
    return "(no interval)" if pd.isna(row[f"{name}_low"]) else ""


def ablation_table(
    records: Sequence[Record], frame: pd.DataFrame, metrics: Sequence[str], labels: Labels, folder: Path, note: str = ""
) -> Table:
    """One row per job of `ablation_frame`: the settings that vary, then value, interval and rank of each metric."""
    keys = comparison_keys(records)
    rows = []
    for record, row in zip(records, frame.to_dict("records"), strict=True):
        numbers = [_number(record, name, folder, _place(row, name)) for name in metrics]
        rows.append([*_settings(record, keys), *numbers, _job(record, folder)])
    titles = [titled(name, labels) for name in metrics]
    return Table([*keys, *titles, "job"], rows, titles, keys, note)


def effects_table(
    frame: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS, note: str = ""
) -> Table:
    """One row per contrast of `effects_frame`, below it those at the levels of other factors; a column per metric."""
    rows = []
    for (factor, level, reference, where), group in frame.groupby(
        ["factor", "level", "reference", "where"], sort=False
    ):
        missing = int(group["unmatched"].iloc[0])
        count = f"{group['cells'].max()} (+{missing} without partner)" if missing else str(group["cells"].max())
        found = {row["metric"]: row for row in group.to_dict("records")}
        numbers = [_effect(found[name]) for name in metrics]
        rows.append(
            [Cell(str(factor)), Cell(f"{level} − {reference}"), Cell(str(where) or "all"), Cell(count), *numbers]
        )
    titles = [titled(name, labels) for name in metrics]
    return Table(["factor", "levels", "where", "cells", *titles], rows, titles, ["factor", "where"], note)


def _effect(row: Mapping[Any, Any]) -> Cell:
    """`+0.012 [low, high]` with an interval, `+0.012 (smallest … largest)` without; with * where it depends on another
    factor."""
    title = f"{row['metric']}: {row['jobs']}"
    if row["cells"] == 0:
        return Cell(ABSENT, title=title)
    text = ("+" if row["effect"] > 0 else "") + format_row(row, "effect", "low", "high")
    if pd.isna(row["low"]) and row["cells"] > 1:
        text += f" ({format_value(row['smallest'])} … {format_value(row['largest'])})"
    if row["depends_on"]:
        text, title = f"{text} *", f"{title}; depends on {row['depends_on']}"
    return Cell(text, float(row["effect"]), title)


def controls_table(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS, note: str = "") -> Table:
    """A row per job and control of `controls_frame`; two columns per metric, its value and the difference to the
    matching."""
    metrics = list(dict.fromkeys(frame.loc[frame["value"].notna(), "metric"]))
    header = ["job", "control"]
    for name in metrics:
        header += [titled(name, labels), f"matched less control, {name}"]
    rows = []
    for (job, control), group in frame.groupby(["job", "control"], sort=False):
        by_metric = {entry["metric"]: entry for entry in group.to_dict("records")}
        cells = [Cell(str(job)), Cell(str(control))]
        for name in metrics:
            for value in ("value", "difference"):
                ends = ("low", "high") if value == "value" else ("difference_low", "difference_high")
                entry = by_metric.get(name, dict.fromkeys(NUMBERS))
                text = format_row(entry, value, *ends)
                cells.append(Cell(text, None if text == ABSENT else float(entry[value])))
        rows.append(cells)
    return Table(header, rows, header[2:], header[:2], note)
