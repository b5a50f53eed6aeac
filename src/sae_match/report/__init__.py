"""Tables and figures rebuilt from the records of one or many jobs."""

from __future__ import annotations

from .distance_figures import plot_composition
from .figures import plot_layer_curves, plot_mse_histogram, plot_overlay, plot_overview, plot_theta
from .quantile_figures import plot_quantiles
from .records import Record, find_records, read_record
from .tables import comparison_frame, summary_table

__all__ = [
    "Record",
    "comparison_frame",
    "find_records",
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
