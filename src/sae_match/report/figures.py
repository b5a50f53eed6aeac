"""The figures of a record. Every function writes one PNG and returns its path.

Tables are tidy, with the columns `layer`, `layer_to`, `variant`, `metric`, `value`, `low`, `high`; bands and
bars are the 95 % intervals of `low` and `high`, and are left out where these are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics.built_in import WEIGHT_MSE
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLUE, VERMILION
from ..variants import Look
from .canvas import COLUMN_INCHES, OVERLAY_INCHES, PAGE_INCHES, legend_below, new_figure, paper_style, save
from .panels import draw_changes, draw_groups, draw_histogram, draw_layer_curves, draw_relative
from .style import references, styles


def plot_layer_curves(
    table: pd.DataFrame,
    metric: str,
    path: Path,
    title: str | None = None,
    variants: Sequence[str] | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """One metric over layer pairs, one line per variant (all of them, or those named).

    Raises:
        ValueError: the table has no value of the metric.
    """
    with paper_style():
        figure = new_figure()
        ax = figure.subplots()
        draw_layer_curves(ax, table, metric, variants, labels=labels)
        _finish(figure, ax, title)
        return save(figure, path)


def plot_mse_histogram(
    values: Mapping[str, Float[np.ndarray, " features"]],
    path: Path,
    title: str | None = None,
    xlabel: str = "decoder MSE of a pair [folded units²]",
) -> Path:
    """Per-feature decoder MSE by variant (matched against random, say).

    Raises:
        ValueError: no values, or a value is not finite.
    """
    with paper_style():
        figure = new_figure()
        ax = figure.subplots()
        draw_histogram(ax, values)
        ax.set_xlabel(xlabel)
        _finish(figure, ax, title)
        return save(figure, path)


def plot_theta(
    table: pd.DataFrame,
    path: Path,
    title: str | None = None,
    theta: str = "mean_theta",
    norm: str = "residual_norm",
    decoder: str = "decoder_norm",
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """Mean threshold and median residual norm per layer (metrics named `theta` and `norm`), both relative to the first
    layer: the question is whether one tracks the other, which two scales on two axes can always be made to show. Where
    there is `decoder`, beside it the change of the residual norm from layer to layer against that of the matched
    features' folded decoder rows (the paper's Fig. 1).

    Raises:
        ValueError: one of the two has no values.
    """
    looks = {
        theta: Look(BLUE, "o", "-", labels.metric(theta).title),
        norm: Look(VERMILION, "s", "--", labels.metric(norm).title),
    }
    with paper_style():
        pair = (table["metric"] == decoder).sum() > 1
        figure = new_figure((PAGE_INCHES[0], COLUMN_INCHES[1]) if pair else COLUMN_INCHES)
        axes = figure.subplots(1, 2 if pair else 1, squeeze=False)[0]
        draw_relative(axes[0], table, looks)
        if pair:
            draw_changes(axes[1], table, norm, decoder, labels)
        _finish(figure, axes[0], title)
        return save(figure, path)


def plot_overview(table: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The job on one page: the main metrics of every variant (matching score against its ceiling, explained variance
    and delta loss of every splice), and the weight MSE of each group by variant. A panel without values is left out
    (`evaluation=weights_only` leaves the last one).

    Raises:
        ValueError: the table has none of these metrics.
    """
    present = set(table.loc[table["value"].notna(), "metric"])
    curves = [name for name in labels.against_controls if name in present]
    groups = [name for name in WEIGHT_MSE.values() if name in present]
    panels = len(curves) + bool(groups)
    if not panels:
        raise ValueError(f"nothing for an overview: the table has {sorted(present)}")
    rows, columns = -(-panels // 2), min(panels, 2)
    wide, high = PAGE_INCHES if rows > 1 else (PAGE_INCHES[0] if columns == 2 else COLUMN_INCHES[0], COLUMN_INCHES[1])
    size = wide, high * max(1.0, rows / 2)
    with paper_style():
        figure = new_figure(size)
        parts = np.asarray(figure.subfigures(rows, columns, squeeze=False)).ravel()
        for letter, part, metric in zip(ascii_lowercase, parts, [*curves, *([None] if groups else [])], strict=False):
            ax = part.subplots()
            if metric is not None:
                draw_layer_curves(ax, table, metric, labels=labels)
            else:
                draw_groups(ax, table, groups, labels)
                ax.set_ylabel(f"weight MSE [{labels.metric(groups[0]).unit}]")
            legend_below(part, ax)
            if panels > 1:
                ax.set_title(f"({letter})", loc="left", fontweight="bold")
        if title:
            figure.suptitle(title)
        return save(figure, path)


def plot_overlay(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    variant: str,
    path: Path,
    *,
    title: str | None = None,
    common: pd.DataFrame | None = None,
    look: Mapping[str, Look] | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """The same metric and variant of several jobs (label -> table) over layer pairs; variants that are the
    same in all of them (`common`) once, in grey. `look`: a style per label, in the legend's order.

    Raises:
        ValueError: no job has a value.
    """
    frames = [
        table[(table["metric"] == metric) & (table["variant"] == variant)].assign(variant=label)
        for label, table in tables.items()
    ]
    there = [label for label, frame in zip(tables, frames, strict=True) if len(frame)]
    look = styles(there) if look is None else {label: look[label] for label in there}
    if common is not None:
        frames.append(common)
        look = look | references(list(common["variant"].unique()), labels.variants)
    with paper_style():
        figure = new_figure(OVERLAY_INCHES)
        ax = figure.subplots()
        draw_layer_curves(ax, pd.concat(frames, ignore_index=True), metric, style=look, labels=labels)
        _finish(figure, ax, title, wide=42)
        return save(figure, path)


def _finish(figure: Figure, ax: Axes, title: str | None, wide: int = 24) -> None:
    legend_below(figure, ax, wide)
    if title:
        ax.set_title(title)
