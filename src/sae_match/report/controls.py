"""The controls of each job in one table: how every other way to match does on the same tokens, and by how much less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .directions import titled
from .records import Record
from .tables import format_value, markdown_table

MATCHED = "matched"
SPLICE = "encode_permute_decode"
USUAL = ("vanilla", "random")
CONTROLS = ("vanilla", "random", "greedy", "nearest", "mutual", "cosine", "correlation", "linear_map")
METRICS = ("matching_score", "explained_variance", "delta_loss")
"""Metrics that every one-to-one control has; the linear map has no matching score, since it pairs no features."""
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
    found = [control_rows(record.name, record.metrics) for record in records if record.state == "done"]
    return _framed([row for rows in found for row in rows])


def control_frame(job: str, metrics: Mapping[str, Any]) -> pd.DataFrame:
    """`controls_frame` of one job.

    Args:
        metrics: as in its metrics.json.
    """
    return _framed(control_rows(job, metrics))


def control_rows(job: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one job; none where it measured no control beyond the usual two."""
    if not any(_measured(metrics, name) for name in CONTROLS if name not in USUAL):
        return []
    names = [MATCHED, *CONTROLS]
    return [_row(job, metrics, name, metric) for name in names if _measured(metrics, name) for metric in METRICS]


def _framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["job", "control", "metric", *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def _name(metric: str, control: str) -> str:
    """The control's name in metrics.json."""
    if metric == "matching_score":
        return metric if control == MATCHED else f"{metric}/{control}"
    if control == "linear_map":
        return f"{metric}/{control}"
    return f"{metric}/{SPLICE}" + ("" if control == MATCHED else f"_{control}")


def _measured(metrics: Mapping[str, Any], control: str) -> bool:
    return any(metrics.get(_name(metric, control)) is not None for metric in METRICS)


def _row(job: str, metrics: Mapping[str, Any], control: str, metric: str) -> dict[str, Any]:
    name = _name(metric, control)
    difference = name.replace(metric, f"{metric}_difference", 1)
    found = [name, f"{name}_low", f"{name}_high", difference, f"{difference}_low", f"{difference}_high"]
    numbers = dict(zip(NUMBERS, (metrics.get(key) for key in found), strict=True))
    return {"job": job, "control": control, "metric": metric, **numbers}


def controls_table(frame: pd.DataFrame) -> str:
    """The frame as Markdown, a row per job and control."""
    header, rows = controls_rows(frame)
    return markdown_table(header, rows, right=header[2:])


def controls_rows(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text: two columns per metric, its value and the difference to the matching."""
    metrics = [name for name in METRICS if frame.loc[frame["metric"] == name, "value"].notna().any()]
    header = ["job", "control"]
    for name in metrics:
        header += [titled(name), f"matched less control, {name}"]
    rows = []
    for (job, control), group in frame.groupby(["job", "control"], sort=False):
        by_metric = {entry["metric"]: entry for entry in group.to_dict("records")}
        cells = [str(job), str(control)]
        for name in metrics:
            entry = by_metric[name]
            cells.append(_text(entry, "value", "low", "high"))
            cells.append(_text(entry, "difference", "difference_low", "difference_high"))
        rows.append(cells)
    return header, rows


def _text(entry: dict[Any, Any], *names: str) -> str:
    value, low, high = (None if pd.isna(entry[name]) else entry[name] for name in names)
    return format_value(value, low, high)
