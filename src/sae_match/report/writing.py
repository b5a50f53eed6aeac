"""The report as text, and as files in a directory: report.md, report.html, tables as CSV, figures, pages of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sae_match.files import atomic_path, write_text

from ..errors import UserError
from ..record.contents import PATHS
from .ablation import ablation_table
from .canvas import also_written
from .contents import Options, Tables, make_tables
from .controls import NOTE as CONTROLS_NOTE
from .controls import controls_table
from .dashboard import dashboard
from .effects import effects_table
from .overlay import Drawn, write_overlays
from .record_paths import write_path_pages
from .records import BAD_STATES, Record
from .tables import comparison_frame, summary_table


def report_text(tables: Tables, options: Options, figures: Sequence[Drawn] = (), pages: Sequence[str] = ()) -> str:
    """The whole report as Markdown: a pure function of the records (and the figures' file names)."""
    done = sum(job.state == "done" for job in tables.jobs)
    parts = [
        f"# SAE Match: {done} of {len(tables.jobs)} jobs done\n",
        summary_table(tables.records, options.metrics, tables.labels),
    ]
    troubled = [job for job in tables.jobs if job.state in BAD_STATES]
    if troubled:
        lines = [
            f"- **{job.name}** {job.state}: {' '.join((job.error or 'no reason recorded').split())}" for job in troubled
        ]
        parts.append("## Jobs that did not finish\n\n" + "\n".join(lines) + "\n")
    if tables.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in tables.notes) + "\n")
    if tables.compared:
        table = ablation_table(tables.records, tables.ablation, tables.compared, tables.labels)
        parts.append(f"## Ablation\n\n{tables.ablation_note}\n\n{table}")
    if not tables.effects.empty:
        table = effects_table(tables.effects, tables.compared, tables.labels)
        parts.append(f"## Effect of each factor\n\n{tables.effects_note}\n\n{table}")
    if not tables.controls.empty:
        parts.append(f"## Controls\n\n{CONTROLS_NOTE}\n\n{controls_table(tables.controls, tables.labels)}")
    if figures:
        images = [f"![{figure.path.stem}]({figure.path.name})" for figure in figures]
        notes = [f"{figure.path.stem}: {figure.note}" for figure in figures if figure.note]
        parts.append("## Per layer\n\n" + "\n".join(images) + "\n" + "".join(f"\n{note}\n" for note in notes))
    if pages:
        parts.append("## Feature paths\n\n" + "\n".join(f"- [{name}]({name})" for name in pages) + "\n")
    return "\n".join(parts)


def write_report(jobs: Sequence[Record], output: Path, options: Options) -> str:
    """Write everything into `output`; returns the text of report.md.

    Raises:
        UserError: the directory cannot be written to, or a table of a record cannot be read.
    """
    tables = make_tables(jobs, options)
    try:
        figures, pages = _draw(tables, output, options) if options.figures else ([], [])
        text = report_text(tables, options, figures, pages)
        write_text(output / "report.md", text)
        _write_csv(output / "report.csv", comparison_frame(tables.records))
        if tables.compared:
            _write_csv(output / "ablation.csv", tables.ablation)
        if not tables.effects.empty:
            _write_csv(output / "effects.csv", tables.effects)
        if not tables.controls.empty:
            _write_csv(output / "controls_table.csv", tables.controls)
        write_text(output / "report.html", dashboard(tables, options.metrics, figures, pages, output))
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}. Give another --output.") from error
    return text


def _draw(tables: Tables, output: Path, options: Options) -> tuple[list[Drawn], list[str]]:
    with also_written(options.formats):
        figures = write_overlays(tables.records, output, options.most, options.only, tables.labels)
    with_paths = [job for job in tables.jobs if (job.path / PATHS).is_file()]
    pages = write_path_pages(with_paths[: options.most], output, options.features)
    if len(with_paths) > options.most:
        tables.notes.append(
            f"Pages of feature paths: the first {options.most} of {len(with_paths)} jobs that have one."
        )
    return figures, [path.name for path in pages]


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
