"""What a metric is: one number per layer pair and variant, or per layer, computed from one kind of input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae_match.errors import UserError
from sae_match.metrics.bootstrap import Bootstrap, DocumentSums, Estimate
from sae_match.metrics.description import MATCHED, SPLICED, Description


class Measured(NamedTuple):
    """A number, how many documents, features or tokens it averages over, and its resamples where it has some."""

    value: float
    n: int
    estimate: Estimate | None = None


class Metric(ABC):
    """A metric: subclass one of the kinds below, set `about`, and give the formula in the docstring.

        class MatchedNorm(WeightMetric):
            \"\"\"Mean Euclidean distance of matched decoder rows, folded units.\"\"\"

            about = Description(name="decoder_distance", label="decoder distance", unit="folded units", better="lower")

            def value(self, pair: MatchedWeights) -> float:
                a, b = pair.parameters("W_dec")
                return float(np.linalg.norm(a - b, axis=1).mean())

    A metric with arguments is an `@option` class with them as fields. What it returns becomes a `MetricRow`; NaN leaves
    the row out. A further kind of metric is a subclass with an input class of its own and `measured`.
    """

    takes: ClassVar[type]
    """What it is computed from; set by the kind."""
    version: ClassVar[int] = 1
    """To be raised when the formula changes."""
    reference: ClassVar[str] = MATCHED
    """The variant that belongs to the job's own matching; of a metric of one layer, its only one."""

    @property
    @abstractmethod
    def about(self) -> Description:
        """Name, label, unit, direction and how it is averaged and shown."""

    @property
    def name(self) -> str:
        """The name in pairs.csv."""
        return self.about.name

    @property
    def description(self) -> Description:
        """`about` with the variant that belongs to the matching, which follows from the kind."""
        return replace(self.about, reference=self.reference)

    @abstractmethod
    def measured(self, subject: Any, bootstrap: Bootstrap) -> Measured | None:
        """The number of an object of the class `takes`; None where it has no such thing."""

    def key(self) -> dict[str, Any]:
        """What its value depends on beside its input, as plain data: class, version, code and arguments."""
        from sae_match.keys import arguments, class_name, source_digest  # they import torch, which reports do without

        kind = type(self)
        code = [
            source_digest(base) for base in kind.__mro__ if issubclass(base, Metric) and base.__module__ != __name__
        ]
        return {"class": class_name(kind), "version": self.version, "code": code, "arguments": arguments(self)}


@dataclass(frozen=True)
class MatchedWeights:
    """Parameters of M matched pairs, in folded units, float32; the cosines float64.

    Attributes:
        mse: by group (`W_enc`, `b_enc`, `W_dec`) the mean squared difference of each pair's parameters, [M].
        decoder_cosine: cosine of each pair's decoder rows, [M].
        parameters: from a group to the parameters of A's features and of their partners in B, [M, d] each ([M, 1] for
            `b_enc`); copied when asked for.
    """

    mse: dict[str, Float[np.ndarray, " M"]]
    decoder_cosine: Float[np.ndarray, " M"]
    parameters: Callable[[str], tuple[Float[np.ndarray, "M K"], Float[np.ndarray, "M K"]]]


class WeightMetric(Metric):
    """A metric of the weights of a matched pair of SAEs."""

    takes = MatchedWeights

    @abstractmethod
    def value(self, pair: MatchedWeights) -> float:
        """The number; NaN where there is nothing to average."""

    def measured(self, subject: MatchedWeights, bootstrap: Bootstrap) -> Measured:
        """The number, exact, with the number of pairs."""
        return Measured(float(self.value(subject)), len(subject.decoder_cosine))


@dataclass(frozen=True)
class PairCounts:
    """On how many tokens features fire, per document.

    Attributes:
        active_a, active_b: [documents, F_a] and [documents, F_b], each feature alone.
        together: [documents, F_a], a feature of A and its partner in B on the same token.
        partners: [F_a] index into B; -1 = unmatched.
        tokens: [documents] counted tokens.
        min_count: below this a feature fires too rarely for a number of its own (`evaluation.min_count`).
    """

    active_a: Int[np.ndarray, "documents F_a"]
    active_b: Int[np.ndarray, "documents F_b"]
    together: Int[np.ndarray, "documents F_a"]
    partners: Int[np.ndarray, " F_a"]
    tokens: Int[np.ndarray, " documents"]
    min_count: int = 10


class _EstimatedMetric(Metric):
    """A metric with an interval over documents."""

    @abstractmethod
    def estimate(self, subject: Any, bootstrap: Bootstrap) -> Estimate:
        """The number with its resamples."""

    def measured(self, subject: Any, bootstrap: Bootstrap) -> Measured:
        """The estimate, with the number of documents."""
        found = self.estimate(subject, bootstrap)
        return Measured(found.value, bootstrap.n_documents, found)


class ActivationMetric(_EstimatedMetric):
    """A metric of how often matched features fire."""

    takes = PairCounts

    @abstractmethod
    def estimate(self, counts: PairCounts, bootstrap: Bootstrap) -> Estimate:
        """The number with its resamples: `bootstrap.ratio(numerator, denominator)`, or any function of sums."""


class ReconstructionMetric(_EstimatedMetric):
    """A metric of what stands in for a residual stream, from sums of its error and of the original (`DocumentSums`)."""

    takes = DocumentSums
    reference = SPLICED

    def estimate(self, sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
        """The number with its resamples: the statistic that `about` names.

        Raises:
            UserError: `about` names none, and the class does not define this method.
        """
        if self.about.statistic is None:
            raise UserError(f"{type(self).__name__}: name a statistic in `about`, or define `estimate`")
        return bootstrap.from_sums(sums, self.about.statistic)


@dataclass(frozen=True)
class SplicedLosses:
    """Next-token losses with and without a splice, nats; column p is the prediction made at position p.

    Attributes:
        spliced, original: the same tokens.
        document: 0-based document of each window.
        sink_positions: predictions made at these first positions are not counted.
    """

    spliced: Float[np.ndarray, "windows predictions"]
    original: Float[np.ndarray, "windows predictions"]
    document: Int[np.ndarray, " windows"]
    sink_positions: int = 1


class LossMetric(_EstimatedMetric):
    """A metric of what a splice costs the language model."""

    takes = SplicedLosses
    reference = SPLICED

    @abstractmethod
    def estimate(self, losses: SplicedLosses, bootstrap: Bootstrap) -> Estimate:
        """The number with its resamples."""


@dataclass(frozen=True)
class LayerActivity:
    """One layer's SAE and residual stream on the evaluated tokens.

    Attributes:
        active: [documents, F], tokens on which each feature fires.
        tokens: [documents] counted tokens.
        theta: [F] threshold, or the folding scale used in its place; None where features are not scaled.
        decoder_norm: [F] norm of the folded decoder rows.
        residual_norm: [windows, positions] norm of the residual stream, sink positions left out.
    """

    active: Int[np.ndarray, "documents F"]
    tokens: Int[np.ndarray, " documents"]
    theta: Float[np.ndarray, " F"] | None
    decoder_norm: Float[np.ndarray, " F"]
    residual_norm: Float[np.ndarray, "windows positions"]


class LayerMetric(Metric):
    """A metric of a single layer: of its SAE, or, with `reference = "model"`, of the residual stream."""

    takes = LayerActivity
    reference = "sae"

    @abstractmethod
    def measure(self, layer: LayerActivity, bootstrap: Bootstrap) -> Measured | None:
        """The number; None where this layer has no such thing."""

    def measured(self, subject: LayerActivity, bootstrap: Bootstrap) -> Measured | None:
        """`measure`."""
        return self.measure(subject, bootstrap)


@dataclass(frozen=True, eq=False)
class MetricRow:
    """One metric of one variant on one layer pair (or on one layer: then `layer_to` equals `layer`).

    Attributes:
        layer, layer_to: layers t and t+1.
        variant: `matched`, a control (`vanilla`, `random`), `ceiling`, a splice's name, or `sae` / `model`.
        metric: its name.
        value: the number; for bootstrapped metrics the estimate's value.
        n: documents, features or tokens that the number averages over.
        estimate: replicates for the interval, None for exact numbers.
    """

    layer: int
    layer_to: int
    variant: str
    metric: str
    value: float
    n: int
    estimate: Estimate | None = None

    def without_sums(self) -> MetricRow:
        """The same row; its estimate keeps the replicates, not what they were computed from."""
        return self if self.estimate is None else replace(self, estimate=replace(self.estimate, sums=None))

    def as_dict(self) -> dict[str, int | str | float | None]:
        """Columns of `pairs.csv`."""
        low, high = self.estimate.interval if self.estimate is not None else (None, None)  # NaN: an empty cell
        return {
            "layer": self.layer,
            "layer_to": self.layer_to,
            "variant": self.variant,
            "metric": self.metric,
            "value": self.value,
            "low": low,
            "high": high,
            "n": self.n,
        }


def metric_rows(
    metrics: Mapping[str, Metric],
    subject: object,
    bootstrap: Bootstrap,
    layers: tuple[int, int],
    variant: str | None = None,
) -> list[MetricRow]:
    """A row of every metric that is computed from objects of this class.

    Args:
        subject: `MatchedWeights`, `PairCounts`, `DocumentSums`, `SplicedLosses`, `LayerActivity`, or what a further
            kind of metric takes.
        variant: of the rows; None = each metric's own `reference`.
    """
    rows: list[MetricRow] = []
    for metric in metrics.values():
        if isinstance(subject, metric.takes) and (found := metric.measured(subject, bootstrap)) is not None:
            rows.append(
                MetricRow(*layers, variant or metric.reference, metric.name, found.value, found.n, found.estimate)
            )
    return rows
