"""One span of layers split over jobs: their records as the record of one job over the whole span.

Jobs belong together where everything scientific in their configurations is equal except `layers`. Headline numbers are
made again from the pairs as a single job makes them (`Description.over_pairs`), not averaged over the jobs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..metrics.description import DIFFERENCE, headline_name
from ..record.configuration import science_of
from ..record.labels import Labels, joined
from ..record.pairs import near_rows
from .records import Record
from .resampling import SAMPLES, SEED, document_sums, means

KEY = ["layer", "layer_to", "variant", "metric"]
TOLERANCE = 1e-6
"""Largest relative difference between two values of what is the same measurement."""


@dataclass(frozen=True)
class Merged:
    """Records of which none is a part of another's span, and what a reader must know about how they came to be."""

    records: list[Record]
    notes: list[str]


class _ConflictError(Exception):
    """Two jobs measured the same and do not agree."""


def merge_spans(records: Sequence[Record]) -> Merged:
    """Merge finished jobs that split one span of layers; every other record stays as it is, in its place.

    Jobs over the same span are repetitions and stay apart, as do jobs that hold the same pair with different values
    (a note says which). Jobs of the group that did not finish stay records of their own.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.state == "done" and record.pairs is not None and _span(record) is not None:
            groups[_science_but_layers(record)].append(index)
    merged: dict[int, Record] = {}
    left_out: set[int] = set()
    notes: list[str] = []
    for indices in groups.values():
        parts = sorted((records[index] for index in indices), key=lambda part: _span(part) or (0, 0))
        if len(parts) > 1 and len({_span(part) for part in parts}) == len(parts):
            try:
                merged[indices[0]], remarks = _merge(parts)
                left_out.update(indices[1:])
                notes += remarks
            except _ConflictError as conflict:
                notes.append(f"Not merged: {conflict}")
    kept = [merged.get(index, record) for index, record in enumerate(records) if index not in left_out]
    return Merged(kept, notes)


def _span(record: Record) -> tuple[int, int] | None:
    first, last = record.flat.get("layers.first"), record.flat.get("layers.last")
    return (first, last) if isinstance(first, int) and isinstance(last, int) else None


def _science_but_layers(record: Record) -> str:
    """What jobs of one span have in common. What they capture for each other does not count, nor does a device."""
    return json.dumps(science_of(record.config, ("layers", "capture", "device")), sort_keys=True, default=str)


def _merge(parts: Sequence[Record]) -> tuple[Record, list[str]]:
    pairs = _joined(parts)
    labels = joined(part.labels for part in parts)
    numbers = _means(pairs, labels)
    numbers |= _intervals(parts, numbers, labels)
    lost = _lost(parts, numbers)
    spans = [span for part in parts if (span := _span(part))]
    first, last = min(a for a, _ in spans), max(b for _, b in spans)
    seconds = [part.seconds for part in parts]
    record = replace(
        parts[0],
        name=_name([part.name for part in parts]),
        config={**parts[0].config, "layers": {**parts[0].config["layers"], "first": first, "last": last}},
        seconds=None if None in seconds else math.fsum(number for number in seconds if number is not None),
        metrics=dict(sorted(numbers.items())),
        pairs=pairs,
        labels=labels,
        parts=tuple(parts),
    )
    note = f"{record.name}: one span, layers {first} to {last}, from {len(parts)} jobs; means are over all its pairs."
    if missing := _missing(pairs, first, last):
        note += f" No job has the pairs {', '.join(missing)}: the means leave them out."
    if lost:
        note += f" Not to be had from the pairs, and left out: {', '.join(lost)}."
    return record, [note]


def _name(names: Sequence[str]) -> str:
    """At most three of the names; more are counted."""
    return " + ".join(names) if len(names) <= 3 else f"{names[0]} + {names[1]} + … + {names[-1]} ({len(names)} jobs)"


def _joined(parts: Sequence[Record]) -> pd.DataFrame:
    """The jobs' rows, each once.

    Raises:
        _ConflictError: two jobs have the same row with different values.
    """
    tables = [part.pairs.assign(part=place) for place, part in enumerate(parts) if part.pairs is not None]
    table = pd.concat(tables, ignore_index=True).sort_values([*KEY, "part"], kind="stable", ignore_index=True)
    labels = joined(part.labels for part in parts)
    again = table[table.duplicated(KEY, keep=False)]
    for key, rows in again.groupby(KEY, sort=False):
        low, high = rows["value"].min(), rows["value"].max()
        if labels.metric(str(key[3])).combine == "mean" and not math.isclose(low, high, rel_tol=TOLERANCE):
            names = " and ".join(parts[place].name for place in rows["part"].unique())
            where = f"{key[0]}→{key[1]}" if key[0] != key[1] else f"layer {key[0]}"
            raise _ConflictError(
                f"{names} have different values of {key[3]}/{key[2]} at {where} ({low:.6g} and {high:.6g})"
            )
    return table.drop_duplicates(KEY, keep="first", ignore_index=True).drop(columns="part")


def _means(pairs: pd.DataFrame, labels: Labels) -> dict[str, Any]:
    """Headline numbers of the joined rows; with an interval where one row is all there is to average."""
    numbers: dict[str, Any] = {}
    near = near_rows(pairs).dropna(subset="value")
    for (metric, variant), rows in near.groupby(["metric", "variant"], sort=True):
        name = headline_name(str(metric), str(variant))
        numbers[name] = labels.metric(str(metric)).over_pairs(rows["value"].tolist())
        row = rows.iloc[0]
        if len(rows) == 1 and np.isfinite([row["low"], row["high"]]).all():
            numbers[f"{name}_low"], numbers[f"{name}_high"] = float(row["low"]), float(row["high"])
    return numbers


def _intervals(parts: Sequence[Record], numbers: Mapping[str, Any], labels: Labels) -> dict[str, float]:
    """95 % intervals of the means on the jobs' own resamples, as a single job computes them; none without the sums per
    document of every job."""
    sums = document_sums(parts)
    if sums is None:
        return {}
    samples, seed = parts[0].flat.get("evaluation.bootstrap_samples", SAMPLES), parts[0].flat.get("seed", SEED)
    found = {name: mean.estimate for name, mean in means(sums, list(numbers), labels, samples, seed).items()}
    for name in numbers:
        about, other = labels.split(name)
        if about.name.endswith(DIFFERENCE):
            base = labels.metric(about.name.removesuffix(DIFFERENCE))
            ours, theirs = (found.get(headline_name(base.name, variant)) for variant in (base.reference, other))
            if ours is not None and theirs is not None:
                found[name] = ours - theirs
    ends = {name: estimate.interval for name, estimate in found.items() if not math.isnan(estimate.interval[0])}
    return {
        f"{name}_{side}": end for name, both in ends.items() for side, end in zip(("low", "high"), both, strict=True)
    }


def _lost(parts: Sequence[Record], numbers: Mapping[str, Any]) -> list[str]:
    """The kinds of number that the jobs have and the merged record has not."""
    lost = {name for part in parts for name, value in part.metrics.items() if value is not None} - numbers.keys()
    ends = [name for name in lost if name.endswith(("_low", "_high")) and name[: name.rindex("_")] in numbers]
    kinds = {name.split("/")[0] for name in lost.difference(ends)}
    return sorted(kinds) + sorted({f"95 % intervals of {name[: name.rindex('_')].split('/')[0]}" for name in ends})


def _missing(pairs: pd.DataFrame, first: int, last: int) -> list[str]:
    there: Mapping[int, Any] = dict.fromkeys(pairs.loc[pairs["layer_to"] - pairs["layer"] == 1, "layer"].tolist())
    return [f"{layer}→{layer + 1}" for layer in range(first, last) if layer not in there]
