"""Per-layer figures of several jobs at once, each with the plotted data as CSV beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sae_match.files import atomic_path

from ..errors import UserError
from ..metrics.description import Description
from ..record.labels import BUILT_IN_LABELS, Labels
from ..record.pairs import distance_rows
from ..variants import Look
from .compare import comparison_keys, job_labels, setting
from .controls import controls_frame
from .controls_figure import drawn_rows, plot_controls
from .distance_figures import has_distances, plot_composition
from .figures import plot_layer_curves, plot_overlay
from .pair_figure import write_pair_figures
from .paper_figures import of_one_pair, plot_bars, write_paper_figures
from .quantile_figures import has_quantiles, per_layer_rows, plot_quantiles, quantile_rows
from .records import Record
from .style import factor_styles

MAX_CURVES = 12
"""Jobs in one figure; of more, the best by their mean are drawn."""

PAPER = {
    "weight_mse": "weight MSE by folding, over layer pairs",
    "sparsity": "splices against the sparsity of the SAEs",
    "pairs": "example pairs",
}
"""Titles of the figures in the paper's form, by file name."""

Tables = dict[str, dict[str, pd.DataFrame]]
"""Metric -> job's label -> its rows over layer pairs."""


@dataclass(frozen=True)
class Drawn:
    """A figure as written: the PNG's path (the same name with .csv beside it holds what is plotted), what it shows, and
    what was left out of it."""

    path: Path
    title: str
    note: str = ""


@dataclass(frozen=True)
class _Jobs:
    """What every figure needs to know of the jobs: names and varying settings by label, where to write, how many, and
    what metrics and variants are called."""

    names: Mapping[str, str]
    settings: Mapping[str, Sequence[str]]
    directory: Path
    most: int
    labels: Labels


def write_overlays(
    records: Sequence[Record],
    directory: Path,
    most: int = MAX_CURVES,
    only: Sequence[str] = (),
    labels: Labels = BUILT_IN_LABELS,
) -> list[Drawn]:
    """One figure per metric: the jobs' own curves together (with a single job: all its variants), or bars where there
    is one layer pair; per job one over distance and one over quantiles, where it has them; those in the paper's form.

    File names are the metrics' with '/' as '_', and the variant's where a metric needs several.

    Args:
        most: jobs in one figure, and figures of one job's own kind; what was left out is said in the note.
        only: names of the figures to draw, without suffix or number; empty: all.
        labels: those of the records, joined.

    Raises:
        UserError: `only` names a figure that these records do not give.
    """
    named = {_marked(label, record): record for label, record in zip(job_labels(records), records, strict=True)}
    whole = {label: record.pairs.dropna(subset="value") for label, record in named.items() if record.pairs is not None}
    keys = comparison_keys(records)
    jobs = _Jobs(
        names={label: record.name for label, record in named.items()},
        settings={label: [repr(setting(record, key)) for key in keys] for label, record in named.items()},
        directory=directory,
        most=most,
        labels=labels,
    )
    tables = _by_metric(whole, labels)
    makers: dict[str, Callable[[], list[Drawn]]] = {
        _stem(metric): partial(_overlay, tables[metric], metric, jobs) for metric in sorted(tables)
    }
    makers["composition"] = partial(
        _per_job, whole, "composition", has_distances, plot_composition, distance_rows, jobs
    )
    makers["quantiles"] = partial(_per_job, whole, "quantiles", has_quantiles, plot_quantiles, quantile_rows, jobs)
    makers["controls"] = partial(_controls, records, jobs)
    makers["paper"] = lambda: _as_single_panels(write_paper_figures(records, directory, labels))
    makers["pairs"] = lambda: _as_single_panels(write_pair_figures(records, directory))
    figures: list[Drawn] = []
    for name in only or makers:
        drawn_now = makers[name]() if name in makers else []
        if only and not drawn_now:
            there = ", ".join(_stem(metric) for metric in sorted(tables))
            raise UserError(
                f"--figure {name}: these records give no such figure. There are {there}, and where jobs have what they "
                "show, composition, quantiles, controls, paper (weight MSE by folding, sparsity) and pairs."
            )
        figures += drawn_now
    return figures


def _stem(metric: str) -> str:
    return metric.replace("/", "_")


def _as_single_panels(paths: Sequence[Path]) -> list[Drawn]:
    return [Drawn(path, PAPER.get(path.stem, path.stem.replace("_", " "))) for path in paths]


def _marked(label: str, record: Record) -> str:
    """A label that says if the curve is only what a job had measured when it ended, or has measured so far."""
    return label if record.state == "done" else f"{label} ({record.state})"


def _by_metric(whole: Mapping[str, pd.DataFrame], labels: Labels) -> dict[str, dict[str, pd.DataFrame]]:
    """Metric -> label -> rows over layer pairs, of metrics that are drawn."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for label, table in whole.items():
        for metric, rows in per_layer_rows(table).groupby("metric", sort=True):
            if labels.metric(str(metric)).figure != "none":
                found.setdefault(str(metric), {})[label] = rows
    return found


def _overlay(tables: Mapping[str, pd.DataFrame], metric: str, jobs: _Jobs) -> list[Drawn]:
    stem, about = _stem(metric), jobs.labels.metric(metric)
    title = about.title
    first = next(iter(tables.values()))
    joined = pd.concat(tables.values(), ignore_index=True)
    counts = joined.groupby("variant", sort=True).size()
    # One curve per job of what depends on the matching; what is the same in every job is drawn once, for reference.
    of_pairs = set(joined.loc[joined["layer"] != joined["layer_to"], "variant"])
    own = [about.reference] if about.reference in of_pairs else []
    same = [name for name in counts.index if name not in own and _same(joined, name, len(tables))]
    own = own or [name for name in counts.index if name not in same]
    if len(tables) == 1 or not own:
        path = plot_layer_curves(first, metric, jobs.directory / f"{stem}.png", title, labels=jobs.labels)
        whose = jobs.names[next(iter(tables))] if len(tables) == 1 else "every job"
        return [Drawn(_with_data(path, [(whose, first)]), title)]
    common = first[first["variant"].isin(same)]
    return [
        _own_curves(tables, metric, name, stem if len(own) == 1 else f"{stem}_{name}", common, jobs) for name in own
    ]


def _own_curves(
    tables: Mapping[str, pd.DataFrame], metric: str, variant: str, stem: str, common: pd.DataFrame, jobs: _Jobs
) -> Drawn:
    curves = {label: table[table["variant"] == variant] for label, table in tables.items()}
    curves = {label: rows for label, rows in curves.items() if len(rows)}
    about = jobs.labels.metric(metric)
    chosen = _best(curves, about, jobs.most)
    look: dict[str, Look] = factor_styles({label: jobs.settings[label] for label in chosen})
    title, note = f"{about.title}: {variant}", ""
    if len(chosen) < len(curves):
        note = f"The best {len(chosen)} of {len(curves)} jobs by their mean; the others' numbers are in the tables."
        title += f" (best {len(chosen)} of {len(curves)} jobs)"
    path = jobs.directory / f"{stem}.png"
    drawn_curves = {label: curves[label] for label in chosen}
    if of_one_pair(drawn_curves):
        # The rows of all variants: a bar's own ceiling is drawn beside it.
        rows = {label: tables[label] for label in chosen}
        plot_bars(rows, metric, variant, path, title=title, common=common, labels=jobs.labels)
    else:
        plot_overlay(drawn_curves, metric, variant, path, title=title, common=common, look=look, labels=jobs.labels)
    plotted = [(jobs.names[label], curves[label]) for label in chosen]
    return Drawn(_with_data(path, [*plotted, ("every job", common)]), title, note)


def _best(curves: Mapping[str, pd.DataFrame], about: Description, most: int) -> list[str]:
    """The labels of the best jobs by their mean, in the jobs' order."""
    sign = 1 if about.better == "lower" else -1
    ranked = sorted(curves, key=lambda label: sign * float(curves[label]["value"].mean()))
    chosen = set(ranked[:most])
    return [label for label in curves if label in chosen]


def _per_job(
    whole: Mapping[str, pd.DataFrame],
    stem: str,
    has: Callable[[pd.DataFrame], bool],
    plot: Callable[[pd.DataFrame, Path, str | None, Labels], Path],
    rows: Callable[[pd.DataFrame], pd.DataFrame],
    jobs: _Jobs,
) -> list[Drawn]:
    """One figure for each of the first jobs that have what it shows."""
    chosen = [label for label, table in whole.items() if has(table)]
    figures = []
    for number, label in enumerate(chosen[: jobs.most]):
        path = jobs.directory / (f"{stem}.png" if len(chosen) == 1 else f"{stem}_{number}.png")
        plot(whole[label], path, label if len(whole) > 1 else None, jobs.labels)
        note = f"The first {jobs.most} of {len(chosen)} jobs have this figure." if len(chosen) > jobs.most else ""
        title = stem if len(whole) == 1 else f"{stem}: {label}"
        figures.append(Drawn(_with_data(path, [(jobs.names[label], rows(whole[label]))]), title, note))
    return figures


def _controls(records: Sequence[Record], jobs: _Jobs) -> list[Drawn]:
    """One figure for each of the first jobs that have controls."""
    frame = controls_frame(records)
    chosen = list(dict.fromkeys(frame["job"]))
    label_of = {name: label for label, name in jobs.names.items()}
    figures = []
    for number, name in enumerate(chosen[: jobs.most]):
        rows = frame[frame["job"] == name]
        path = jobs.directory / ("controls.png" if len(chosen) == 1 else f"controls_{number}.png")
        plot_controls(rows, path, label_of.get(name) if len(records) > 1 else None, jobs.labels)
        note = f"The first {jobs.most} of {len(chosen)} jobs have this figure." if len(chosen) > jobs.most else ""
        title = "controls" if len(records) == 1 else f"controls: {label_of.get(name, name)}"
        figures.append(
            Drawn(_with_data(path, [(name, drawn_rows(rows, jobs.labels).drop(columns="job"))]), title, note)
        )
    return figures


def _with_data(path: Path, plotted: Sequence[tuple[str, pd.DataFrame]]) -> Path:
    """Write the plotted rows, with the job they are from, as CSV beside the figure."""
    rows = pd.concat([table.assign(job=job) for job, table in plotted if len(table)], ignore_index=True)
    columns = ["job", *(name for name in rows.columns if name != "job")]
    with atomic_path(path.with_suffix(".csv")) as temporary:
        rows[columns].to_csv(temporary, index=False, lineterminator="\n")
    return path


def _same(joined: pd.DataFrame, variant: str, jobs: int) -> bool:
    """Whether every job has the same curve of a variant: its matching does not enter it."""
    rows = joined[joined["variant"] == variant].sort_values(["layer", "layer_to"], kind="stable")
    if len(rows) % jobs:
        return False
    places = rows[["layer", "layer_to"]].to_numpy().reshape(-1, jobs, 2)
    values = rows["value"].to_numpy(dtype=float).reshape(-1, jobs)
    return bool((places == places[:, :1]).all()) and np.allclose(values, values[:, :1], rtol=1e-6, atol=0)
