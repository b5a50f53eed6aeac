"""Figures of composition: scores against the distance between two layers (the paper's Fig. 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..metrics.description import MATCHED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import distance_rows
from ..style import BLUE, GREEN, ORANGE
from ..variants import Look
from .canvas import COLUMN_INCHES, legend_below, new_figure, paper_style, save

LOOKS: dict[str, Look] = {
    "exact": Look(GREEN, "s", "--", "solved exactly, mean"),
    "composed": Look(BLUE, "o", "-", "composed, mean (thin: each start)"),
    "random": Look(ORANGE, "v", ":", "composed random permutations, mean"),
}
"""Variants in drawing order, and how their means look."""


def has_distances(pairs: pd.DataFrame) -> bool:
    """Whether the table compares layers further apart than neighbours."""
    return bool((pairs["layer_to"] - pairs["layer"] >= 2).any())


def plot_composition(
    pairs: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS
) -> Path:
    """The main metrics, agreement and judge score over distance, as far as they were measured: the
    composed permutations of every start thin, means over starts thick, with the exact ones and the random control.

    Raises:
        ValueError: the table compares neighbours only.
    """
    rows = distance_rows(pairs.dropna(subset="value"))
    shown = [name for name, about in labels.metrics.items() if about.against_controls or about.distance]
    metrics = [name for name in shown if name in set(rows["metric"])]
    if not metrics:
        raise ValueError("no layers further apart than neighbours in the table")
    with paper_style():
        # Four panels in one row would be wider than a page.
        columns = len(metrics) if len(metrics) < 4 else 2
        lines = -(-len(metrics) // columns)
        figure = new_figure((COLUMN_INCHES[0] * columns * 0.85, COLUMN_INCHES[1] * lines))
        axes = figure.subplots(lines, columns, squeeze=False).flat
        for ax in axes[len(metrics) :]:
            ax.set_axis_off()
        for ax, metric in zip(axes, metrics, strict=False):
            draw_distances(ax, rows[rows["metric"] == metric], metric, labels)
        legend_below(figure, axes[0], wide=60 if columns > 1 else 24)
        if title:
            figure.suptitle(title)
        return save(figure, path)


def draw_distances(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric over distance: `rows` as from `distance_rows`, of this metric only."""
    for _, curve in rows[rows["variant"] == "composed"].groupby("layer"):
        ax.plot(curve["distance"], curve["value"], color=BLUE, alpha=0.35, linewidth=0.7)
    for name, look in LOOKS.items():
        mean = rows[rows["variant"] == name].groupby("distance")["value"].mean()
        if len(mean):
            x = mean.index.to_numpy(dtype=float)
            ax.plot(
                x, mean.to_numpy(), color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label
            )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("distance [layers]")
    ax.set_ylabel(labels.metric(metric).axis)
    if labels.metric(metric).reference != MATCHED:  # of splices
        _clip_below(ax, rows)


def _clip_below(ax: Axes, rows: pd.DataFrame) -> None:
    """A random permutation explains so much less than nothing that everything else would be a flat line."""
    drawn = rows.loc[rows["variant"].isin(("composed", "exact")), "value"].to_numpy(dtype=float)
    control = rows.loc[rows["variant"] == "random", "value"].to_numpy(dtype=float)
    low, high = float(np.min(drawn)), float(np.max(drawn))
    margin = 0.08 * (high - low or 1.0)
    if control.size and control.min() < low - 2 * (high - low):
        ax.set_ylim(low - margin, high + margin)
        ax.set_title("random: below the axis", fontsize=7, color=ORANGE)
