"""What is drawn inside one pair of axes, from tidy tables (columns: `record.PAIR_COLUMNS`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLUE, GREY
from ..variants import Look
from .style import styles

MAX_TICK_CHARACTERS = 42
"""What fits side by side under axes of one column's width; more pairs are labelled with a stride."""


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


def draw_layer_curves(
    ax: Axes,
    table: pd.DataFrame,
    metric: str,
    variants: Sequence[str] | None = None,
    style: Mapping[str, Look] | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> None:
    """One line per variant over layer pairs, with its 95 % band.

    A pair a->b stands midway between a and b, so that a same-layer value (the ceiling: layer_to =
    layer) stands at its layer, between the two pairs that share it. A same-layer value known for one
    layer only is drawn as a level across the axes.

    Raises:
        ValueError: no values of the metric.
    """
    rows = rows_of(table, metric, variants)
    style = styles(list(rows["variant"].unique()), labels.variants) if style is None else style
    pairs = rows[rows["layer"] != rows["layer_to"]]
    for name, look in style.items():
        curve = rows[rows["variant"] == name]
        if len(curve) == 1 and len(pairs) > 1 and (curve["layer"] == curve["layer_to"]).all():
            _draw_level(ax, curve.iloc[0], look)
        elif len(curve):
            _draw_curve(ax, curve, look)
    _layer_ticks(ax, pairs if len(pairs) else rows)
    described = labels.metric(metric)
    ax.set_ylabel(described.axis)
    if described.log and (rows["value"] > 0).all():
        ax.set_yscale("log")


def _draw_curve(ax: Axes, curve: pd.DataFrame, look: Look) -> None:
    x = ((curve["layer"] + curve["layer_to"]) / 2).to_numpy(dtype=float)
    y = curve["value"].to_numpy(dtype=float)
    ax.plot(x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)
    low, high = curve["low"].to_numpy(dtype=float), curve["high"].to_numpy(dtype=float)
    known = np.isfinite(low) & np.isfinite(high)
    if known.sum() == 1:
        # A band needs two points to be seen.
        bars = np.vstack([y - low, high - y])[:, known]
        ax.errorbar(x[known], y[known], yerr=np.clip(bars, 0, None), color=look.color, fmt="none", capsize=2)
    elif known.any():
        ax.fill_between(x, low, high, where=known, color=look.color, alpha=0.18, linewidth=0)


def _draw_level(ax: Axes, row: pd.Series, look: Look) -> None:
    ax.axhline(row["value"], color=look.color, linestyle=look.linestyle, label=f"{look.label}, layer {row['layer']}")
    if pd.notna(row["low"]) and pd.notna(row["high"]):
        ax.axhspan(row["low"], row["high"], color=look.color, alpha=0.10, linewidth=0)


def _layer_ticks(ax: Axes, rows: pd.DataFrame) -> None:
    pairs = sorted(set(zip(rows["layer"], rows["layer_to"], strict=True)))
    texts = [f"{a}→{b}" if a != b else f"{a}" for a, b in pairs]
    stride = max(1, math.ceil(sum(len(text) + 1 for text in texts) / MAX_TICK_CHARACTERS))
    ax.xaxis.set_major_locator(FixedLocator([(a + b) / 2 for a, b in pairs[::stride]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(texts[::stride])
    ax.set_xlabel("layer pair" if any(a != b for a, b in pairs) else "layer")


def draw_histogram(ax: Axes, values: Mapping[str, Float[np.ndarray, " features"]], bins: int = 50) -> None:
    """Counts of per-feature values by variant on common bins (logarithmic where all are positive), medians marked.

    A variant without values (nothing was matched) is left out.

    Raises:
        ValueError: no values, or a value is not finite.
    """
    arrays = {name: np.asarray(values[name], dtype=float).ravel() for name in values}
    data = {name: array for name, array in arrays.items() if array.size}
    joined = np.concatenate([*data.values()]) if data else np.empty(0)
    if not joined.size or not np.isfinite(joined).all():
        raise ValueError(f"histogram of {list(values)}: expected finite values, got {joined.size} with NaN or none")
    low, high = float(joined.min()), float(joined.max())
    logarithmic = 0 < low < high
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.histogram_bin_edges(joined, bins)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # geomspace may round the ends inwards
    for name, look in styles(list(data)).items():
        median = float(np.median(data[name]))
        label = f"{look.label} (median {median:.3g}, n = {data[name].size:,})"
        counts, _ = np.histogram(data[name], edges)
        ax.stairs(counts, edges, fill=True, color=look.color, alpha=0.25)
        ax.stairs(counts, edges, color=look.color, linestyle=look.linestyle, label=label, linewidth=1.2)
        ax.axvline(median, color=look.color, linestyle=":", linewidth=1.2)
    if logarithmic:
        ax.set_xscale("log")
    ax.set_ylabel("features")


def draw_relative(ax: Axes, table: pd.DataFrame, metrics: Mapping[str, Look]) -> None:
    """Per-layer quantities as multiples of their value at the first layer; the legend gives first and last in full.

    Raises:
        ValueError: a metric has no values, or starts at zero.
    """
    for metric, look in metrics.items():
        rows = rows_of(table, metric).copy()
        first = float(rows["value"].iloc[0])
        if first == 0:
            raise ValueError(f"{metric} is zero at layer {rows['layer'].iloc[0]}: nothing to be relative to")
        rows["layer_to"] = rows["layer"]
        last = float(rows["value"].iloc[-1])
        rows[["value", "low", "high"]] /= first
        _draw_curve(ax, rows, look._replace(label=f"{look.label} ({first:.3g} → {last:.3g})"))
        _layer_ticks(ax, rows)
    ax.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_ylabel("relative to the first layer")


def draw_changes(ax: Axes, table: pd.DataFrame, x: str, y: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """How two per-layer quantities change from each layer to the next, in per cent: a point per step, named.

    Raises:
        ValueError: a metric has no values.
    """
    steps = [rows_of(table, metric).set_index("layer")["value"].sort_index().pct_change().dropna() for metric in (x, y)]
    for layer in steps[0].index.intersection(steps[1].index):
        point = 100 * steps[0][layer], 100 * steps[1][layer]
        ax.plot(*point, "o", color=BLUE)
        ax.annotate(f"{layer - 1}→{layer}", point, xytext=(4, 3), textcoords="offset points", fontsize=7)
    for line in (ax.axhline, ax.axvline):
        line(0.0, color=GREY, linewidth=0.8, linestyle=":")
    ax.margins(0.15)
    ax.set_xlabel(f"Δ {labels.metric(x).title} [%]")
    ax.set_ylabel(f"Δ {labels.metric(y).title} [%]")


def draw_groups(ax: Axes, table: pd.DataFrame, metrics: Sequence[str], labels: Labels = BUILT_IN_LABELS) -> None:
    """A metric family side by side: per metric and variant one small point per layer pair and their mean, large.

    Raises:
        ValueError: a metric has no values.
    """
    frames = {metric: rows_of(table, metric) for metric in metrics}
    look = styles(list(pd.concat(frames.values())["variant"].unique()), labels.variants)
    offsets = (np.arange(len(look)) - (len(look) - 1) / 2) * min(0.22, 0.7 / len(look))
    everything = np.concatenate([frame["value"].to_numpy(dtype=float) for frame in frames.values()])
    for offset, (name, style) in zip(offsets, look.items(), strict=True):
        centres: list[float] = []
        means: list[float] = []
        for place, frame in enumerate(frames.values()):
            points = frame.loc[frame["variant"] == name, "value"].to_numpy(dtype=float)
            if points.size:
                spread = np.linspace(-0.05, 0.05, points.size) if points.size > 1 else np.zeros(1)
                ax.plot(place + offset + spread, points, ".", color=style.color, markersize=3, alpha=0.5)
                centres.append(place + offset)
                means.append(float(points.mean()))
        ax.plot(centres, means, linestyle="none", color=style.color, marker=style.marker, label=style.label)
    ax.set_xticks(range(len(metrics)), [metric.split("/")[-1] for metric in metrics])
    ax.set_xlim(-0.6, len(metrics) - 0.4)
    if (everything > 0).all():
        ax.set_yscale("log")
