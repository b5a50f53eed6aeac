"""The controls of each job: how every other way to match does on the same tokens, and by how much less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..metrics.description import CEILING, DIFFERENCE, MATCHED, Description, headline_name
from ..record.labels import BUILT_IN_LABELS, Labels
from .canvas import is_beyond
from .records import Record

USUAL = ("vanilla", "random")
CONTROLS = (*USUAL, "frequency", "greedy", "nearest", "mutual", "cosine", "correlation", "linear_map")
"""The package's own, in the order of the table; those of users follow by name."""
NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high")
NOTE = (
    "Means over the span's layer pairs on the same tokens, with 95 % intervals over documents. Beside each metric: "
    "what the job's own matching has more than the control, with the interval of the paired difference. "
    "Controls that read activations are fitted on text that is not evaluated."
)


def controls_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per job, variant and metric, of jobs that measured a control beyond `vanilla` and `random`.

    Columns: job, control (`matched` first, then as in `CONTROLS`), metric, value, low, high, and the matching's value
    less the control's with its interval (missing for the matching itself). Means over layer pairs as in metrics.json.
    """
    rows = [row for record in records if record.state == "done" for row in _rows(record)]
    frame = pd.DataFrame(rows, columns=["job", "control", "metric", *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def control_frame(job: str, metrics: Mapping[str, Any], labels: Labels = BUILT_IN_LABELS) -> pd.DataFrame:
    """`controls_frame` of one job, from the content of its metrics.json."""
    return controls_frame([Record(job, Path(), "done", metrics=metrics, labels=labels)])


def _rows(record: Record) -> list[dict[str, Any]]:
    """The rows of one job; none where it measured no control beyond the usual two. A control that pairs no features
    has no matching score."""
    metrics = record.metrics
    measured = {record.labels.split(name)[0].name for name in metrics}
    shown = [record.labels.metrics[name] for name in record.labels.against_controls if name in measured]
    # Further controls that pair features are the other variants with a score of their own.
    paired = {about.name for about in shown if about.reference == MATCHED}
    parts = (name.rpartition("/") for name in metrics if not name.endswith(("_low", "_high")))
    added = sorted({variant for metric, _, variant in parts if metric in paired} - {*CONTROLS, CEILING})
    every = [
        (control, about.name, _number_name(about, control, metrics))
        for control in (MATCHED, *CONTROLS, *added)
        for about in shown
    ]
    measured = {control for control, _, name in every if metrics.get(name) is not None}
    if measured <= {MATCHED, *USUAL}:
        return []
    rows = []
    for control, metric, name in every:
        less = name.replace(metric, metric + DIFFERENCE, 1)
        keys = (name, f"{name}_low", f"{name}_high", less, f"{less}_low", f"{less}_high")
        numbers = dict(zip(NUMBERS, map(metrics.get, keys), strict=True))
        rows += [{"job": record.name, "control": control, "metric": metric, **numbers}] if control in measured else []
    return rows


def _number_name(about: Description, control: str, metrics: Mapping[str, Any]) -> str:
    """The control's name in metrics.json: a permutation's own, that of the splice along it, or that of a splice."""
    if control == MATCHED:
        return headline_name(about.name, about.reference)
    along = f"{about.name}/{about.reference}_{control}"
    return along if about.reference != MATCHED and along in metrics else f"{about.name}/{control}"


def drawn_rows(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS) -> pd.DataFrame:
    """The rows of `controls_frame` that the figure draws: without splices of `vanilla` and `random` that explain so
    much less than nothing that the others would look alike. The figure has their numbers as text."""
    rows = frame[frame["value"].notna()]
    usual = rows["control"].isin(USUAL)
    far = [
        place
        for (name, control), own in rows[usual].groupby(["metric", "control"], sort=False)
        if labels.metric(str(name)).reference != MATCHED
        and is_beyond(own["value"].tolist(), rows.loc[~usual & (rows["metric"] == name), "value"].tolist())
        for place in own.index
    ]
    return rows.drop(index=far).reset_index(drop=True)
