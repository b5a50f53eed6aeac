"""Tables of records: pure functions, the same records give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..record.labels import BUILT_IN_LABELS, Labels
from .compare import comparison_keys, setting, shared
from .records import BAD_STATES, Record

ABSENT = "–"


def format_value(value: Any, low: Any = None, high: Any = None) -> str:
    """Three or four significant digits; with an interval, `value [low, high]`, all to as many decimals.

    Numbers below 1e-3 or from 1e5 up are written with an exponent.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) and low is None:
        return str(value)
    size = max(abs(number) for number in (value, low, high) if number is not None)
    if size and not 1e-3 <= size < 1e5:
        pattern = "{:.3e}"
    else:
        magnitude = math.floor(math.log10(size)) if size else 0
        pattern = f"{{:.{max(0, 3 - magnitude) if magnitude >= 0 else 2 - magnitude}f}}"
    text = pattern.format(value)
    return text if low is None or high is None else f"{text} [{pattern.format(low)}, {pattern.format(high)}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A pipe table, columns padded so that the source reads well; the columns named in `right` align right."""
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * (width - 1) + (":" if name in right else "-") for name, width in zip(header, widths, strict=True)]
    lines = [cells[0], rule, *cells[1:]]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded) + "\n"


def titled(name: str, labels: Labels = BUILT_IN_LABELS) -> str:
    """The name of a headline number as a column's heading: marked where the lower value is the better one."""
    return f"{name} ↓" if labels.of_number(name).better == "lower" else name


def metric_value(record: Record, name: str) -> float | None:
    """A headline number of a finished job."""
    value = record.metrics.get(name) if record.state == "done" else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def compared_names(records: Sequence[Record], labels: Labels, asked: Sequence[str] | None = None) -> list[str]:
    """The names asked for, or those of the matching that are compared, that at least two finished jobs have."""
    names = asked or labels.compared
    return [name for name in names if sum(metric_value(record, name) is not None for record in records) > 1]


def headline_names(records: Sequence[Record], labels: Labels, asked: Sequence[str] | None = None) -> list[str]:
    """The names asked for, or the usual ones, that any record has."""
    return [name for name in asked or labels.columns if any(record.metrics.get(name) is not None for record in records)]


def legend(names: Sequence[str], labels: Labels) -> str:
    """What the columns show: label and unit of each metric that a name is no substitute for."""
    metrics = {about.name: about for about in map(labels.of_number, names)}
    return "; ".join(f"{name}: {about.axis}" for name, about in metrics.items() if about.axis != name)


def summary_table(
    records: Sequence[Record], metrics: Sequence[str] | None = None, labels: Labels = BUILT_IN_LABELS
) -> str:
    """Markdown: one row per job with the settings that vary and the headline metrics as `value [low, high]`.

    What is the same in every job (settings, and metrics of every finished job) stands once, above the
    table. Jobs that did not finish keep their row, with their state in bold and in place of every number.

    Args:
        metrics: names from metrics.json, in column order; by default the headline numbers.
    """
    keys = comparison_keys(records)
    finished = [record for record in records if record.state == "done"]
    names = headline_names(records, labels, metrics)
    common = shared([_shown(record.metrics, names) for record in finished]) if len(finished) > 1 else {}
    names = [name for name in names if name not in common]
    header = ["job", "state", *keys, *names, "seconds"]
    rows = [_row(record, keys, names) for record in records]
    table = markdown_table(header, rows, right=[*names, "seconds"])
    explained = legend([*common, *names], labels)
    return _preamble(records, common) + table + (f"\n{explained}.\n" if explained else "")


def comparison_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Everything as one wide table: job, state, error, seconds, the factors, every metric (sorted by name)."""
    rows = [
        {
            "job": record.name,
            "state": record.state,
            "error": record.error,
            "seconds": record.seconds,
            **{key: setting(record, key) for key in [*record.factors, *comparison_keys(records)]},
        }
        for record in records
    ]
    metrics = sorted({name for record in records for name in record.metrics})
    numbers = pd.DataFrame([{name: record.metrics.get(name) for name in metrics} for record in records])
    return pd.concat([pd.DataFrame(rows), numbers.reindex(columns=metrics)], axis=1)


def _row(record: Record, keys: Sequence[str], names: Sequence[str]) -> list[str]:
    state = f"**{record.state}**" if record.state in BAD_STATES else record.state
    settings = [str(setting(record, key)) if record.config else ABSENT for key in keys]
    seconds = ABSENT if record.seconds is None else f"{record.seconds:.1f}"
    shown = _shown(record.metrics, names)
    numbers = [record.state if record.metrics.get(name) is None and record.state != "done" else shown[name]
               for name in names]  # fmt: skip
    return [record.name, state, *settings, *numbers, seconds]


def _shown(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {
        name: format_value(metrics.get(name), metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for name in names
    }


def _preamble(records: Sequence[Record], common: Mapping[str, str]) -> str:
    settings = shared([record.factors for record in records if record.config])
    lines = []
    if settings:
        lines.append("Settings of every job: " + ", ".join(f"`{key}={value}`" for key, value in settings.items()) + ".")
    if common:
        lines.append("Same in every finished job: " + ", ".join(f"{key} {text}" for key, text in common.items()) + ".")
    return "".join(f"{line}\n\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
