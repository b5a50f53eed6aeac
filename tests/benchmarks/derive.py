"""From records to the numbers that tables and figures show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from tests.benchmarks.methods import Method, Promise, methods
from tests.benchmarks.problems import Kind, Spec
from tests.benchmarks.records import Record


class Seconds(NamedTuple):
    """Median and range of repeated measurements."""

    median: float
    least: float
    most: float
    repeats: int


class Family(NamedTuple):
    """Planted problems that differ in width only."""

    kind: Kind
    d: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One method on one problem.

    Attributes:
        record: the measurement.
        spec: the problem.
        seconds: of the assignment, without the similarity product; None where there is no answer.
        product: of the similarity product of this problem; None where it was not measured.
        excess: objective / best lower bound - 1; None where the answer is not one-to-one and complete, or unknown.
    """

    record: Record
    spec: Spec
    seconds: Seconds | None
    product: float | None
    excess: float | None

    @property
    def name(self) -> str:
        """Name of the method."""
        return str(self.record["method"])

    @property
    def method(self) -> Method:
        """The method."""
        return methods()[self.name]

    @property
    def family(self) -> Family:
        """What the problem shares with those of other widths."""
        return Family(self.spec.kind, self.spec.d, self.spec.seed)

    @property
    def peak_gib(self) -> float | None:
        """Peak resident memory on top of the problem's rows."""
        peak = self.record.get("peak_bytes")
        return None if peak is None else max(peak, 0) / 2**30

    @property
    def stopped_early(self) -> bool:
        """Whether the method answered with what it had at a limit."""
        return bool(self.record.get("statistics", {}).get("stopped_early"))

    @property
    def gap(self) -> float | None:
        """Relative gap that the method itself proved."""
        bound, objective = self.record.get("lower_bound"), self.record.get("objective")
        if bound is None or objective is None:
            return None
        return max(0.0, objective - bound) / objective if objective > 0 else 0.0


def rows(found: Iterable[Record]) -> list[Row]:
    """A row per record, ordered by problem and then as methods are listed."""
    found = list(found)
    names, kinds = list(methods()), list(Kind)
    products = {_circumstances(r): median(r["seconds"]) for r in found if r["method"] == "product" and "seconds" in r}
    optima = _optima(found)
    made = [_row(record, products.get(_circumstances(record)), optima.get(record["name"])) for record in found]

    def order(row: Row) -> tuple[object, ...]:
        spec = row.spec
        return kinds.index(spec.kind), spec.d, spec.seed, spec.width, spec.detail, names.index(row.name)

    return sorted(made, key=order)


def _circumstances(record: Record) -> tuple[object, ...]:
    return record["name"], record["threads"], record["device"]


def _row(record: Record, product: float | None, optimum: float | None) -> Row:
    spec = Spec.from_json(record["problem"])
    seconds = _seconds(record, product) if record["status"] == "ok" else None
    excess = None
    if optimum and record.get("objective") is not None and record["pairs"] == record["distinct"] == spec.width:
        excess = record["objective"] / optimum - 1.0
    return Row(record, spec, seconds, product, excess)


def _seconds(record: Record, product: float | None) -> Seconds:
    """Wall time less the product within it, but never less than by what the product takes alone: what a method's own
    product takes longer, by quantizing what it keeps for instance, is the method's."""
    values = []
    for seconds, own in zip(record["seconds"], record["own_product"], strict=True):
        spared = own if product is None else min(product if own is None else own, product)
        values.append(max(0.0, seconds - (spared or 0.0)))
    return Seconds(median(values), min(values), max(values), len(values))


def _optima(found: list[Record]) -> dict[str, float]:
    """Per problem: the highest lower bound proved, or the least objective of an exact method where none was."""
    bounds: dict[str, float] = {}
    objectives: dict[str, float] = {}
    for record in found:
        name = record["name"]
        if record["status"] != "ok" or record.get("objective") is None:
            continue
        if methods()[record["method"]].promise is Promise.exact:
            objectives[name] = min(record["objective"], objectives.get(name, float("inf")))
            if record.get("lower_bound") is not None:
                bounds[name] = max(record["lower_bound"], bounds.get(name, 0.0))
    return objectives | {name: bound for name, bound in bounds.items() if bound > 0}


class Fit(NamedTuple):
    """value = constant * F ** exponent, by least squares of the logarithms.

    Attributes:
        exponent: the slope.
        error: its standard error; None with fewer than three sizes.
        widths: sizes that entered.
    """

    exponent: float
    error: float | None
    widths: tuple[int, ...]


def fit(values: dict[int, float]) -> Fit | None:
    """Growth of positive values with F; None with fewer than two sizes."""
    widths = tuple(sorted(width for width, value in values.items() if value > 0))
    if len(widths) < 2:
        return None
    x = np.log(np.array(widths, float))
    y = np.log(np.array([values[width] for width in widths]))
    centered = x - x.mean()
    spread = float(centered @ centered)
    slope = float(centered @ y) / spread
    residual = y - y.mean() - slope * centered
    degrees = len(widths) - 2
    error = float(np.sqrt(residual @ residual / degrees / spread)) if degrees else None
    return Fit(slope, error, widths)


def growth(family: list[Row], value: Callable[[Row], float | None], first: int) -> dict[str, Fit | None]:
    """The fit of every method of a family, over widths from `first` up."""
    series: dict[str, dict[int, float]] = {}
    for row in family:
        number = value(row)
        if number is not None and row.spec.width >= first:
            series.setdefault(row.name, {})[row.spec.width] = number
    return {name: fit(values) for name, values in series.items()}


def seconds_if_finished(row: Row) -> float | None:
    """Median seconds of a method that was not stopped early."""
    return row.seconds.median if row.seconds is not None and not row.stopped_early else None


def memory_if_finished(row: Row) -> float | None:
    """Peak memory of a method that was not stopped early."""
    return None if row.stopped_early else row.peak_gib
