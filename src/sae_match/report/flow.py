"""Events of the flow graph by layer: a figure and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from ..files import reading
from ..flows.graph import EVENT_COLUMNS
from ..record.contents import FLOW_EVENTS
from ..record.labels import BUILT_IN_LABELS, Labels
from .canvas import plot_panels
from .curves import draw_layer_curves
from .records import Record
from .tables import Cell, Table, format_value

EVENTS = ("persist", "split", "merge", "birth", "death")
METRICS = tuple(f"flow/{name}" for name in EVENTS)
NOTE = (
    "Features of every event between two layers, in parentheses where the later layer's dictionary is turned by a "
    "random rotation. What happens between two seeds of one layer is the SAEs' own noise. persist: each other's best; "
    "split: best parent of two or more; merge: best child of two or more; birth: no parent; death: no child."
)


def flow_rows(near: pd.DataFrame) -> pd.DataFrame:
    """The rows of neighbors that the figure draws; none of a job without a flow graph."""
    return near[near["metric"].isin(METRICS)]


def plot_flow(
    rows: pd.DataFrame, path: Path, title: str | None = None, labels: Labels = BUILT_IN_LABELS
) -> Path:  # fmt: skip
    """Share of features of every event over layer pairs, with that of two seeds and that under the null.
    `rows` as from `flow_rows`."""

    def draw(ax: Axes, metric: str) -> None:
        draw_layer_curves(ax, rows, metric, labels=labels)

    return plot_panels(path, METRICS, draw, title)


def flow_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Events by layer of every job that has a flow graph, as in events.csv, with the job's name.

    Raises:
        UserError: a file is damaged.
    """
    tables = []
    for job in (source for record in records for source in record.sources):
        if job.state == "done" and (path := job.path / FLOW_EVENTS).is_file():
            with reading(path, "table of events"):
                tables.append(pd.read_csv(path)[list(EVENT_COLUMNS)].assign(job=job.name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def flow_table(frame: pd.DataFrame) -> Table:
    """A row per job and pair of layers, or pair of seeds."""
    rows = [_row(row) for row in frame.to_dict("records")]
    header = ["job", "layers", "features", *EVENTS, "threshold", "null's features with an edge"]
    return Table(header, rows, header[2:], ["job"], NOTE)


def _row(row: Mapping[Any, Any]) -> list[Cell]:
    places = f"{row['layer']} → {row['layer_to']}" + (" (two seeds)" if row["role"] == "seeds" else "")
    cells = [Cell(str(row["job"])), Cell(places), Cell(f"{row['features']}", row["features"])]
    cells += [Cell(f"{row[name]} ({row[f'null_{name}']})", row[name]) for name in EVENTS]
    cells.append(Cell(format_value(row["threshold"]), row["threshold"]))
    return [*cells, Cell(f"{100 * row['null_rate']:.1f} %", row["null_rate"])]
