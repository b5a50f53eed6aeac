"""Figures of several jobs in the paper's form: weight MSE by folding (Fig. 3), one pair under several settings as bars
(Fig. 12), splices against sparsity (Fig. 14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sae_match.files import atomic_path

from ..metrics.built_in import WEIGHT_MSE
from ..metrics.description import CEILING, SPLICED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..style import BLUE, GREY, VERMILION
from ..variants import VARIANTS, Look
from .canvas import COLUMN_INCHES, OVERLAY_INCHES, legend_below, new_figure, paper_style, save
from .compare import job_labels
from .panels import draw_layer_curves
from .quantile_figures import per_layer_rows
from .records import Record
from .sparsity_figure import plot_sparsity, sparsity_rows

FOLDED = {"theta": Look(BLUE, "o", "-", "folded, matched"), "none": Look(VERMILION, "^", "-", "matched unfolded")}
VANILLA = VARIANTS["vanilla"]._replace(color=GREY, linestyle="--")


def write_paper_figures(records: Sequence[Record], directory: Path, labels: Labels = BUILT_IN_LABELS) -> list[Path]:
    """The figures that the records have the numbers for; none is drawn of jobs that do not vary what it shows."""
    found = [record for record in records if record.pairs is not None]
    tables = {
        label: per_layer_rows(record.pairs.dropna(subset="value"))
        for label, record in zip(job_labels(found), found, strict=True)
        if record.pairs is not None
    }
    written = []
    mse = weight_mse_rows(dict(zip(tables, (str(r.factors.get("folding")) for r in found), strict=True)), tables)
    if mse is not None:
        written.append(_with_data(plot_weight_mse(mse, directory / "weight_mse.png", labels), mse))
    rows = sparsity_rows({label: (_l0(r), tables[label]) for label, r in zip(tables, found, strict=True)}, labels)
    if rows is not None:
        written.append(_with_data(plot_sparsity(rows, directory / "sparsity.png", labels=labels), rows))
    return written


def _with_data(path: Path, rows: pd.DataFrame) -> Path:
    """Write the plotted rows as CSV beside the figure."""
    with atomic_path(path.with_suffix(".csv")) as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")
    return path


def _l0(record: Record) -> str:
    return str(record.config.get("sae", {}).get("l0"))


def weight_mse_rows(foldings: Mapping[str, str], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Weight MSE by layer pair and variant `vanilla`, `theta` and `none` (matched with that folding), from one job with
    folding and one without; None of any other jobs.

    Args:
        foldings: by job.
        tables: pair tables by job.
    """
    if sorted(foldings.values()) != ["none", "theta"]:
        return None
    parts = []
    for label, table in tables.items():
        rows = table[table["metric"].isin(WEIGHT_MSE.values())]
        parts.append(rows[rows["variant"] == "matched"].assign(variant=foldings[label]))
        # The same in both jobs: it depends on no matching.
        parts += [rows[rows["variant"] == "vanilla"]] if len(parts) == 1 else []
    found = pd.concat(parts, ignore_index=True)
    return found if len(found) else None


def plot_weight_mse(rows: pd.DataFrame, path: Path, labels: Labels = BUILT_IN_LABELS) -> Path:
    """One panel per group of parameters over layer pairs (Fig. 3): vanilla, matched unfolded, folded and matched.

    Args:
        rows: as from `weight_mse_rows`.
    """
    metrics = [name for name in WEIGHT_MSE.values() if name in set(rows["metric"])]
    with paper_style():
        figure = new_figure((COLUMN_INCHES[0] * 0.85 * len(metrics), COLUMN_INCHES[1]))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            draw_layer_curves(ax, rows, metric, style={"vanilla": VANILLA, **FOLDED}, labels=labels)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        return save(figure, path)


def of_one_pair(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether the tables (of one metric) hold one and the same layer pair: there is no curve over layers to draw."""
    joined = pd.concat(tables.values())
    pairs = joined[joined["layer"] != joined["layer_to"]]
    return len(set(zip(pairs["layer"], pairs["layer_to"], strict=True))) == 1 and len(tables) > 1


def plot_bars(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    variant: str,
    path: Path,
    *,
    title: str | None = None,
    common: pd.DataFrame | None = None,
    labels: Labels = BUILT_IN_LABELS,
) -> Path:
    """One variant of a metric of several jobs (label -> table) at one layer pair: a bar per job with its 95 % interval
    and, where it was measured, its same-layer ceiling; what all jobs share as lines."""
    values = {label: table[table["metric"] == metric] for label, table in tables.items()}
    with paper_style():
        figure = new_figure((OVERLAY_INCHES[0], 1.6 + 0.32 * len(values)))
        ax = figure.subplots()
        draw_bars(ax, values, variant, labels)
        _draw_shared(ax, common, labels)
        ax.set_xlabel(labels.metric(metric).axis)
        if ax.get_legend_handles_labels()[1]:
            legend_below(figure, ax, wide=42)
        if title:
            ax.set_title(title)
        return save(figure, path)


def _draw_shared(ax: Axes, common: pd.DataFrame | None, labels: Labels) -> None:
    """Lines for what is the same in all jobs, without the splices of a random or vanilla permutation: they are so far
    off that the bars would look alike."""
    if common is None:
        return
    left_out = common["variant"].str.startswith(f"{SPLICED}_") | (common["layer"] == common["layer_to"])
    rows = common[~left_out]
    for variant, value, dashes in zip(rows["variant"], rows["value"], cycle(("--", ":", "-.")), strict=False):
        look = labels.variants.get(variant)
        ax.axvline(value, color=GREY, linestyle=dashes, linewidth=1.0, label=variant if look is None else look.label)


def draw_bars(ax: Axes, tables: Mapping[str, pd.DataFrame], variant: str, labels: Labels = BUILT_IN_LABELS) -> None:
    """A horizontal bar per job, the first on top; a diamond where there is a ceiling (its mean over the two layers)."""
    ceiling = labels.variants[CEILING]
    for place, table in enumerate(tables.values()):
        row = table[(table["variant"] == variant) & (table["layer"] != table["layer_to"])].iloc[0]
        ax.barh(place, row["value"], color=BLUE, alpha=0.8, height=0.62)
        if pd.notna(row["low"]) and pd.notna(row["high"]):
            sides = np.clip([[row["value"] - row["low"]], [row["high"] - row["value"]]], 0, None)
            ax.errorbar(row["value"], place, xerr=sides, color="black", fmt="none", capsize=2, linewidth=1)
        own = table.loc[table["variant"] == CEILING, "value"]
        if len(own):
            named = ceiling.label if ceiling.label not in ax.get_legend_handles_labels()[1] else None
            ax.plot(own.mean(), place, ceiling.marker, color=ceiling.color, label=named, linestyle="none")
    ax.set_yticks(range(len(tables)), list(tables))
    ax.invert_yaxis()
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
