"""The figure of seeds: |decoder cosine| of every feature with its partner, beside what two nulls give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ..style import BLUE, GREY, ORANGE
from .canvas import one_panel

SHOWN = {"cosine": ("other seeds", BLUE), "cosine_rotated": ("rotated", GREY), "cosine_random": ("random", ORANGE)}
"""Column of stability.parquet -> its name in the legend, and color."""
BINS = 50


def plot_stability(table: pd.DataFrame, path: Path, title: str | None = None) -> Path:
    """Histograms of |cosine| over the features of the job's own SAEs and the other seeds, medians marked.

    Args:
        table: the content of stability.parquet.
    """
    edges = np.linspace(0, 1, BINS + 1)
    with one_panel(path, title, wide=32) as ax:
        for column, (name, color) in SHOWN.items():
            values = table[column].dropna().to_numpy()
            median = float(np.median(values))
            shares = np.histogram(values, edges)[0] / len(values)
            ax.stairs(shares, edges, fill=True, color=color, alpha=0.25)
            ax.stairs(shares, edges, color=color, label=f"{name} (median {median:.2g})", linewidth=1.2)
            ax.axvline(median, color=color, linestyle=":", linewidth=1.2)
        ax.set_xlabel("|decoder cosine| of a feature and its partner")
        ax.set_ylabel("share of features")
    return path
