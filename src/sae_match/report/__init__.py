"""Tables and figures rebuilt from the records of one or many jobs."""

from __future__ import annotations

from .axes import plot_composition, plot_quantiles
from .curves import plot_layer_curves, plot_overlay, plot_overview, plot_theta
from .features import plot_mse_histogram
from .leaderboard_tables import leaderboard
from .records import Record, find_records, read_record
from .tables import comparison_frame, summary_table

__all__ = [
    "Record",
    "comparison_frame",
    "find_records",
    "leaderboard",
    "plot_composition",
    "plot_layer_curves",
    "plot_mse_histogram",
    "plot_overlay",
    "plot_overview",
    "plot_quantiles",
    "plot_theta",
    "read_record",
    "summary_table",
]
