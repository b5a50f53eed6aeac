"""Figures of the quantile splice (the paper's Figs. 16 and 17)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import QUANTILE_SPLICE, is_quantile, near_rows
from ..style import BLUE
from .canvas import COLUMN_INCHES, legend_below, new_figure, paper_style, save
from .style import references

LEVELS = ("encode_decode_previous", "layer_drop")
"""Splices without a quantile whose mean is drawn as a level."""


def per_layer_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows for figures over layer pairs: neighbours and single layers, without the many quantile splices."""
    near = near_rows(pairs)
    return near[~is_quantile(near)]


def quantile_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows of quantile splices with a column `q`, ascending."""
    rows = pairs[is_quantile(pairs) & pairs["value"].notna()]
    q = rows["variant"].str.removeprefix(QUANTILE_SPLICE).astype(float)
    return rows.assign(q=q).sort_values(["metric", "layer", "q"], kind="stable", ignore_index=True)


def has_quantiles(pairs: pd.DataFrame) -> bool:
    """Whether the table holds quantile splices."""
    return bool(is_quantile(pairs).any())


def plot_quantiles(pairs: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of splices (explained variance, delta loss) against the share q of pairs that are carried to the
    next layer: every layer pair thin, the mean thick, and the mean of two splices without a quantile as levels.

    Raises:
        ValueError: no quantile splices in the table.
    """
    rows = quantile_rows(pairs)
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    if not metrics:
        raise ValueError("no quantile splices in the table")
    with paper_style():
        figure = new_figure((COLUMN_INCHES[0] * len(metrics), COLUMN_INCHES[1]))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            draw_quantiles(ax, rows[rows["metric"] == metric], metric, labels)
            _draw_levels(ax, near_rows(pairs), metric, labels)
        legend_below(figure, axes[0], wide=60)
        if title:
            figure.suptitle(title)
        return save(figure, path)


def draw_quantiles(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric against q: `rows` as from `quantile_rows`, of this metric only."""
    for _, curve in rows.groupby("layer"):
        ax.plot(curve["q"], curve["value"], color=BLUE, alpha=0.35, linewidth=0.7)
    mean = rows.groupby("q")["value"].mean()
    ax.plot(mean.index.to_numpy(dtype=float), mean.to_numpy(), color=BLUE, marker="o", label="mean (thin: each pair)")
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel("share of pairs carried, lowest MSE first (q)")
    ax.set_ylabel(labels.metric(metric).axis)


def _draw_levels(ax: Axes, pairs: pd.DataFrame, metric: str, labels: Labels) -> None:
    looks = references(LEVELS, labels.variants)
    for name, dashes in zip(LEVELS, ("--", ":"), strict=True):
        values = pairs.loc[(pairs["variant"] == name) & (pairs["metric"] == metric), "value"]
        if len(values):
            look = looks[name]
            ax.axhline(float(values.mean()), color=look.color, linestyle=dashes, linewidth=1.0, label=look.label)
