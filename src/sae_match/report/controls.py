"""The controls of each job in one table: how every other way to match does on the same tokens, and by how much less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..metrics.description import CEILING, DIFFERENCE, MATCHED, Description, headline_name
from ..record.labels import BUILT_IN_LABELS, Labels
from .records import Record
from .tables import format_value, markdown_table, titled

USUAL = ("vanilla", "random")
CONTROLS = (*USUAL, "greedy", "nearest", "mutual", "cosine", "correlation", "linear_map")
"""The package's own, in the order of the table; those of users follow by name."""
NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high")
NOTE = (
    "Means over the span's layer pairs on the same tokens, with 95 % intervals over documents. Beside each metric: "
    "what the job's own matching has more than the control, with the interval of the paired difference. "
    "`correlation` and `linear_map` are fitted on text that is not evaluated."
)


def controls_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per job, variant and metric, of jobs that measured a control beyond `vanilla` and `random`.

    Columns: job, control (`matched` first, then as in `CONTROLS`), metric, value, low, high, and the matching's value
    less the control's with its interval (missing for the matching itself). Means over layer pairs as in metrics.json.
    """
    found = [control_rows(record.name, record.metrics, record.labels) for record in records if record.state == "done"]
    return _framed([row for rows in found for row in rows])


def control_frame(job: str, metrics: Mapping[str, Any], labels: Labels = BUILT_IN_LABELS) -> pd.DataFrame:
    """`controls_frame` of one job.

    Args:
        metrics: as in its metrics.json.
    """
    return _framed(control_rows(job, metrics, labels))


def control_rows(job: str, metrics: Mapping[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """The rows of one job; none where it measured no control beyond the usual two. A control that pairs no features
    has no matching score."""
    shown = [labels.metrics[name] for name in labels.against_controls]
    controls = (MATCHED, *CONTROLS, *_added(metrics, shown))
    every = {name: [_name(about, name, metrics) for about in shown] for name in controls}
    measured = {name: found for name, found in every.items() if any(metrics.get(key) is not None for key in found)}
    if measured.keys() <= {MATCHED, *USUAL}:
        return []
    return [
        _row(job, metrics, control, about.name, name)
        for control, names in measured.items()
        for about, name in zip(shown, names, strict=True)
    ]


def _added(metrics: Mapping[str, Any], shown: Sequence[Description]) -> list[str]:
    """Further controls that pair features: the other variants that have a score of their own."""
    paired = {about.name for about in shown if about.reference == MATCHED}
    parts = (name.rpartition("/") for name in metrics if not name.endswith(("_low", "_high")))
    return sorted({variant for metric, _, variant in parts if metric in paired} - {*CONTROLS, CEILING})


def _framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["job", "control", "metric", *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def _name(about: Description, control: str, metrics: Mapping[str, Any]) -> str:
    """The control's name in metrics.json: a permutation's own, that of the splice along it, or that of a splice."""
    if control == MATCHED:
        return headline_name(about.name, about.reference)
    along = f"{about.name}/{about.reference}_{control}"
    return along if about.reference != MATCHED and along in metrics else f"{about.name}/{control}"


def _row(job: str, metrics: Mapping[str, Any], control: str, metric: str, name: str) -> dict[str, Any]:
    difference = name.replace(metric, metric + DIFFERENCE, 1)
    found = [name, f"{name}_low", f"{name}_high", difference, f"{difference}_low", f"{difference}_high"]
    numbers = dict(zip(NUMBERS, (metrics.get(key) for key in found), strict=True))
    return {"job": job, "control": control, "metric": metric, **numbers}


def controls_table(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS) -> str:
    """The frame as Markdown, a row per job and control."""
    header, rows = controls_rows(frame, labels)
    return markdown_table(header, rows, right=header[2:])


def controls_rows(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text: two columns per metric, its value and the difference to the matching."""
    metrics = list(dict.fromkeys(frame.loc[frame["value"].notna(), "metric"]))
    header = ["job", "control"]
    for name in metrics:
        header += [titled(name, labels), f"matched less control, {name}"]
    rows = []
    for (job, control), group in frame.groupby(["job", "control"], sort=False):
        by_metric = {entry["metric"]: entry for entry in group.to_dict("records")}
        cells = [str(job), str(control)]
        for name in metrics:
            entry = by_metric.get(name, dict.fromkeys(NUMBERS, math.nan))
            cells.append(_text(entry, "value", "low", "high"))
            cells.append(_text(entry, "difference", "difference_low", "difference_high"))
        rows.append(cells)
    return header, rows


def _text(entry: dict[Any, Any], *names: str) -> str:
    value, low, high = (None if pd.isna(entry[name]) else entry[name] for name in names)
    return format_value(value, low, high)
