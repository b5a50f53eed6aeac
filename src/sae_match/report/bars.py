"""Figures with a row per thing: jobs on a few layer pairs, the controls of a job, the effects of factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..metrics.description import CEILING, MATCHED, SPLICED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLACK, BLUE, GREY
from .canvas import MARKERS, OVERLAY_INCHES, PALETTE, drawing, legend_below, make_room
from .controls import NUMBERS, drawn_rows

ROW_CHARACTERS = 40
"""Of a row's name on one line."""
CONTROL_INCHES, EFFECT_INCHES = 2.1, 1.75
"""Width of a panel."""
MOST_PANELS, MOST_ROWS = 3, 30
CONTRAST = ["factor", "level", "reference", "where"]

Tables = Mapping[str, pd.DataFrame]
"""A job's label -> rows of its pair table."""


def draw_interval(ax: Axes, place: float, value: float, low: float, high: float, color: str, **look: Any) -> None:
    """A dot in a row with its interval, where that has ends; `look` is `errorbar`'s."""
    sides = np.clip([[value - low], [high - value]], 0, None) if pd.notna(low) and pd.notna(high) else None
    ax.errorbar(value, place, xerr=sides, color=color, **{"fmt": "o", "capsize": 2, "linewidth": 1, **look})


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """The rows' names, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()


def across(ax: Axes) -> None:
    """Lines of the grid that are read from above, and room at the sides."""
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)


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
        draw_interval(ax, place, row["value"], row["low"], row["high"], "black", fmt="none")
        own = table.loc[table["variant"] == CEILING, "value"]
        if len(own):
            named = seeds.label if seeds.label not in ax.get_legend_handles_labels()[1] else None
            ax.plot(own.mean(), place, seeds.marker, color=seeds.color, label=named, linestyle="none")
    name_rows(ax, [fill(name, ROW_CHARACTERS, break_on_hyphens=False) for name in tables])
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")


def draw_dots(ax: Axes, tables: Tables, variant: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """A row of dots per job, the first on top: one for each layer pair."""
    rows = pd.concat([table.assign(place=place) for place, table in enumerate(tables.values())])
    rows = rows[(rows["variant"] == variant) & (rows["layer"] != rows["layer_to"])]
    looks = zip(rows.groupby(["layer", "layer_to"]), PALETTE, MARKERS, strict=False)
    for ((a, b), found), color, marker in looks:
        ax.plot(found["value"], found["place"], marker, color=color, linestyle="none", label=f"{a}→{b}")
        for _, row in found.iterrows():
            draw_interval(ax, row["place"], row["value"], row["low"], row["high"], color, fmt="none")
    name_rows(ax, [fill(name, ROW_CHARACTERS, break_on_hyphens=False) for name in tables])
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")


def plot_controls(frame: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS) -> Path:
    """The main metrics of the matching (a line through all rows) and every control as dots with intervals: a row per
    control, a panel per metric; a value that is off its axis as text. `frame`: one job's rows of `controls_frame`."""
    frame = frame[frame["value"].notna()]
    rows = drawn_rows(frame, labels)
    names = list(dict.fromkeys(frame["control"]))
    metrics = [name for name in labels.against_controls if name in set(rows["metric"])]
    with drawing(path, (0.9 + CONTROL_INCHES * len(metrics), 1.0 + 0.24 * len(names)), title) as figure:
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            for control, *numbers in rows.loc[rows["metric"] == metric, ["control", *NUMBERS[:3]]].to_numpy().tolist():
                value, low, high = (float(number) for number in numbers)
                if control == MATCHED:
                    ax.axvline(value, color=GREY, linestyle=":", linewidth=1.0)
                draw_interval(ax, names.index(control), value, low, high, BLUE if control == MATCHED else BLACK)
            drawn = rows[rows["metric"] == metric]
            for _, left in frame[frame["metric"] == metric].iterrows():
                if left["control"] not in set(drawn["control"]):
                    _write_off_axis(ax, left["value"], names.index(left["control"]), drawn["value"].min())
            across(ax)
            ax.set_xlabel(labels.metric(metric).axis)
        name_rows(axes[0], [name.replace("_", " ") for name in names])
    return path


def _write_off_axis(ax: Axes, value: float, row: int, low: float) -> None:
    """A value that is off the axis, as text with an arrow at the end of the axis beyond which it lies."""
    below = value < low
    text, x, side = (f"◀ {value:.3g}", 0.02, "left") if below else (f"{value:.3g} ▶", 0.98, "right")
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    ax.text(x, row, text, transform=ax.get_yaxis_transform(), ha=side, va="center", fontsize=7, color=GREY, bbox=clear)


def effect_metrics(frame: pd.DataFrame, labels: Labels = BUILT_IN_LABELS) -> list[str]:
    """The metrics of `effects_frame` that are drawn: those that every alternative to the matching has as well, or the
    first ones."""
    names = list(dict.fromkeys(frame.loc[frame["effect"].notna(), "metric"]))
    main = [name for name in names if labels.of_number(name).against_controls]
    return (main or names)[:MOST_PANELS]


def plot_effects(frame: pd.DataFrame, path: Path, labels: Labels = BUILT_IN_LABELS) -> Path:
    """`effects_frame` as dots with 95 % intervals, a panel per metric; where there is no interval, a thin line from the
    smallest to the largest difference. The mean over jobs among which an effect differs is hollow. The first
    `MOST_ROWS` contrasts."""
    metrics = effect_metrics(frame, labels)
    rows = contrasts(frame).head(MOST_ROWS)
    with drawing(path, (1.9 + EFFECT_INCHES * len(metrics), 1.0 + 0.22 * len(rows))) as figure:
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for ax, name in zip(axes, metrics, strict=True):
            draw_effects(ax, frame[frame["metric"] == name], rows)
            ax.set_xlabel(f"effect on\n{labels.of_number(name).axis}")
        name_rows(axes[0], [_named(*row) for row in rows.to_numpy().tolist()])
    return path


def contrasts(frame: pd.DataFrame) -> pd.DataFrame:
    """The contrasts of `effects_frame`, in order."""
    return frame[CONTRAST].drop_duplicates().reset_index(drop=True)


def draw_effects(ax: Axes, frame: pd.DataFrame, rows: pd.DataFrame) -> None:
    """One metric's effects, a row for each of the contrasts `rows`."""
    ax.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    found = rows.merge(frame, on=CONTRAST, how="left")
    for place, row in enumerate(found.to_dict("records")):
        if pd.isna(row["effect"]):
            continue
        known = pd.notna(row["low"])
        ends = (row["low"], row["high"]) if known else (row["smallest"], row["largest"])
        look = {"capsize": 2, "linewidth": 1} if known else {"capsize": 0, "linewidth": 0.6}
        face = "white" if row["depends_on"] else None
        color = GREY if row["where"] else BLUE
        draw_interval(ax, place, row["effect"], *ends, color, markerfacecolor=face, **look)
    across(ax)


def _named(factor: str, level: str, reference: str, where: str) -> str:
    return f"at {where}" if where else f"{factor}: {level} − {reference}"
