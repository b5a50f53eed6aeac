"""Splices against the sparsity of the SAEs (the paper's Fig. 14)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from ..metrics.description import CEILING, Description
from ..record.labels import BUILT_IN_LABELS, Labels
from .canvas import COLUMN_INCHES, legend_below, new_figure, paper_style, save
from .style import styles

EVEN = 1.3
"""Largest ratio of the L0s of a pair's layers that still counts as one sparsity."""


def drawn_variants(about: Description) -> tuple[str, ...]:
    """Curves of one metric. Splices along random and vanilla permutations explain so much less than nothing that they
    would flatten the others."""
    return (about.reference, *about.beside, CEILING)


def sparsity_rows(
    jobs: Mapping[str, tuple[str, pd.DataFrame]], labels: Labels = BUILT_IN_LABELS
) -> pd.DataFrame | None:
    """The drawn rows of jobs that differ in `sae.l0`, with a column `mean_l0`: the measured L0, averaged over the two
    layers of the pair; sorted by it. None unless every job has the same single pair, of layers of about one sparsity.

    Args:
        jobs: setting `sae.l0` and pair table, by label.
    """
    pairs = {
        pair
        for _, table in jobs.values()
        for pair in zip(table["layer"], table["layer_to"], strict=True)
        if pair[0] != pair[1]
    }
    if len({l0 for l0, _ in jobs.values()}) < 2 or len(pairs) != 1:
        return None
    parts = []
    for label, (_, table) in jobs.items():
        l0s = table.loc[table["metric"] == "l0", "value"].to_numpy(dtype=float)
        if len(l0s) != 2 or l0s.max() > EVEN * l0s.min():
            return None
        chosen = pd.concat(
            [
                table[(table["metric"] == name) & table["variant"].isin(drawn_variants(labels.metric(name)))]
                for name in labels.against_controls
            ]
        )
        parts.append(chosen.assign(job=label, mean_l0=float(l0s.mean())))
    rows = pd.concat(parts, ignore_index=True)
    order = ["metric", "variant", "mean_l0", "layer"]
    return rows.sort_values(order, kind="stable", ignore_index=True) if len(rows) else None


def plot_sparsity(rows: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics against mean L0, one curve per splice or permutation.

    Args:
        rows: as from `sparsity_rows`.
    """
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    with paper_style():
        figure = new_figure((COLUMN_INCHES[0] * 0.95 * len(metrics), COLUMN_INCHES[1] + 0.4))
        parts = np.asarray(figure.subfigures(1, len(metrics), squeeze=False)).ravel()
        for part, metric in zip(parts, metrics, strict=True):
            ax = part.subplots()
            draw_sparsity(ax, rows[rows["metric"] == metric], metric, labels)
            legend_below(part, ax)
        if title:
            figure.suptitle(title)
        return save(figure, path)


def draw_sparsity(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric against mean L0 (logarithmic where no SAE is silent), with 95 % bands: `rows` of this metric only."""
    about = labels.metric(metric)
    looks = styles(drawn_variants(about), labels.variants)
    for name in drawn_variants(about):
        # A second seed exists for some layers only: the mean of those there are.
        chosen = rows[rows["variant"] == name]
        curve = chosen.groupby("mean_l0")[["value", "low", "high"]].mean()
        if not len(curve):
            continue
        look, x = looks[name], curve.index.to_numpy(dtype=float)
        ax.plot(x, curve["value"], color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)
        if curve[["low", "high"]].notna().all(axis=None):
            ax.fill_between(x, curve["low"], curve["high"], color=look.color, alpha=0.18, linewidth=0)
    ticks = sorted(rows["mean_l0"].unique())
    if ticks[0] > 0:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([round(tick, 1) for tick in ticks]))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("mean $L_0$ of the two layers [active features/token]")
    ax.set_ylabel(about.axis)
