"""The report as one HTML file that opens offline: states, tables that sort and filter, figures, links to the records.

A pure function of the records, the tables made from them and the figures' bytes: no time, no machine, no network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..record.contents import METRICS, PAIRS
from ..record.labels import Labels
from .ablation import ablation_cells
from .compare import comparison_keys, setting, shared
from .contents import Tables
from .controls import NOTE as CONTROLS_NOTE
from .controls import controls_rows
from .effects import effects_rows
from .html_page import html_page
from .html_table import Cell, data_uri, escape, link, table
from .overlay import Drawn
from .records import BAD_STATES, Record
from .tables import ABSENT, format_value, headline_names, legend, titled


def dashboard(
    tables: Tables, metrics: Sequence[str] | None, figures: Sequence[Drawn], pages: Sequence[str], folder: Path
) -> str:
    """The page as HTML text.

    Everything from the records is escaped; `html_page` keeps everything else out.

    Args:
        metrics: columns of the comparison table, None for the usual ones.
        figures: as written into `folder`.
        pages: names of further pages in `folder`.
        folder: where the page will stand; links are relative to it.
    """
    done = sum(job.state == "done" for job in tables.jobs)
    sections = [
        ("jobs", "Jobs", _jobs(tables.jobs, folder)),
        ("comparison", "Comparison", _comparison(tables.records, metrics, folder, tables.labels)),
        ("ablation", "Ablation", _ablation(tables, folder)),
        ("effects", "Effect of each factor", _effects(tables)),
        ("controls", "Controls", _controls(tables)),
        ("figures", "Per layer", "\n".join(map(_figure, figures))),
        ("files", "Files", _files(tables, pages)),
    ]
    shown = [section for section in sections if section[2]]
    navigation = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown)
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in [*_common(tables.records), *tables.notes])
    body = "\n".join(f'<section id="{name}"><h2>{heading}</h2>\n{text}</section>' for name, heading, text in shown)
    title = f"SAE Match: {done} of {len(tables.jobs)} jobs done"
    return html_page(title, "dashboard", f"<nav>{navigation}</nav>\n{notes}\n{body}", images=True)


def _common(records: Sequence[Record]) -> list[str]:
    same = shared([record.factors for record in records if record.config])
    listed = ", ".join(f"{key}={value}" for key, value in same.items())
    return [f"Settings of every job: {listed}."] if listed else []


def _place(record: Record, folder: Path) -> str:
    """The record's directory, relative to the page."""
    return Path(os.path.relpath(record.path.resolve(), folder.resolve())).as_posix()


def _state(record: Record) -> Cell:
    return Cell(record.state, kind="bad" if record.state in BAD_STATES else "text")


def _jobs(jobs: Sequence[Record], folder: Path) -> str:
    keys = comparison_keys(jobs)
    rows = []
    for job in jobs:
        place = _place(job, folder)
        rows.append([
            Cell(job.name, kind="text", href=place),
            _state(job),
            *(Cell(_setting(job, key), kind="text") for key in keys),
            _seconds(job),
            _reason(job),
            *(_file(job, name, place) for name in (METRICS, PAIRS)),
        ])  # fmt: skip
    counts = pd.Series([job.state for job in jobs]).value_counts().sort_index()
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    header = ["job", "state", *keys, "seconds", "error", "metrics", "pairs"]
    return f"<p>{escape(summary)}.</p>\n" + table(
        header, rows, name="job-table", filters=["state", *keys], tall=len(rows) > 20
    )


def _reason(job: Record) -> Cell:
    """The first line of the error; all of it on hovering."""
    unknown = "no reason recorded" if job.state in BAD_STATES else ""
    return Cell(job.reason or unknown, title=job.error or "", kind="error")


def _file(job: Record, name: str, place: str) -> Cell:
    return Cell(name, kind="text", href=f"{place}/{name}") if (job.path / name).is_file() else Cell(ABSENT)


def _seconds(record: Record) -> Cell:
    return Cell(ABSENT) if record.seconds is None else Cell(f"{record.seconds:.1f}", sort=float(record.seconds))


def _setting(record: Record, key: str) -> str:
    return str(setting(record, key)) if record.config else ABSENT


def _source(record: Record, name: str, folder: Path) -> str:
    """Where a headline number comes from."""
    if record.parts:
        places = ", ".join(f"{_place(part, folder)}/{PAIRS}" for part in record.parts)
        return f"{name}: mean over the pairs of {places}"
    return f"{name} in {_place(record, folder)}/{METRICS} (job {record.name}); per pair in {PAIRS} beside it"


def _comparison(records: Sequence[Record], metrics: Sequence[str] | None, folder: Path, labels: Labels) -> str:
    keys = comparison_keys(records)
    names = headline_names(records, labels, metrics)
    rows = []
    for record in records:
        settings = [Cell(_setting(record, key), kind="text") for key in keys]
        numbers = [_number(record, name, folder) for name in names]
        name = Cell(record.name, kind="text", href=_place(record.sources[0], folder))
        rows.append([name, _state(record), *settings, *numbers, _seconds(record)])
    header = ["job", "state", *keys, *names, "seconds"]
    explained = legend(names, labels)
    note = f"<p>{escape(explained)}.</p>\n" if explained else ""
    return note + table(header, rows, name="comparison-table", filters=["state", *keys], tall=len(rows) > 20)


def _number(record: Record, name: str, folder: Path) -> Cell:
    value = record.metrics.get(name)
    if value is None and record.state != "done":
        return Cell(record.state, title=record.reason, kind="bad" if record.state in BAD_STATES else "")
    text = format_value(value, record.metrics.get(f"{name}_low"), record.metrics.get(f"{name}_high"))
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(text, sort=float(value) if plain and value is not None else None, title=_source(record, name, folder))


def _ablation(tables: Tables, folder: Path) -> str:
    if not tables.compared:
        return ""
    frame, keys = tables.ablation, comparison_keys(tables.records)
    texts = ablation_cells(frame, tables.compared)
    rows = []
    for record, numbers, line in zip(tables.records, frame.to_dict("records"), texts, strict=True):
        cells = [_ranked(record, name, numbers, text, folder) for name, text in zip(tables.compared, line, strict=True)]
        job = Cell(record.name, kind="text", href=_place(record.sources[0], folder))
        rows.append([*(Cell(_setting(record, key), kind="text") for key in keys), *cells, job])
    header = [*keys, *(titled(name, tables.labels) for name in tables.compared), "job"]
    return f"<p>{escape(tables.ablation_note)}</p>\n" + table(
        header, rows, name="ablation-table", filters=keys, tall=len(rows) > 20
    )


def _ranked(record: Record, name: str, numbers: dict[Any, Any], text: str, folder: Path) -> Cell:
    if record.state != "done":
        return Cell(text, title=record.reason, kind="bad" if record.state in BAD_STATES else "")
    value, place = numbers[name], numbers[f"{name}_rank"]
    if value is None or pd.isna(value):
        return Cell(text)
    return Cell(text, sort=float(value), title=_source(record, name, folder), kind="first" if place == 1 else "")


def _effects(tables: Tables) -> str:
    frame = tables.effects
    if frame.empty:
        return ""
    header, texts = effects_rows(frame, tables.compared, tables.labels)
    rows = []
    groups = frame.groupby(["factor", "level", "reference"], sort=False)
    for (_, group), line in zip(groups, texts, strict=True):
        found = {entry["metric"]: entry for entry in group.to_dict("records")}
        cells = [Cell(text, kind="text") for text in line[:3]]
        for name, text in zip(tables.compared, line[3:], strict=True):
            effect = found[name]["effect"]
            known = effect is not None and not pd.isna(effect)
            cells.append(Cell(text, sort=float(effect) if known else None, title=f"{name}: {found[name]['jobs']}"))
        rows.append(cells)
    return f"<p>{escape(tables.effects_note)}</p>\n" + table(header, rows, name="effects-table", filters=["factor"])


def _controls(tables: Tables) -> str:
    if tables.controls.empty:
        return ""
    header, texts = controls_rows(tables.controls, tables.labels)
    rows = [[Cell(text, kind="text" if place < 2 else "") for place, text in enumerate(line)] for line in texts]
    return f"<p>{escape(CONTROLS_NOTE)}</p>\n" + table(header, rows, name="controls-table", filters=header[:2])


def _figure(figure: Drawn) -> str:
    vector, png = figure.path.with_suffix(".svg"), figure.path
    drawing = vector if vector.is_file() else png
    kind = "image/svg+xml" if drawing is vector else "image/png"
    there = [path for path in (png, vector, png.with_suffix(".pdf"), png.with_suffix(".csv")) if path.is_file()]
    links = " ".join(link(path.name, path.suffix[1:].upper()) for path in there)
    caption = f"{escape(figure.title)}. {escape(figure.note)}" if figure.note else f"{escape(figure.title)}."
    return (
        f'<figure data-title="{escape(figure.title)}">'
        f'<img alt="{escape(figure.title)}" src="{data_uri(drawing.read_bytes(), kind)}">'
        f"<figcaption>{caption} {links}</figcaption></figure>"
    )


def _files(tables: Tables, pages: Sequence[str]) -> str:
    names = ["report.md", "report.csv"]
    if tables.compared:
        names += ["ablation.csv"] + ([] if tables.effects.empty else ["effects.csv"])
    names += [] if tables.controls.empty else ["controls_table.csv"]
    items = "".join(f"<li>{link(name, name)}</li>" for name in [*names, *pages])
    return f"<ul>{items}</ul>\n"
