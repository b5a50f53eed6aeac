"""The figures of a report: per metric all jobs together, and what single jobs have, each with its data as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import UserError
from ..metrics.description import CEILING, MATCHED
from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import distance_rows, is_quantile, near_rows
from .axes import plot_composition, plot_quantiles, plot_sparsity, quantile_rows, sparsity_rows
from .bars import (
    MOST_ROWS,
    Tables,
    contrasts,
    effect_metrics,
    of_one_pair,
    pairs_of,
    plot_bars,
    plot_controls,
    plot_effects,
)
from .canvas import PALETTE, factor_styles
from .controls import controls_frame, drawn_rows
from .curves import per_layer_rows, plot_layer_curves, plot_overlay, plot_weight_mse, weight_mse_rows
from .features import write_pair_figures
from .flow import flow_rows, plot_flow
from .records import Record, comparison_keys, job_labels, setting
from .tables import write_csv

MAX_CURVES = 12
"""Jobs in one figure; of more, the best by their mean are drawn."""
OF_LAYERS = ("sae", "model")
"""Variants of what is measured of layers, not of pairs."""
FEW_PAIRS = 3
"""Of more jobs than colors on so few layer pairs, rows are drawn, not curves."""
TITLES = {
    "weight_mse": "weight MSE by folding, over layer pairs",
    "sparsity": "splices against the sparsity of the SAEs",
    "pairs": "example pairs",
}
"""Titles of the figures in the paper's form, by file name."""

Plot = Callable[[pd.DataFrame, Path, str | None, Labels], Path]


class Drawn(NamedTuple):
    """A figure as written: the PNG's path (the same name with .csv beside it holds what is plotted), what it shows, and
    what was left out of it."""

    path: Path
    title: str
    note: str = ""


class _Jobs(NamedTuple):
    """What every figure needs: records by label, where to write, how many, names of metrics and variants."""

    named: Mapping[str, Record]
    directory: Path
    most: int
    labels: Labels


def write_overlays(
    records: Sequence[Record],
    directory: Path,
    most: int = MAX_CURVES,
    only: Sequence[str] = (),
    labels: Labels = BUILT_IN_LABELS,
    more: Mapping[str, Callable[[], list[Drawn]]] = MappingProxyType({}),
) -> list[Drawn]:
    """One figure per metric: the jobs' own curves together (with a single job: all its variants), or bars where there
    is one layer pair; per job one over distance, one over quantiles and one of controls, where it has them; those in
    the paper's form. File names are the metrics' with '/' as '_', and the variant's where a metric needs several.

    Args:
        most: jobs in one figure, and figures of one job's own kind; the note names what was left out.
        only: names of the figures to draw, without suffix or number; empty: all.
        more: what writes further figures, by name.

    Raises:
        UserError: `only` names a figure that these records do not give.
    """
    # A label shows if the curve is only what a job had measured when it ended, or has measured so far.
    marks = ["" if record.state == "done" else f" ({record.state})" for record in records]
    named = dict(zip(map("".join, zip(job_labels(records), marks, strict=True)), records, strict=True))
    jobs = _Jobs(named, directory, most, labels)
    whole = {label: record.pairs.dropna(subset="value") for label, record in named.items() if record.pairs is not None}
    near = {label: near_rows(table) for label, table in whole.items()}
    by_metric: dict[str, dict[str, pd.DataFrame]] = {}
    for label, table in near.items():
        # Other matchers' objectives add up other things.
        kept = ~is_quantile(table) & ((table["metric"] != "objective") | (table["variant"] == MATCHED))
        for metric, rows in table[kept].groupby("metric", sort=True):
            if labels.metric(str(metric)).figure != "none":
                by_metric.setdefault(str(metric), {})[label] = rows
    composed = {label: rows for label, table in whole.items() if len(rows := distance_rows(table))}
    quantiles = {label: table for label, table in near.items() if is_quantile(table).any()}
    flows = {label: rows for label, table in near.items() if len(rows := flow_rows(table))}
    controls = {label: frame for label, record in named.items() if len(frame := controls_frame([record]))}
    makers: dict[str, Callable[[], list[Drawn]]] = {
        metric.replace("/", "_"): partial(_overlay, by_metric[metric], metric, jobs) for metric in sorted(by_metric)
    }
    there = ", ".join(makers)
    makers |= {
        "composition": partial(_per_job, composed, "composition", plot_composition, jobs),
        "quantiles": partial(_per_job, quantiles, "quantiles", plot_quantiles, jobs, quantile_rows),
        "flow": partial(_per_job, flows, "flow", plot_flow, jobs),
        "controls": partial(_per_job, controls, "controls", plot_controls, jobs, partial(drawn_rows, labels=labels)),
        "paper": lambda: [_titled(path) for path in write_paper_figures(records, directory, labels)],
        "pairs": lambda: [_titled(path) for path in write_pair_figures(records, directory)],
        **more,
    }
    figures: list[Drawn] = []
    for name in only or makers:
        drawn = makers[name]() if name in makers else []
        if only and not drawn:
            raise UserError(
                f"--figure {name}: these records give no such figure. There are {there}, and where jobs have what they "
                "show, composition, quantiles, flow, controls, paper (weight MSE by folding, sparsity), pairs, between "
                "jobs effects; of interventions steering; of functional tests leaderboard, quality_curve and geometry."
            )
        figures += drawn
    return figures


def _titled(path: Path) -> Drawn:
    return Drawn(path, TITLES.get(path.stem, path.stem.replace("_", " ")))


def _overlay(tables: Tables, metric: str, jobs: _Jobs) -> list[Drawn]:
    stem, about = metric.replace("/", "_"), jobs.labels.metric(metric)
    first = next(iter(tables.values()))
    joined = pd.concat(tables.values(), ignore_index=True)
    # One curve per job of what depends on the matching; what is the same in every job is drawn once, for reference.
    of_pairs = set(joined.loc[joined["layer"] != joined["layer_to"], "variant"])
    variants = sorted(set(joined["variant"]))
    own = [about.reference] if about.reference in of_pairs else []
    same = [name for name in variants if name not in own and _same(joined, name, len(tables))]
    own = own or [name for name in variants if name not in same]
    if len(tables) == 1 or not own:
        path = plot_layer_curves(first, metric, jobs.directory / f"{stem}.png", about.title, labels=jobs.labels)
        whose = jobs.named[next(iter(tables))].name if len(tables) == 1 else "every job"
        return [Drawn(_with_data(path, [(whose, first)]), about.title)]
    common = first[first["variant"].isin(same)]
    return [
        _own_curves(tables, metric, name, stem if len(own) == 1 else f"{stem}_{name}", common, jobs) for name in own
    ]


def _same(joined: pd.DataFrame, variant: str, jobs: int) -> bool:
    """Whether every job has the same curve of a variant: its matching does not enter it."""
    rows = joined[joined["variant"] == variant].sort_values(["layer", "layer_to"], kind="stable")
    if len(rows) % jobs:
        return False
    places = rows[["layer", "layer_to"]].to_numpy().reshape(-1, jobs, 2)
    values = rows["value"].to_numpy(dtype=float).reshape(-1, jobs)
    return bool((places == places[:, :1]).all()) and np.allclose(values, values[:, :1], rtol=1e-6, atol=0)


def _own_curves(tables: Tables, metric: str, variant: str, stem: str, common: pd.DataFrame, jobs: _Jobs) -> Drawn:
    about = jobs.labels.metric(metric)
    curves = {label: table[table["variant"] == variant] for label, table in tables.items()}
    curves = {label: rows for label, rows in curves.items() if len(rows)}
    sign = 1 if about.better == "lower" else -1
    best = set(sorted(curves, key=lambda label: sign * float(curves[label]["value"].mean()))[: jobs.most])
    name = jobs.labels.variants[variant].label if variant in jobs.labels.variants else variant.replace("_", " ")
    title, note = about.title if variant in OF_LAYERS else f"{about.title}: {name}", ""
    if len(best) < len(curves):
        note = f"The best {len(best)} of {len(curves)} jobs by their mean; the others' numbers are in the tables."
        title += f" (best {len(best)} of {len(curves)} jobs)"
    drawn = {label: rows for label, rows in curves.items() if label in best}
    path = jobs.directory / f"{stem}.png"
    if of_one_pair(drawn) or (len(drawn) > len(PALETTE) and pairs_of(drawn) <= FEW_PAIRS):
        # With each job's own two seeds.
        drawn = {label: tables[label][tables[label]["variant"].isin((variant, CEILING))] for label in drawn}
        plot_bars(drawn, metric, variant, path, title=title, common=common, labels=jobs.labels)
    else:
        keys = comparison_keys(list(jobs.named.values()))
        look = factor_styles({label: [repr(setting(jobs.named[label], key)) for key in keys] for label in drawn})
        plot_overlay(drawn, metric, variant, path, title=title, common=common, look=look, labels=jobs.labels)
    plotted = [(jobs.named[label].name, rows) for label, rows in drawn.items()]
    return Drawn(_with_data(path, [*plotted, ("every job", common)]), title, note)


def _per_job(
    tables: Tables,
    stem: str,
    plot: Plot,
    jobs: _Jobs,
    drawn: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows,
) -> list[Drawn]:
    """One figure for each of the first jobs that have what it shows.

    Args:
        drawn: the rows of a table that the figure draws.
    """
    figures = []
    note = f"The first {jobs.most} of {len(tables)} jobs have this figure." if len(tables) > jobs.most else ""
    for number, (label, table) in enumerate(list(tables.items())[: jobs.most]):
        path = jobs.directory / (f"{stem}.png" if len(tables) == 1 else f"{stem}_{number}.png")
        alone = len(jobs.named) == 1
        plot(table, path, None if alone else label, jobs.labels)
        _with_data(path, [(jobs.named[label].name, drawn(table))])
        figures.append(Drawn(path, stem if alone else f"{stem}: {label}", note))
    return figures


def _with_data(path: Path, plotted: Sequence[tuple[str, pd.DataFrame]]) -> Path:
    """Write the plotted rows, with the job they are from, as CSV beside the figure."""
    rows = pd.concat([table.assign(job=job) for job, table in plotted if len(table)], ignore_index=True)
    write_csv(path.with_suffix(".csv"), rows[["job", *(name for name in rows.columns if name != "job")]])
    return path


def write_paper_figures(records: Sequence[Record], directory: Path, labels: Labels = BUILT_IN_LABELS) -> list[Path]:
    """Weight MSE by folding and splices against sparsity, where the records vary what these show."""
    with_pairs = [record for record in records if record.pairs is not None]
    found = dict(zip(job_labels(with_pairs), with_pairs, strict=True))
    tables = {k: per_layer_rows(r.pairs.dropna(subset="value")) for k, r in found.items() if r.pairs is not None}
    foldings = {label: str(record.factors.get("folding")) for label, record in found.items()}
    sparse = {label: (str(r.config.get("sae", {}).get("l0")), tables[label]) for label, r in found.items()}
    written = []
    if (mse := weight_mse_rows(foldings, tables)) is not None:
        written.append(plot_weight_mse(mse, directory / "weight_mse.png", labels))
        write_csv(directory / "weight_mse.csv", mse)
    if (rows := sparsity_rows(sparse, labels)) is not None:
        written.append(plot_sparsity(rows, directory / "sparsity.png", labels=labels))
        write_csv(directory / "sparsity.csv", rows)
    return written


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
