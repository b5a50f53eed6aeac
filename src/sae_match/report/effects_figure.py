"""The effect of each factor as a figure: a row per contrast, and one at each level of a factor that it depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLUE, GREY
from .canvas import drawing
from .figures import Drawn
from .tables import write_csv

PANEL_INCHES = 1.75
MOST_PANELS, MOST_ROWS = 3, 30
ROWS = ["factor", "level", "reference", "where"]


def effects_figure(frame: pd.DataFrame, directory: Path, labels: Labels = BUILT_IN_LABELS) -> list[Drawn]:
    """`effects.png` and its data; nothing where there is no number to draw."""
    if not effect_metrics(frame, labels):
        return []
    path, count = plot_effects(frame, directory / "effects.png", labels), len(contrasts(frame))
    write_csv(path.with_suffix(".csv"), frame)
    note = "Dots: mean effect with its 95 % interval over documents; hollow: it depends on another factor."
    if count > MOST_ROWS:
        note += f" The first {MOST_ROWS} of {count}."
    return [Drawn(path, "effect of each factor", note)]


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
    with drawing(path, (1.9 + PANEL_INCHES * len(metrics), 1.0 + 0.22 * len(rows))) as figure:
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for ax, name in zip(axes, metrics, strict=True):
            draw_effects(ax, frame[frame["metric"] == name], rows)
            ax.set_xlabel(f"effect on\n{labels.of_number(name).axis}")
        axes[0].set_yticks(range(len(rows)), [_named(*row) for row in rows.to_numpy().tolist()])
        axes[0].invert_yaxis()
    return path


def contrasts(frame: pd.DataFrame) -> pd.DataFrame:
    """The contrasts of `effects_frame`, in order."""
    return frame[ROWS].drop_duplicates().reset_index(drop=True)


def draw_effects(ax: Axes, frame: pd.DataFrame, rows: pd.DataFrame) -> None:
    """One metric's effects, a row for each of the contrasts `rows`."""
    ax.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    found = rows.merge(frame, on=ROWS, how="left")
    for place, row in enumerate(found.to_dict("records")):
        if pd.isna(row["effect"]):
            continue
        known = pd.notna(row["low"])
        ends = (row["low"], row["high"]) if known else (row["smallest"], row["largest"])
        sides = np.clip([[row["effect"] - ends[0]], [ends[1] - row["effect"]]], 0, None)
        face = "white" if row["depends_on"] else None
        color = GREY if row["where"] else BLUE
        cap, width = (2.0, 1.0) if known else (0.0, 0.6)
        ax.errorbar(
            row["effect"], place, xerr=sides, fmt="o", color=color, markerfacecolor=face, capsize=cap, linewidth=width
        )
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)


def _named(factor: str, level: str, reference: str, where: str) -> str:
    return f"at {where}" if where else f"{factor}: {level} − {reference}"
