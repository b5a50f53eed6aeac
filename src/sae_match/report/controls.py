"""The controls of each job: how every other way to match does on the same tokens, and by how much less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..metrics.description import CEILING, DIFFERENCE, MATCHED, Description, headline_name
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLACK, BLUE, GREY
from .canvas import drawing, is_beyond
from .records import Record

USUAL = ("vanilla", "random")
CONTROLS = (*USUAL, "frequency", "greedy", "nearest", "mutual", "cosine", "correlation", "linear_map")
"""The package's own, in the order of the table; those of users follow by name."""
NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high")
PANEL_INCHES = 2.1
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


def plot_controls(frame: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of the matching (a line through all rows) and every control as dots with intervals: a row per
    control, a panel per metric; a value that is off its axis as text. `frame`: one job's rows of `controls_frame`."""
    frame = frame[frame["value"].notna()]
    rows = drawn_rows(frame, labels)
    names = list(dict.fromkeys(frame["control"]))
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    with drawing(path, (0.9 + PANEL_INCHES * len(metrics), 1.0 + 0.24 * len(names)), title) as figure:
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            for control, *numbers in rows.loc[rows["metric"] == metric, ["control", *NUMBERS[:3]]].to_numpy().tolist():
                value, low, high = (float(number) for number in numbers)
                sides = np.clip([[value - low], [high - value]], 0, None)
                color = BLUE if control == MATCHED else BLACK
                if control == MATCHED:
                    ax.axvline(value, color=GREY, linestyle=":", linewidth=1.0)
                ax.errorbar(value, names.index(control), xerr=sides, fmt="o", color=color, capsize=2, linewidth=1)
            drawn = rows[rows["metric"] == metric]
            for _, left in frame[frame["metric"] == metric].iterrows():
                if left["control"] not in set(drawn["control"]):
                    _write_off_axis(ax, left["value"], names.index(left["control"]), drawn["value"].min())
            ax.grid(axis="x")
            ax.grid(visible=False, axis="y")
            ax.margins(x=0.12)
            ax.set_xlabel(labels.metric(metric).axis)
        axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes[0].invert_yaxis()
    return path


def _write_off_axis(ax: Axes, value: float, row: int, low: float) -> None:
    """A value that is off the axis, as text with an arrow at the end of the axis beyond which it lies."""
    below = value < low
    text, x, side = (f"◀ {value:.3g}", 0.02, "left") if below else (f"{value:.3g} ▶", 0.98, "right")
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    ax.text(x, row, text, transform=ax.get_yaxis_transform(), ha=side, va="center", fontsize=7, color=GREY, bbox=clear)
