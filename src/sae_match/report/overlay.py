"""Per-layer figures of several jobs at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .compare import labels
from .distance_figures import has_distances, plot_composition
from .figures import plot_layer_curves, plot_overlay
from .pair_figure import write_pair_figures
from .paper_figures import of_one_pair, plot_bars, write_paper_figures
from .quantile_figures import has_quantiles, per_layer_rows, plot_quantiles
from .records import Record
from .style import quantity

OWN_VARIANTS = ("matched", "encode_permute_decode")
"""The variants that depend on the matching: one curve per job. Of a metric's others, those that are the
same in every job are drawn once, for reference."""


def drawn(metric: str) -> bool:
    """Whether a metric gets a figure: what the solver did and proved stays in the tables."""
    return metric not in ("lower_bound", "tolerance", "matched_pairs") and not metric.startswith("solver/")


def write_overlays(records: Sequence[Record], directory: Path) -> list[Path]:
    """One figure per metric: the jobs' own curves together (with a single job: all its variants), or bars where there
    is one layer pair; per job one over distance and one over quantiles, where it has them; those in the paper's form.

    File names are the metrics' with '/' as '_', and the variant's where a metric needs several.
    Returns the paths, sorted by metric.
    """
    whole = {
        label: record.pairs.dropna(subset="value")
        for label, record in zip(labels(records), records, strict=True)
        if record.pairs is not None
    }
    tables = {label: per_layer_rows(table) for label, table in whole.items()}
    metrics = sorted({metric for table in tables.values() for metric in table["metric"].unique() if drawn(metric)})
    paths = [path for metric in metrics for path in _overlay(tables, metric, directory)]
    for name, draw, has in (
        ("composition", plot_composition, has_distances),
        ("quantiles", plot_quantiles, has_quantiles),
    ):
        chosen = {label: table for label, table in whole.items() if has(table)}
        for number, (label, table) in enumerate(chosen.items()):
            stem = name if len(chosen) == 1 else f"{name}_{number}"
            paths.append(draw(table, directory / f"{stem}.png", label if len(whole) > 1 else None))
    return paths + write_paper_figures(records, directory) + write_pair_figures(records, directory)


def _overlay(tables: dict[str, pd.DataFrame], metric: str, directory: Path) -> list[Path]:
    stem, title = metric.replace("/", "_"), quantity(metric).title
    tables = {label: table[table["metric"] == metric] for label, table in tables.items()}
    tables = {label: table for label, table in tables.items() if len(table)}
    first = next(iter(tables.values()))
    variants = sorted({name for table in tables.values() for name in table["variant"]})
    same = [name for name in variants if name not in OWN_VARIANTS and _same(tables.values(), name)]
    own = [name for name in OWN_VARIANTS if name in variants] or [name for name in variants if name not in same]
    if len(tables) == 1 or not own:
        return [plot_layer_curves(first, metric, directory / f"{stem}.png", title)]
    common = first[first["variant"].isin(same)]
    draw = plot_bars if of_one_pair(tables) else plot_overlay
    paths = {name: directory / (f"{stem}.png" if len(own) == 1 else f"{stem}_{name}.png") for name in own}
    return [draw(tables, metric, name, path, title=f"{title}: {name}", common=common) for name, path in paths.items()]


def _same(tables: Iterable[pd.DataFrame], variant: str) -> bool:
    """Whether every job has the same curve of a variant: its matching does not enter it."""
    curves = [
        table[table["variant"] == variant].set_index(["layer", "layer_to"])["value"].sort_index() for table in tables
    ]
    return all(
        curve.index.equals(curves[0].index) and np.allclose(curve.to_numpy(), curves[0].to_numpy(), rtol=1e-6, atol=0)
        for curve in curves
    )
