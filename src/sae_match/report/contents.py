"""What a report says: the records as rows, and the tables made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from ..record.labels import Labels, joined
from .ablation import ablation_frame, ablation_metrics, rank, ranking_note
from .controls import controls_frame
from .effects import effects_frame, effects_note
from .merge import merge_spans
from .overlay import MAX_CURVES
from .records import Record
from .resampling import Resamples


@dataclass(frozen=True)
class Options:
    """What a report holds.

    Attributes:
        metrics: columns of the tables, names in metrics.json; None for the usual ones.
        figures: whether figures and pages of paths are drawn.
        only: names of the figures to draw (`write_overlays`); empty: all.
        formats: vector formats beside each PNG.
        features: paths to show, as in `path_page`.
        merge: whether jobs that split one span of layers become one row.
        most: jobs in one figure, and figures or pages that every job has one of.
    """

    metrics: Sequence[str] | None = None
    figures: bool = True
    only: Sequence[str] = ()
    formats: Sequence[str] = ("svg",)
    features: Sequence[int] = ()
    merge: bool = True
    most: int = MAX_CURVES


@dataclass(frozen=True)
class Tables:
    """The records as rows, and the tables made from them."""

    jobs: Sequence[Record]
    records: Sequence[Record]
    notes: list[str]
    compared: list[str]
    labels: Labels
    ablation: pd.DataFrame = field(default_factory=pd.DataFrame)
    ablation_note: str = ""
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    effects_note: str = ""
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)


def make_tables(jobs: Sequence[Record], options: Options) -> Tables:
    """Merge what belongs together, and compare."""
    merged = merge_spans(jobs) if options.merge else None
    records, notes = (merged.records, list(merged.notes)) if merged else (jobs, [])
    labels = joined(record.labels for record in records)
    compared = ablation_metrics(records, options.metrics, labels)
    controls = controls_frame(records)
    if not compared:
        return Tables(jobs, records, notes, compared, labels, controls=controls)
    resamples = Resamples(compared, labels)
    rankings = {name: rank(records, name, resamples) for name in compared}
    effects = effects_frame(records, compared, resamples)
    return Tables(
        jobs,
        records,
        notes,
        compared,
        labels,
        ablation_frame(records, rankings),
        ranking_note(rankings),
        effects,
        effects_note(effects),
        controls,
    )
