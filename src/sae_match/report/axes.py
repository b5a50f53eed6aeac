"""Figures over something else than layers: the distance of two layers (the paper's Fig. 8), the share of carried pairs
(Figs. 16 and 17), the sparsity of the SAEs (Fig. 14)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, ScalarFormatter

from ..metrics.description import CEILING, MATCHED, Description
from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import QUANTILE_SPLICE, is_quantile
from ..style import BLUE, GREEN, ORANGE, Look
from .canvas import axis_label, is_beyond, plot_panels, references, styles
from .curves import draw_line

OVER_DISTANCE: dict[str, Look] = {
    "exact": Look(GREEN, "s", "--", "solved exactly, mean"),
    "composed": Look(BLUE, "o", "-", "composed, mean (thin: each start)"),
    "random": Look(ORANGE, "v", ":", "composed random permutations, mean"),
}
"""Variants in drawing order, and how their means look."""
LEVELS = {"encode_decode_previous": "--", "layer_drop": ":"}
"""Splices without a quantile whose mean is drawn as a level, and its dashes."""
EVEN = 1.3
"""Largest ratio of the L0s of a pair's layers that still counts as one sparsity."""


def plot_composition(
    rows: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS
) -> Path:  # fmt: skip
    """The main metrics, agreement and judge score over distance, as far as they were measured: the composed
    permutations of every start thin, means over starts thick, with the exact ones and the random control. `rows` as
    from `distance_rows`; ValueError where there are none."""
    shown = [name for name, about in labels.metrics.items() if about.against_controls or about.distance]
    metrics = [name for name in shown if name in set(rows["metric"])]
    if not metrics:
        raise ValueError("no layers further apart than neighbors in the table")

    def draw(ax: Axes, metric: str) -> None:
        draw_distances(ax, rows[rows["metric"] == metric], metric, labels)

    return plot_panels(path, metrics, draw, title)


def draw_distances(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric over distance: `rows` as from `distance_rows`, of this metric only."""
    _draw_thin(ax, rows[rows["variant"] == "composed"], "distance")
    for name, look in OVER_DISTANCE.items():
        mean = rows[rows["variant"] == name].groupby("distance")["value"].mean()
        if len(mean):
            x, y = mean.index.to_numpy(dtype=float), mean.to_numpy()
            ax.plot(x, y, color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("distance [layers]")
    ax.set_ylabel(axis_label(labels.metric(metric).axis))
    if labels.metric(metric).reference != MATCHED:  # of splices
        _leave_out_far(ax, rows)


def _draw_thin(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """A thin line per first layer over the column `x`."""
    for _, curve in rows.groupby("layer"):
        ax.plot(curve[x], curve["value"], color=BLUE, alpha=0.35, linewidth=0.7)


def _leave_out_far(ax: Axes, rows: pd.DataFrame) -> None:
    """A random permutation explains so much less than nothing that everything else would be a flat line."""
    drawn = rows.loc[rows["variant"].isin(("composed", "exact")), "value"].to_numpy(dtype=float)
    control = rows.loc[rows["variant"] == "random", "value"].to_numpy(dtype=float)
    if is_beyond(control.tolist(), drawn.tolist()):
        low, high = float(np.min(drawn)), float(np.max(drawn))
        margin = 0.08 * (high - low or 1.0)
        ax.set_ylim(low - margin, high + margin)
        ax.set_title(f"random: off the axis, mean {control.mean():.3g}", fontsize=7, color=ORANGE)


def quantile_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows of quantile splices with a column `q`, ascending."""
    rows = pairs[is_quantile(pairs) & pairs["value"].notna()]
    q = rows["variant"].str.removeprefix(QUANTILE_SPLICE).astype(float)
    return rows.assign(q=q).sort_values(["metric", "layer", "q"], kind="stable", ignore_index=True)


def plot_quantiles(near: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of splices (explained variance, delta loss) against the share q of pairs that are carried to the
    next layer: every layer pair thin, the mean thick, and the mean of two splices without a quantile as levels.
    `near`: rows of neighbors; ValueError where these have no quantile splices."""
    rows = quantile_rows(near)
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    if not metrics:
        raise ValueError("no quantile splices in the table")
    looks = references(list(LEVELS), labels.variants)

    def draw(ax: Axes, metric: str) -> None:
        draw_quantiles(ax, rows[rows["metric"] == metric], metric, labels)
        for name, dashes in LEVELS.items():
            level = near.loc[(near["variant"] == name) & (near["metric"] == metric), "value"]
            if len(level):
                color, label = looks[name].color, looks[name].label
                ax.axhline(float(level.mean()), color=color, linestyle=dashes, linewidth=1.0, label=label)

    return plot_panels(path, metrics, draw, title)


def draw_quantiles(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric against q: `rows` as from `quantile_rows`, of this metric only."""
    _draw_thin(ax, rows, "q")
    mean = rows.groupby("q")["value"].mean()
    ax.plot(mean.index.to_numpy(dtype=float), mean.to_numpy(), color=BLUE, marker="o", label="mean (thin: each pair)")
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel("share of pairs carried, lowest MSE first (q)")
    ax.set_ylabel(axis_label(labels.metric(metric).axis))


def _over_sparsity(about: Description) -> tuple[str, ...]:
    """Variants of one metric that are drawn against sparsity. Splices along random and vanilla permutations explain so
    much less than nothing that they would flatten the others."""
    return tuple(dict.fromkeys((about.reference, *about.beside, CEILING)))


def sparsity_rows(
    jobs: Mapping[str, tuple[str, pd.DataFrame]], labels: Labels = BUILT_IN_LABELS
) -> pd.DataFrame | None:
    """The drawn rows of jobs (`sae.l0` and pair table, by label) that differ in `sae.l0`, with a column `mean_l0`: the
    measured L0, averaged over the two layers of the pair; sorted by it. None unless every job has the same single pair,
    of layers of about one sparsity."""
    pairs = {pair for _, table in jobs.values() for pair in zip(table["layer"], table["layer_to"], strict=True)}
    if len({l0 for l0, _ in jobs.values()}) < 2 or sum(a != b for a, b in pairs) != 1:
        return None
    parts = []
    for label, (_, table) in jobs.items():
        l0s = table.loc[table["metric"] == "l0", "value"].to_numpy(dtype=float)
        if len(l0s) != 2 or l0s.max() > EVEN * l0s.min():
            return None
        for name in labels.against_controls:
            drawn = table["variant"].isin(_over_sparsity(labels.metric(name)))
            parts.append(table[(table["metric"] == name) & drawn].assign(job=label, mean_l0=float(l0s.mean())))
    rows = pd.concat(parts, ignore_index=True)
    order = ["metric", "variant", "mean_l0", "layer"]
    return rows.sort_values(order, kind="stable", ignore_index=True) if len(rows) else None


def plot_sparsity(rows: pd.DataFrame, path: Path, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of `sparsity_rows` against mean L0, one curve per splice or permutation."""
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]

    def draw(ax: Axes, metric: str) -> None:
        draw_sparsity(ax, rows[rows["metric"] == metric], metric, labels)

    return plot_panels(path, metrics, draw, own_legends=True)


def draw_sparsity(ax: Axes, rows: pd.DataFrame, metric: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """One metric against mean L0 (logarithmic where no SAE is silent), with 95 % bands: `rows` of this metric only."""
    about = labels.metric(metric)
    looks = styles(_over_sparsity(about), labels.variants)
    for name in _over_sparsity(about):
        # A second seed exists for some layers only: the mean of those there are.
        curve = rows[rows["variant"] == name].groupby("mean_l0")[["value", "low", "high"]].mean()
        if len(curve):
            draw_line(ax, curve.index, curve, looks[name])
    ticks = sorted(rows["mean_l0"].unique())
    if ticks[0] > 0:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([round(tick, 1) for tick in ticks]))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("mean $L_0$ of the two layers [active features/token]")
    ax.set_ylabel(axis_label(about.axis))
