"""The controls of one job as dots with intervals: a row per control, a panel per metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..metrics.description import MATCHED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLACK, BLUE, GREY
from .canvas import COLUMN_INCHES, new_figure, paper_style, save

FAR_OFF = ("vanilla", "random")
"""Drawn with the scores of their pairs only: their splices explain so much less than nothing that the others would look
alike. The table has their numbers."""


def drawn_rows(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS) -> pd.DataFrame:
    """The rows of `controls_frame` that the figure shows."""
    splices = frame["metric"].map(lambda name: labels.metric(str(name)).reference != MATCHED).astype(bool)
    off = frame["control"].isin(FAR_OFF) & splices
    return frame[frame["value"].notna() & ~off].reset_index(drop=True)


def plot_controls(frame: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of the matching (a line through all rows) and every control.

    Args:
        frame: one job's rows of `controls_frame`.
    """
    rows = drawn_rows(frame, labels)
    names = list(dict.fromkeys(rows["control"]))
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    with paper_style():
        figure = new_figure((0.9 + 0.66 * COLUMN_INCHES[0] * len(metrics), 1.0 + 0.24 * len(names)))
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            _panel(ax, rows[rows["metric"] == metric], names)
            ax.set_xlabel(labels.metric(metric).axis)
        axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes[0].invert_yaxis()
        if title:
            figure.suptitle(title)
        return save(figure, path)


def _panel(ax: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    for control, *numbers in rows[["control", "value", "low", "high"]].itertuples(index=False):
        value, low, high = (float(number) for number in numbers)
        own = control == MATCHED
        if own:
            ax.axvline(value, color=GREY, linestyle=":", linewidth=1.0)
        sides = np.clip([[value - low], [high - value]], 0, None)
        colour = BLUE if own else BLACK
        ax.errorbar(value, names.index(control), xerr=sides, fmt="o", color=colour, capsize=2, linewidth=1)
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)
