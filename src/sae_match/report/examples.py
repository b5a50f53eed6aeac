"""Pairs of features to look at: where the measures agree that they match or do not, and where the measures disagree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import reading
from ..record.contents import EXAMPLES
from .records import Record
from .tables import ABSENT, Cell, Table, format_value, relative

BEST, WORST = "best", "worst"
TOGETHER, ALIKE = "fire together, point apart", "point alike, fire apart"
PER_KIND = 15
PLACE = ("layer", "feature", "layer_to", "partner")
NUMBERS = ("decoder_cosine", "mse_W_dec", "matching_score", "active", "partner_active")
"""Columns of features.parquet that are shown; the last three need text."""
TEXTS = ("contexts", "partner_contexts")
COLUMNS = ("kind", *PLACE, *NUMBERS, *TEXTS)
NOTE = (
    "Best and worst: largest and smallest sum of a pair's ranks in decoder cosine and in matching score among the "
    f"job's pairs. Surprising, of two kinds: “{TOGETHER}” ranks much higher in matching score than in decoder cosine, "
    f"“{ALIKE}” the other way round. Pairs with a feature that fires on fewer tokens than evaluation.min_count are "
    "left out; without text, best and worst go by decoder cosine alone. Fires on: counted tokens on which a feature "
    "fires. Contexts: where it is most active, «at this token»."
)


def choose_examples(features: pd.DataFrame, min_count: int, per_kind: int = PER_KIND) -> pd.DataFrame:
    """At most `per_kind` pairs of every kind (`NOTE` defines them), each once, with `COLUMNS`; texts are empty.

    Args:
        features: rows as in features.parquet, of any number of layer pairs.
        min_count: on how many tokens both features of a pair must fire, where that is known.
    """
    table = features.reindex(columns=[*PLACE, *NUMBERS]).assign(**dict.fromkeys(TEXTS, ""))
    cosine = table["decoder_cosine"].rank(pct=True)
    if table["matching_score"].notna().any():
        table = table[(table["active"] >= min_count) & (table["partner_active"] >= min_count)]
        cosine, score = (table[name].rank(pct=True) for name in ("decoder_cosine", "matching_score"))
        orders = {BEST: cosine + score, WORST: -cosine - score, TOGETHER: score - cosine, ALIKE: cosine - score}
    else:
        orders = {BEST: cosine, WORST: -cosine}
    count = min(per_kind, -(-len(table) // len(orders)))
    chosen = []
    for kind, order in orders.items():
        found = order if kind in (BEST, WORST) else order[order > 0]
        rows = found.sort_values(ascending=False, kind="stable").index[:count]
        chosen.append(table.loc[rows].assign(kind=kind))
    examples = pd.concat(chosen).reindex(columns=list(COLUMNS)).drop_duplicates([*PLACE])
    return examples.astype({"active": "Int64", "partner_active": "Int64"}).reset_index(drop=True)


def read_examples(path: Path) -> pd.DataFrame:
    """The examples of a record, from its example_pairs.csv.

    Raises:
        UserError: it is damaged, or lacks a column.
    """
    with reading(path, f"table with {', '.join(COLUMNS)}"):
        # A token may be "NA" or "null".
        missing = {name: [""] for name in NUMBERS}
        return pd.read_csv(path, keep_default_na=False, na_values=missing)[list(COLUMNS)]


def examples_frame(records: Sequence[Record]) -> pd.DataFrame:
    """The examples of every finished job that has some, with its name in the column `job`."""
    jobs = [job for record in records for job in record.sources if job.state == "done"]
    found = [read_examples(job.path / EXAMPLES).assign(job=job.name) for job in jobs if (job.path / EXAMPLES).is_file()]
    columns = ["job", *COLUMNS]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def examples_table(frame: pd.DataFrame, records: Sequence[Record], folder: Path) -> Table:
    """One row per example of `examples_frame`."""
    sources = {job.name: job for record in records for job in record.sources}
    links = {name: f"{relative(sources[name], folder)}/{EXAMPLES}" for name in dict.fromkeys(frame["job"])}
    rows = [_cells(row, links[str(row["job"])]) for row in frame.to_dict("records")]
    numbers = ["feature", "partner", "decoder cosine", "decoder MSE", "matching score", "fires on", "partner fires on"]
    header = ["job", "kind", "layers", *numbers, "contexts", "partner's contexts"]
    return Table(header, rows, numbers, ["job", "kind", "layers"], NOTE)


def _cells(row: Mapping[Hashable, Any], link: str) -> list[Cell]:
    features = [Cell(str(row[name]), float(row[name])) for name in ("feature", "partner")]
    numbers = [_number(row, name) for name in NUMBERS]
    texts = [Cell(str(row[name]), kind="context") for name in TEXTS]
    layers = Cell(f"{row['layer']}→{row['layer_to']}")
    return [Cell(str(row["job"]), href=link), Cell(str(row["kind"])), layers, *features, *numbers, *texts]


def _number(row: Mapping[Hashable, Any], name: str) -> Cell:
    if pd.isna(row[name]):
        return Cell(ABSENT)
    value = float(row[name])
    return Cell(f"{value:.0f}" if name in ("active", "partner_active") else format_value(value), value)
