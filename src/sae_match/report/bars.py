"""One metric of many jobs on a few layer pairs: a row per job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..metrics.description import CEILING, SPLICED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLUE, GREY
from .canvas import MARKERS, OVERLAY_INCHES, PALETTE, drawing, legend_below, make_room

ROW_CHARACTERS = 40
"""Of a row's name on one line."""

Tables = Mapping[str, pd.DataFrame]
"""A job's label -> rows of its pair table."""


def pairs_of(tables: Tables) -> int:
    """How many layer pairs the tables hold together."""
    joined = pd.concat(tables.values())
    pairs = joined[joined["layer"] != joined["layer_to"]]
    return len(set(zip(pairs["layer"], pairs["layer_to"], strict=True)))


def of_one_pair(tables: Tables) -> bool:
    """Whether the tables (of one metric) hold one and the same layer pair: there is no curve over layers to draw."""
    return pairs_of(tables) == 1 and len(tables) > 1


def plot_bars(
    tables: Tables,
    metric: str,
    variant: str,
    path: Path,
    *,
    title: str | None = None,
    common: pd.DataFrame | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """One variant of a metric of several jobs (label -> table): at one layer pair a bar per job (the paper's Fig. 12)
    with its 95 % interval and, where they were measured, its two seeds of a layer; at several pairs a dot for each.
    What all jobs share as lines at its mean."""
    values = {label: table[table["metric"] == metric] for label, table in tables.items()}
    with drawing(path, (OVERLAY_INCHES[0], 1.6 + 0.3 * len(values)), title) as figure:
        ax = figure.subplots()
        (draw_bars if pairs_of(values) == 1 else draw_dots)(ax, values, variant, labels)
        if common is not None:
            # The splices of a random or vanilla permutation are so far off that the bars would look alike.
            far = common["variant"].str.startswith(f"{SPLICED}_") | (common["layer"] == common["layer_to"])
            means = common[~far].groupby("variant", sort=False)["value"].mean()
            for (name, value), dashes in zip(means.items(), cycle(("--", ":", "-.")), strict=False):
                look = labels.variants.get(str(name))
                ax.axvline(value, color=GREY, linestyle=dashes, linewidth=1.0, label=look.label if look else str(name))
        ax.set_xlabel(labels.metric(metric).axis)
        make_room(figure, legend_below(figure, ax, wide=42))
    return path


def draw_bars(ax: Axes, tables: Tables, variant: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """A horizontal bar per job, the first on top; a marker where there are two seeds (mean of both layers)."""
    seeds = labels.variants[CEILING]
    for place, table in enumerate(tables.values()):
        row = table[(table["variant"] == variant) & (table["layer"] != table["layer_to"])].iloc[0]
        ax.barh(place, row["value"], color=BLUE, alpha=0.8, height=0.62)
        _draw_interval(ax, row, place, "black")
        own = table.loc[table["variant"] == CEILING, "value"]
        if len(own):
            named = seeds.label if seeds.label not in ax.get_legend_handles_labels()[1] else None
            ax.plot(own.mean(), place, seeds.marker, color=seeds.color, label=named, linestyle="none")
    _name_rows(ax, list(tables))


def draw_dots(ax: Axes, tables: Tables, variant: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """A row of dots per job, the first on top: one for each layer pair."""
    rows = pd.concat([table.assign(place=place) for place, table in enumerate(tables.values())])
    rows = rows[(rows["variant"] == variant) & (rows["layer"] != rows["layer_to"])]
    looks = zip(rows.groupby(["layer", "layer_to"]), PALETTE, MARKERS, strict=False)
    for ((a, b), found), color, marker in looks:
        ax.plot(found["value"], found["place"], marker, color=color, linestyle="none", label=f"{a}→{b}")
        for _, row in found.iterrows():
            _draw_interval(ax, row, row["place"], color)
    _name_rows(ax, list(tables))


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [fill(name, ROW_CHARACTERS, break_on_hyphens=False) for name in names])
    ax.invert_yaxis()
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")


def _draw_interval(ax: Axes, row: pd.Series, place: float, color: str) -> None:
    if pd.notna(row["low"]) and pd.notna(row["high"]):
        sides = np.clip([[row["value"] - row["low"]], [row["high"] - row["value"]]], 0, None)
        ax.errorbar(row["value"], place, xerr=sides, color=color, fmt="none", capsize=2, linewidth=1)
