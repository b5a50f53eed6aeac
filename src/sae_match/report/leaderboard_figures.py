"""Figures of the leaderboard: matchers with intervals, R of the most confident pairs, geometry against function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd

from ..metrics.description import MATCHED
from ..style import BLACK, BLUE, GREY
from .bars import draw_interval
from .canvas import COLUMN_INCHES, drawing, one_panel, styles
from .figures import Drawn
from .functional import AUSQC, REFERENCES, quality_curve, spearman
from .leaderboard_tables import COLUMNS, ENDS, ROLES, Leaderboard
from .tables import format_value, write_csv

CURVES = 5
"""Curves beside that of the job's own matching."""
POINTS = 400
"""Of a curve, drawn."""
LABEL_CHARACTERS, LEGEND_CHARACTERS = 30, 48
"""What of a matcher's name fits on a line beside the axes, and of a legend."""
FIRST_SHARE, LOWEST = 0.05, -0.5
"""What does not set the axis: R of fewer pairs than this share, and by how much references are below this R."""
LONG = {"deactivation": "mean drop of the partner's activation", "substitution": "substitution R"}


def leaderboard_figures(board: Leaderboard, directory: Path) -> Mapping[str, Callable[[], list[Drawn]]]:
    """By name what writes the figures of that name, one per role of a pair."""
    plots = {"leaderboard": plot_leaderboard, "quality_curve": plot_quality_curve, "geometry": plot_geometry}

    def draw(name: str) -> list[Drawn]:
        every = (plots[name](board, role, directory / f"{name}_{role}.png") for role in board.roles)
        return [drawn for drawn in every if drawn is not None]

    return {name: partial(draw, name) for name in plots}


def plot_leaderboard(board: Leaderboard, role: str, path: Path) -> Drawn | None:
    """The number that ranks, a dot with its interval per matcher, the best on top; references in grey beneath."""
    frame = board.frame[board.frame["role"] == role]
    main = frame["main"].iloc[0]
    rows = frame.dropna(subset=main)
    if rows.empty:
        return None
    names = [fill(name, LABEL_CHARACTERS) for name in rows["matcher"]]
    lines = 1 + max(name.count("\n") for name in names)
    lowest = min(float(rows.loc[~rows["variant"].isin(REFERENCES), main].min()), LOWEST)
    with drawing(path, (COLUMN_INCHES[0], 0.7 + max(0.18, 0.1 * lines) * len(rows)), ROLES[role]) as figure:
        ax = figure.subplots()
        for place, row in enumerate(rows.to_dict("records")):
            color = GREY if row["variant"] in REFERENCES else BLUE if _is_own(row["variant"]) else BLACK
            if row[main] < lowest:
                ax.annotate(f"◂ {format_value(row[main])}", (0.01, place), xycoords=ax.get_yaxis_transform(),
                            color=color, fontsize=6, va="center")  # fmt: skip
                continue
            value, low, high = (row[f"{main}{end}"] for end in ENDS)
            draw_interval(ax, place, value, low, high, color, markersize=3)
        first = int((~rows["variant"].isin(REFERENCES)).sum())
        if 0 < first < len(rows):
            ax.axhline(first - 0.5, color=GREY, linewidth=0.6)
        ax.set_yticks(range(len(rows)), names, fontsize=6)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(LONG.get(main, COLUMNS[main]))
    columns = ["matcher", "rank", main, f"{main}_low", f"{main}_high"]
    write_csv(path.with_suffix(".csv"), rows[columns])
    return Drawn(path, f"{LONG.get(main, COLUMNS[main])} by matcher, {ROLES[role]}", "Blue: the jobs' own matching.")


def plot_quality_curve(board: Leaderboard, role: str, path: Path) -> Drawn | None:
    """R of the most confident pairs over their share: of the matchers with the largest areas and of the jobs' own; a
    dotted line where random partners are at full coverage."""
    frame = board.frame[board.frame["role"] == role].sort_values(AUSQC, ascending=False, kind="stable")
    known = frame.dropna(subset=AUSQC)
    chosen = known[(np.arange(len(known)) < CURVES) | known["variant"].map(_is_own)]
    if chosen.empty:
        return None
    features = board.tests.features[board.tests.features["role"] == role]
    looks = styles(list(chosen["variant"]))
    curves: list[pd.DataFrame] = []
    with one_panel(path, ROLES[role], (COLUMN_INCHES[0], COLUMN_INCHES[1] + 0.13 * len(chosen))) as ax:
        for variant, name, area in chosen[["variant", "matcher", AUSQC]].itertuples(index=False):
            curve = quality_curve(features[features["matcher"] == variant])
            curve = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))]
            look = looks[variant]
            label = fill(f"{name}: {area:.2f}", LEGEND_CHARACTERS)
            ax.plot(curve["share"], curve["substitution"], look.linestyle, color=look.color, label=label, linewidth=1.1)
            curves.append(curve.assign(matcher=name))
        joined = pd.concat(curves, ignore_index=True)[["matcher", "share", "substitution"]]
        drawn = joined.loc[joined["share"] >= FIRST_SHARE, "substitution"]
        random = frame.loc[frame["variant"] == "random_partner", "substitution"].dropna()
        shown = pd.concat([drawn, random.clip(lower=LOWEST)])
        for value in random:
            ax.axhline(value, color=GREY, linestyle=":", label=f"random partner, all pairs: {value:.2f}")
        margin = 0.05 * max(float(shown.max() - shown.min()), 0.1)
        ax.set_ylim(shown.min() - margin, shown.max() + margin)
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of pairs, the most confident first")
        ax.set_ylabel("substitution R")
    write_csv(path.with_suffix(".csv"), joined)
    note = f"Legend: AUSQC. The axis shows R from {FIRST_SHARE:.0%} of the pairs on; fewer may lie outside."
    return Drawn(path, f"substitution R of the most confident pairs, {ROLES[role]}", note)


def plot_geometry(board: Leaderboard, role: str, path: Path) -> Drawn | None:
    """Drop against cosine of the decoder rows, a point per sampled feature of the jobs' own matching, with Spearman's
    rank correlation."""
    features = board.tests.features
    own = features[(features["role"] == role) & features["matcher"].map(_is_own) & (features["partner"] >= 0)]
    rows = own.dropna(subset=["decoder_cosine", "deactivation"])
    if len(rows) < 3:
        return None
    rho = spearman(rows, "decoder_cosine", "deactivation", board.samples)
    text = format_value(*rho) if np.isfinite(rho).all() else format_value(rho.value)
    with one_panel(path, f"{ROLES[role]}\nSpearman's ρ = {text}") as ax:
        ax.plot(rows["decoder_cosine"], rows["deactivation"], ".", color=BLUE, markersize=3, alpha=0.4, rasterized=True)
        ax.grid(axis="x")
        ax.set_xlabel("cosine of decoder rows")
        ax.set_ylabel("drop of the partner's activation")
    write_csv(path.with_suffix(".csv"), rows[["job", "layer", "layer_to", "feature", "decoder_cosine", "deactivation"]])
    return Drawn(path, f"geometry against function, {ROLES[role]}", f"{len(rows)} pairs of the jobs' own matching.")


def _is_own(matcher: str) -> bool:
    """Whether it is the jobs' own matching, which has several names where the jobs differ in it."""
    return matcher == MATCHED or matcher.startswith(f"{MATCHED}: ")
