"""Figures over layer pairs: one metric with its variants or of several jobs, a job's overview, thresholds and norms.

Tables are tidy, with the columns `layer`, `layer_to`, `variant`, `metric`, `value`, `low`, `high`; bands and bars are
95 % intervals, and are left out where `low` and `high` are missing. Every `plot_` function writes one PNG, returns its
path, and raises ValueError where the table has no value to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ..metrics.built_in import WEIGHT_MSE, DecoderNorm, MeanTheta, ResidualNorm
from ..metrics.description import SPLICED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import is_quantile, near_rows
from ..style import BLUE, GREY, VARIANTS, VERMILION, Look
from .canvas import (
    COLUMN_INCHES,
    OVERLAY_INCHES,
    PAGE_INCHES,
    axis_label,
    drawing,
    is_beyond,
    legend_below,
    one_panel,
    plot_panels,
    references,
    styles,
)

NAMED = 8
"""Steps of a scatter plot that have their layers beside them: more would lie on each other."""
MAX_TICK_CHARACTERS = 42
"""What fits side by side under axes of one column's width; more pairs are labelled with a stride."""
THETA, NORM, DECODER = (metric.about.name for metric in (MeanTheta, ResidualNorm, DecoderNorm))
FOLDED = {
    "vanilla": VARIANTS["vanilla"]._replace(color=GREY, linestyle="--"),
    "theta": Look(BLUE, "o", "-", "folded, matched"),
    "none": Look(VERMILION, "^", "-", "matched unfolded"),
}
"""Curves of the weight MSE by folding, in drawing order."""


def per_layer_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows for figures over layer pairs: neighbors and single layers, without the many quantile splices."""
    near = near_rows(pairs)
    return near[~is_quantile(near)]


def rows_of(table: pd.DataFrame, metric: str, variants: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a metric that have a value, in drawing order; `low` and `high` exist as columns.

    Raises:
        ValueError: there is none.
    """
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if variants is not None:
        rows = rows[rows["variant"].isin(list(variants))]
    if rows.empty:
        raise ValueError(f"no values of metric {metric!r} to draw; the table has {sorted(table['metric'].unique())}")
    columns = list(dict.fromkeys([*rows.columns, "layer_to", "low", "high"]))
    return rows.reindex(columns=columns).sort_values(["layer", "layer_to"], kind="stable")


def draw_line(ax: Axes, x: Any, curve: pd.DataFrame, look: Look) -> None:
    """A curve of the columns `value`, `low` and `high` over `x`, with its band; error bars where no line joins the
    points, or only one has an interval, since a band needs two points to be seen."""
    x, y, low, high = (np.asarray(each, dtype=float) for each in (x, curve["value"], curve["low"], curve["high"]))
    ax.plot(x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)
    known = np.isfinite(low) & np.isfinite(high)
    if known.sum() == 1 or (known.any() and look.linestyle == "none"):
        bars = np.vstack([y - low, high - y])[:, known]
        ax.errorbar(x[known], y[known], yerr=np.clip(bars, 0, None), color=look.color, fmt="none", capsize=2)
    elif known.any():
        ax.fill_between(x, low, high, where=known, color=look.color, alpha=0.18, linewidth=0)


def draw_layer_curves(
    ax: Axes,
    table: pd.DataFrame,
    metric: str,
    variants: Sequence[str] | None = None,
    style: Mapping[str, Look] | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> None:
    """One line per variant over layer pairs, with its 95 % band.

    A pair a->b stands midway between a and b, so that a same-layer value (of two seeds: layer_to = layer) stands at its
    layer, between the two pairs that share it. It is a marker there, since nothing is known of the other layers. The
    splice along a control that is far off all others is not drawn; the legend has its mean.
    """
    rows = rows_of(table, metric, variants)
    style = styles(list(rows["variant"].unique()), labels.variants) if style is None else style
    pairs = rows[rows["layer"] != rows["layer_to"]]
    of_controls = rows["variant"].str.startswith(f"{SPLICED}_")
    others = rows.loc[~of_controls, "value"].tolist()
    for name, look in style.items():
        curve = rows[rows["variant"] == name]
        if name.startswith(f"{SPLICED}_") and is_beyond(curve["value"].tolist(), others):
            ax.plot([], [], color=look.color, label=f"{look.label}: {curve['value'].mean():.3g}, off the axis")
        elif len(curve):
            single = len(pairs) and (curve["layer"] == curve["layer_to"]).all()
            own = look._replace(linestyle="none") if single else look
            draw_line(ax, (curve["layer"] + curve["layer_to"]) / 2, curve, own)
    _layer_ticks(ax, pairs if len(pairs) else rows)
    described = labels.metric(metric)
    ax.set_ylabel(axis_label(described.axis))
    if described.log and (rows["value"] > 0).all():
        ax.set_yscale("log")


def _layer_ticks(ax: Axes, rows: pd.DataFrame) -> None:
    pairs = sorted(set(zip(rows["layer"], rows["layer_to"], strict=True)))
    texts = [f"{a}→{b}" if a != b else f"{a}" for a, b in pairs]
    stride = max(1, math.ceil(sum(len(text) + 1 for text in texts) / MAX_TICK_CHARACTERS))
    ax.xaxis.set_major_locator(FixedLocator([(a + b) / 2 for a, b in pairs[::stride]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(texts[::stride])
    ax.set_xlabel("layer pair" if any(a != b for a, b in pairs) else "layer")


def plot_layer_curves(
    table: pd.DataFrame,
    metric: str,
    path: Path,
    title: str | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """One metric over layer pairs, one line per variant."""
    with one_panel(path, title) as ax:
        draw_layer_curves(ax, table, metric, labels=labels)
    return path


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
    """The same metric and variant of several jobs (label -> table) over layer pairs; variants that are the same in all
    of them (`common`) once, in grey. `look`: a style per label, in the legend's order."""
    frames = {
        label: table[(table["metric"] == metric) & (table["variant"] == variant)].assign(variant=label)
        for label, table in tables.items()
    }
    there = [label for label, frame in frames.items() if len(frame)]
    look = styles(there) if look is None else {label: look[label] for label in there}
    shared = [] if common is None else [common]
    if common is not None:
        look |= references(list(common["variant"].unique()), labels.variants)
    with one_panel(path, title, OVERLAY_INCHES, wide=42) as ax:
        table = pd.concat([*frames.values(), *shared], ignore_index=True)
        draw_layer_curves(ax, table, metric, style=look, labels=labels)
    return path


def weight_mse_rows(foldings: Mapping[str, str], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Weight MSE by layer pair and variant `vanilla`, `theta` and `none` (matched with that folding), from the pair
    tables of one job with folding and one without; None of any other jobs."""
    if sorted(foldings.values()) != ["none", "theta"]:
        return None
    found = {label: table[table["metric"].isin(WEIGHT_MSE.values())] for label, table in tables.items()}
    own = [rows[rows["variant"] == "matched"].assign(variant=foldings[label]) for label, rows in found.items()]
    # Vanilla depends on no matching, and is the same in both jobs.
    vanilla = next(rows[rows["variant"] == "vanilla"] for rows in found.values())
    joined = pd.concat([own[0], vanilla, own[1]], ignore_index=True)
    return joined if len(joined) else None


def plot_weight_mse(rows: pd.DataFrame, path: Path, labels: Labels = BUILT_IN_LABELS) -> Path:
    """Weight MSE by folding (the paper's Fig. 3), a panel per group of parameters: `rows` as from `weight_mse_rows`."""
    metrics = [name for name in WEIGHT_MSE.values() if name in set(rows["metric"])]

    def draw(ax: Axes, metric: str) -> None:
        draw_layer_curves(ax, rows, metric, style=FOLDED, labels=labels)

    return plot_panels(path, metrics, draw)


def plot_overview(table: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The job on one page: the main metrics of every variant (matching score, explained variance and delta loss of
    every splice), and the weight MSE of each group by variant. A panel without values is left out
    (`evaluation=weights_only` leaves the last one)."""
    present = set(table.loc[table["value"].notna(), "metric"])
    groups = [name for name in WEIGHT_MSE.values() if name in present]
    panels = [name for name in labels.against_controls if name in present] + (["weight MSE"] if groups else [])
    if not panels:
        raise ValueError(f"nothing for an overview: the table has {sorted(present)}")
    letters = dict(zip(panels, ascii_lowercase, strict=False))

    def draw(ax: Axes, panel: str) -> None:
        if panel in present:
            draw_layer_curves(ax, table, panel, labels=labels)
        else:
            draw_groups(ax, table, groups, labels)
            ax.set_ylabel(f"weight MSE [{labels.metric(groups[0]).unit}]")
        if len(panels) > 1:
            ax.set_title(f"({letters[panel]}) {labels.metric(panel).title}", loc="left")

    return plot_panels(path, panels, draw, title, own_legends=True)


def draw_groups(ax: Axes, table: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS) -> None:
    """A metric family side by side: per metric and variant one small point per layer pair and their mean, large."""
    frames = [rows_of(table, metric) for metric in metrics]
    everything = pd.concat(frames)
    look = styles(list(everything["variant"].unique()), labels.variants)
    offsets = (np.arange(len(look)) - (len(look) - 1) / 2) * min(0.22, 0.7 / len(look))
    for offset, (name, style) in zip(offsets, look.items(), strict=True):
        means: dict[float, float] = {}
        for place, frame in enumerate(frames):
            points = frame.loc[frame["variant"] == name, "value"].to_numpy(dtype=float)
            if points.size:
                spread = np.linspace(-0.05, 0.05, points.size) if points.size > 1 else np.zeros(1)
                ax.plot(place + offset + spread, points, ".", color=style.color, markersize=3, alpha=0.5)
                means[place + offset] = float(points.mean())
        centers = list(means), list(means.values())
        ax.plot(*centers, linestyle="none", color=style.color, marker=style.marker, label=style.label)
    ax.set_xticks(range(len(metrics)), [metric.split("/")[-1] for metric in metrics])
    ax.set_xlim(-0.6, len(metrics) - 0.4)
    if (everything["value"] > 0).all():
        ax.set_yscale("log")


def plot_theta(table: pd.DataFrame, path: Path, labels: Labels = BUILT_IN_LABELS) -> Path:
    """Mean threshold and median residual norm per layer, both relative to the first layer: the question is whether one
    follows the other, which two scales on two axes can always be made to show. Where there are decoder norms, beside it
    the change of the residual norm from layer to layer against that of the matched features' folded decoder rows (the
    paper's Fig. 1)."""
    pair = (table["metric"] == DECODER).sum() > 1
    looks = {
        THETA: Look(BLUE, "o", "-", labels.metric(THETA).title),
        NORM: Look(VERMILION, "s", "--", labels.metric(NORM).title),
    }
    with drawing(path, (PAGE_INCHES[0], COLUMN_INCHES[1]) if pair else COLUMN_INCHES) as figure:
        axes = figure.subplots(1, 2 if pair else 1, squeeze=False)[0]
        draw_relative(axes[0], table, looks)
        if pair:
            draw_changes(axes[1], table, NORM, DECODER, labels)
        legend_below(figure, axes[0])
    return path


def draw_relative(ax: Axes, table: pd.DataFrame, metrics: Mapping[str, Look]) -> None:
    """Per-layer quantities as multiples of their value at the first layer; the legend gives first and last in full."""
    for metric, look in metrics.items():
        rows = rows_of(table, metric)
        first, last = float(rows["value"].iloc[0]), float(rows["value"].iloc[-1])
        if first == 0:
            raise ValueError(f"{metric} is zero at layer {rows['layer'].iloc[0]}: nothing to be relative to")
        relative = rows[["value", "low", "high"]] / first
        draw_line(ax, rows["layer"], relative, look._replace(label=f"{look.label} ({first:.3g} → {last:.3g})"))
        _layer_ticks(ax, rows.assign(layer_to=rows["layer"]))
    ax.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_ylabel("relative to the first layer")


def draw_changes(ax: Axes, table: pd.DataFrame, x: str, y: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """How two per-layer quantities change from each layer to the next, in per cent: a point per step. The `NAMED` steps
    farthest from the others are named, in units of the standard deviation on either axis."""
    values = [rows_of(table, metric).set_index("layer")["value"].sort_index() for metric in (x, y)]
    before = {layer: previous for previous, layer in pairwise(values[0].index)}
    steps = pd.concat([100 * value.pct_change() for value in values], axis=1, keys=[x, y]).dropna()
    steps = steps[steps.index.isin(before)]
    spread = steps.std().fillna(0).replace(0, 1)
    far = (((steps - steps.median()) / spread) ** 2).sum(axis=1).nlargest(NAMED).index
    ax.plot(steps[x], steps[y], "o", color=BLUE)
    for layer in far:
        ax.annotate(f"{before[layer]}→{layer}", steps.loc[layer], xytext=(4, 3), textcoords="offset points", fontsize=7)
    for line in (ax.axhline, ax.axvline):
        line(0.0, color=GREY, linewidth=0.8, linestyle=":")
    ax.margins(0.15)
    ax.set_xlabel(f"Δ {labels.metric(x).title} [%]")
    ax.set_ylabel(f"Δ {labels.metric(y).title} [%]")
