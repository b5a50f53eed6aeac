"""A report: tables of the records, and report.md, report.html, CSV files, figures and pages of paths."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from sae_match.files import write_text
from sae_match.flows.graph import ABOUT

from ..errors import UserError
from ..record.contents import FLOW, PATHS
from ..record.labels import Labels, joined
from .ablation import (
    ablation_frame,
    compared_metrics,
    effects_frame,
    effects_note,
    rank,
    ranking_note,
    resample,
)
from .canvas import also_written
from .controls import NOTE as CONTROLS_NOTE
from .controls import controls_frame
from .examples import examples_frame, examples_table
from .explorer import flow_of
from .figures import MAX_CURVES, Drawn, effects_figure, write_overlays
from .flow import flow_frame, flow_table
from .leaderboard_figures import leaderboard_figures
from .leaderboard_tables import Leaderboard, make_leaderboard
from .merge import merge_spans
from .pages import html_page, paths_of
from .records import BAD_STATES, Record
from .steering import steering_examples, steering_figure, steering_frame, steering_table
from .tables import (
    Table,
    ablation_table,
    comparison_frame,
    comparison_table,
    controls_table,
    effects_table,
    headline_names,
    jobs_table,
    settings_of_all,
    summary_table,
    write_csv,
)

HEADINGS = {
    "jobs": "Jobs",
    "comparison": "Comparison",
    "leaderboard": "Which matcher finds the feature that does the same?",
    "decomposition": "Similarity and assignment",
    "ablation": "Ablation",
    "effects": "Effect of each factor",
    "controls": "Controls",
    "flow": "Flow of features by layer",
    "steering": "Interventions along flows",
    "steering_examples": "Continuations after interventions",
    "examples": "Example pairs",
    "figures": "Per layer",
    "files": "Files",
}
"""Sections of report.html. The tables of report.md have the same headings."""


@dataclass(frozen=True)
class Options:
    """What a report holds."""

    metrics: Sequence[str] | None = None
    """Columns of the tables, names in metrics.json; None for the usual ones."""
    figures: bool = True
    """Whether figures and pages of paths are drawn."""
    only: Sequence[str] = ()
    """Names of the figures to draw (`write_overlays`); empty: all."""
    formats: Sequence[str] = ("svg",)
    """Vector formats beside each PNG."""
    features: Sequence[int] = ()
    """Paths to show, as in `path_page`."""
    merge: bool = True
    """Whether jobs that split one span of layers become one row."""
    most: int = MAX_CURVES
    """Jobs in one figure, and figures or pages that every job has one of."""


@dataclass(frozen=True)
class Report:
    """The jobs, their records as rows (those of one span merged), notes on them, and what was made from them: frames by
    the name of their CSV file, tables by section, the summary in Markdown, and the functional tests compared."""

    jobs: Sequence[Record]
    records: Sequence[Record]
    notes: list[str]
    labels: Labels
    frames: Mapping[str, pd.DataFrame]
    tables: Mapping[str, Table]
    summary: str
    leaderboard: Leaderboard | None = None

    @property
    def title(self) -> str:
        """How many of the jobs are done."""
        return f"SAE Match: {sum(job.state == 'done' for job in self.jobs)} of {len(self.jobs)} jobs done"


def make_report(jobs: Sequence[Record], options: Options, folder: Path = Path()) -> Report:
    """Merge what belongs together, and compare. Links are relative to `folder`, where the report will stand."""
    records, notes = merge_spans(jobs) if options.merge else (jobs, [])
    notes = [*notes, *warning_notes(jobs)]
    labels = joined(record.labels for record in records)
    names = headline_names(records, labels, options.metrics)
    frames = {"report.csv": comparison_frame(records)}
    tables = {"jobs": jobs_table(jobs, folder), "comparison": comparison_table(records, names, labels, folder)}
    if leaderboard := make_leaderboard(jobs):
        frames |= leaderboard.frames
        tables |= leaderboard.tables
    # A combination that cannot work is no cell of the design.
    tried = [record for record in records if not record.refused]
    if compared := compared_metrics(tried, options.metrics, labels):
        resampled = resample(tried, compared, labels)
        rankings = {name: rank(tried, name, resampled, labels) for name in compared}
        frames["ablation.csv"] = frame = ablation_frame(tried, rankings)
        tables["ablation"] = ablation_table(tried, frame, compared, labels, folder, ranking_note(rankings))
        if len(effects := effects_frame(tried, compared, resampled)):
            frames["effects.csv"] = effects
            tables["effects"] = effects_table(effects, compared, labels, effects_note(effects))
    if len(controls := controls_frame(records)):
        frames["controls_table.csv"] = controls
        tables["controls"] = controls_table(controls, labels, CONTROLS_NOTE)
    if len(flows := flow_frame(jobs)):
        frames["flow_events.csv"] = flows
        tables["flow"] = flow_table(flows)
    if len(steering := steering_frame(jobs)):
        frames["steering.csv"] = steering
        tables |= {"steering": steering_table(steering), "steering_examples": steering_examples(jobs)}
    if len(examples := examples_frame(records[: options.most])):
        frames["example_pairs.csv"] = examples
        tables["examples"] = examples_table(examples, records, folder)
        if len(records) > options.most:
            notes.append(f"Example pairs: of the first {options.most} of {len(records)} jobs.")
    summary = summary_table(records, options.metrics, labels)
    return Report(jobs, records, notes, labels, frames, tables, summary, leaderboard)


def warning_notes(jobs: Sequence[Record]) -> list[str]:
    """What the jobs warn of, each warning once, with the jobs that have it."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        for warning in job.warnings:
            names.setdefault(warning, []).append(job.name)
    return [
        f"Warning of {', '.join(found[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}: {warning}"
        for warning, found in names.items()
    ]


def write_report(jobs: Sequence[Record], output: Path, options: Options) -> str:
    """Write everything into `output`; returns the text of report.md.

    Raises:
        UserError: the directory cannot be written to, or a table of a record cannot be read.
    """
    report = make_report(jobs, options, output.resolve())
    try:
        figures, pages = _draw(report, output, options) if options.figures else ([], [])
        text = report_text(report, figures, pages)
        write_text(output / "report.md", text)
        for name, frame in report.frames.items():
            write_csv(output / name, frame)
        write_text(output / "report.html", dashboard(report, figures, ["report.md", *report.frames, *pages]))
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}. Give another --output.") from error
    return text


def _draw(report: Report, output: Path, options: Options) -> tuple[list[Drawn], list[str]]:
    more = dict(leaderboard_figures(report.leaderboard, output)) if report.leaderboard else {}
    with also_written(options.formats):
        if (effects := report.frames.get("effects.csv")) is not None:
            more["effects"] = partial(effects_figure, effects, output, report.labels)
        if (steering := report.frames.get("steering.csv")) is not None:
            more["steering"] = partial(steering_figure, steering, output)
        figures = write_overlays(report.records, output, options.most, options.only, report.labels, more)
    return figures, _write_pages(report, output, options)


def _write_pages(report: Report, output: Path, options: Options) -> list[str]:
    """Write paths.html of the job that holds paths, flow.html of the one that holds a flow graph, and PAGE_N.html where
    several do; the names of the files."""
    names = []
    for what, stem, file, page in (
        ("feature paths", "paths", PATHS, partial(paths_of, features=options.features)),
        ("flow graphs", "flow", f"{FLOW}/{ABOUT}", flow_of),
    ):
        jobs = [job for job in report.jobs if (job.path / file).is_file()]
        shown = jobs[: options.most]
        for number, job in enumerate(shown):
            names.append(f"{stem}.html" if len(shown) == 1 else f"{stem}_{number}.html")
            write_text(output / names[-1], page(job))
        if len(jobs) > len(shown):
            report.notes.append(f"Pages of {what}: the first {len(shown)} of {len(jobs)} jobs that have one.")
    return names


def report_text(report: Report, figures: Sequence[Drawn] = (), pages: Sequence[str] = ()) -> str:
    """The whole report as Markdown: a pure function of the records (and the figures' file names)."""
    parts = [f"# {report.title}\n", report.summary]
    refused = [job for job in report.jobs if job.refused]
    troubled = [job for job in report.jobs if job.state in BAD_STATES and not job.refused]
    for heading, found in (
        ("Jobs that were refused: they are in no ablation and no effect", refused),
        ("Jobs that did not finish", troubled),
    ):
        listed = [
            f"- **{job.name}** {job.outcome}: {' '.join((job.error or 'no reason recorded').split())}" for job in found
        ]
        if listed:
            parts.append(f"## {heading}\n\n" + "\n".join(listed) + "\n")
    if report.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in report.notes) + "\n")
    for section, heading in HEADINGS.items():
        if section not in ("jobs", "comparison", "examples") and (table := report.tables.get(section)):
            parts.append(f"## {heading}\n\n{table.note}\n\n{table.markdown}")
    if figures:
        images = [f"![{figure.path.stem}]({figure.path.name})" for figure in figures]
        notes = [f"\n{figure.path.stem}: {figure.note}\n" for figure in figures if figure.note]
        parts.append(f"## {HEADINGS['figures']}\n\n" + "\n".join(images) + "\n" + "".join(notes))
    if pages:
        parts.append("## Pages\n\n" + "\n".join(f"- [{name}]({name})" for name in pages) + "\n")
    return "\n".join(parts)


def dashboard(report: Report, figures: Sequence[Drawn], files: Sequence[str]) -> str:
    """The report as one HTML file that opens offline: states, tables that sort and filter, figures, links to the
    records and to the other `files` beside it. A pure function of the records and the figures' bytes."""
    shown = {*report.tables, "files"} | ({"figures"} if figures else set())
    notes = [settings_of_all(report.records), *report.notes]
    drawn = [{"title": figure.title, "note": figure.note, **_embedded(figure.path)} for figure in figures]
    return html_page(
        "dashboard",
        report.title,
        images=True,
        headings={name: heading for name, heading in HEADINGS.items() if name in shown},
        notes=[note for note in notes if note],
        tables=report.tables,
        figures=drawn,
        files=files,
    )


def _embedded(png: Path) -> dict[str, str | list[str]]:
    """The drawing as an address that needs no file, the vector one where there is one, and the files beside it."""
    there = [path for kind in (".png", ".svg", ".pdf", ".csv") if (path := png.with_suffix(kind)).is_file()]
    drawing = next((path for path in there if path.suffix == ".svg"), png)
    kind = {".svg": "svg+xml", ".png": "png"}[drawing.suffix]
    content = base64.b64encode(drawing.read_bytes()).decode()
    return {"source": f"data:image/{kind};base64,{content}", "files": [path.name for path in there]}
