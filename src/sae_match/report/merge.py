"""One span of layers split over jobs: their records as the record of one job over the whole span.

Jobs belong together where everything scientific in their configurations is equal except `layers`. Headline numbers are
made again from the pairs as a single job makes them (`Description.over_pairs`), not averaged over the jobs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..metrics.description import DIFFERENCE, headline_name
from ..record.configuration import science_of
from ..record.labels import Labels, joined
from ..record.pairs import near_rows
from .records import Record
from .resampling import SAMPLES, SEED, means

KEY = ["layer", "layer_to", "variant", "metric"]
TOLERANCE = 1e-6
"""Largest relative difference between two values of what is the same measurement."""


class Merged(NamedTuple):
    """Records of which none is a part of another's span, and notes on how they were made."""

    records: list[Record]
    notes: list[str]


class _ConflictError(Exception):
    """Two jobs measured the same and do not agree."""


def merge_spans(records: Sequence[Record]) -> Merged:
    """Merge finished jobs that split one span of layers; every other record stays as it is, in its place.

    Jobs over the same span are repetitions and stay apart, as do a job whose span lies within another's and jobs that
    hold the same pair with different values (a note names them). Jobs of the group that did not finish stay records of
    their own.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        spanned = all(isinstance(end, int) for end in _span(record)) and not record.config["layers"].get("list")
        if record.state == "done" and record.pairs is not None and spanned:
            # What jobs capture for each other does not count, nor does the device.
            science = science_of(record.config, ("layers", "capture", "device"))
            groups[json.dumps(science, sort_keys=True, default=str)].append(index)
    merged: dict[int, Record | None] = {}
    notes: list[str] = []
    for group in groups.values():
        spans = {index: _span(records[index]) for index in group}
        indices = [index for index in group if not any(_within(spans[index], other) for other in spans.values())]
        parts = sorted((records[index] for index in indices), key=_span)
        if len(parts) > 1 and len({_span(part) for part in parts}) == len(parts):
            try:
                record, note = _merge(parts)
                merged |= {**dict.fromkeys(indices), indices[0]: record}
            except _ConflictError as conflict:
                note = f"Not merged: {conflict}"
            notes.append(note)
    every = [merged.get(index, record) for index, record in enumerate(records)]
    return Merged([record for record in every if record is not None], notes)


def _span(record: Record) -> tuple[Any, Any]:
    """First and last layer."""
    return record.flat.get("layers.first"), record.flat.get("layers.last")


def _within(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the other span holds more than this one, and all of it."""
    return span != other and other[0] <= span[0] and span[1] <= other[1]


def _merge(parts: Sequence[Record]) -> tuple[Record, str]:
    labels = joined(part.labels for part in parts)
    pairs = _joined_pairs(parts, labels)
    numbers = _means(pairs, labels)
    numbers |= _intervals(parts, numbers, labels)
    first, last = min(_span(part)[0] for part in parts), max(_span(part)[1] for part in parts)
    names, seconds = [part.name for part in parts], [part.seconds for part in parts if part.seconds is not None]
    record = replace(
        parts[0],
        name=" + ".join(names if len(names) <= 3 else [*names[:2], "…", f"{names[-1]} ({len(names)} jobs)"]),
        config={**parts[0].config, "layers": {**parts[0].config["layers"], "first": first, "last": last}},
        seconds=math.fsum(seconds) if len(seconds) == len(parts) else None,
        metrics=dict(sorted(numbers.items())),
        pairs=pairs,
        labels=labels,
        parts=tuple(parts),
    )
    note = f"{record.name}: one span, layers {first} to {last}, from {len(parts)} jobs; means are over all its pairs."
    there = set(pairs.loc[pairs["layer_to"] - pairs["layer"] == 1, "layer"])
    if missing := [f"{layer}→{layer + 1}" for layer in range(first, last) if layer not in there]:
        note += f" No job has the pairs {', '.join(missing)}: the means leave them out."
    if lost := _lost(parts, numbers):
        note += f" Cannot be computed from the pairs, and left out: {', '.join(lost)}."
    return record, note


def _joined_pairs(parts: Sequence[Record], labels: Labels) -> pd.DataFrame:
    """The jobs' rows, each once.

    Raises:
        _ConflictError: two jobs have the same row with different values.
    """
    tables = [part.pairs.assign(part=place) for place, part in enumerate(parts) if part.pairs is not None]
    table = pd.concat(tables, ignore_index=True).sort_values([*KEY, "part"], kind="stable", ignore_index=True)
    for (layer, layer_to, variant, metric), rows in table[table.duplicated(KEY, keep=False)].groupby(KEY, sort=False):
        low, high = rows["value"].min(), rows["value"].max()
        if labels.metric(str(metric)).combine == "mean" and not math.isclose(low, high, rel_tol=TOLERANCE):
            names = " and ".join(parts[place].name for place in rows["part"].unique())
            where = f"{layer}→{layer_to}" if layer != layer_to else f"layer {layer}"
            raise _ConflictError(
                f"{names} have different values of {metric}/{variant} at {where} ({low:.6g} and {high:.6g})"
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
    samples, seed = parts[0].flat.get("evaluation.bootstrap_samples", SAMPLES), parts[0].flat.get("seed", SEED)
    found = {name: mean.estimate for name, mean in means(parts, numbers, labels, samples, seed).items()}
    for name in numbers:
        about, other = labels.split(name)
        if about.name.endswith(DIFFERENCE):
            base = labels.metric(about.name.removesuffix(DIFFERENCE))
            ours, theirs = (found.get(headline_name(base.name, variant)) for variant in (base.reference, other))
            if ours is not None and theirs is not None:
                found[name] = ours - theirs
    ends: dict[str, float] = {}
    for name, estimate in found.items():
        low, high = estimate.interval
        if not math.isnan(low):
            ends |= {f"{name}_low": low, f"{name}_high": high}
    return ends


def _lost(parts: Sequence[Record], numbers: Mapping[str, Any]) -> list[str]:
    """The kinds of number that the jobs have and the merged record has not."""
    lost = {name for part in parts for name, value in part.metrics.items() if value is not None} - numbers.keys()
    ends = {name for name in lost if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in numbers}
    intervals = {f"95 % intervals of {name.rpartition('_')[0].split('/')[0]}" for name in ends}
    return sorted({name.split("/")[0] for name in lost - ends}) + sorted(intervals)
