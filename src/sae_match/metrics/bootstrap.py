"""Bootstrap over documents: every averaged metric is a function of per-document sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sae_match.errors import UserError
from sae_match.metrics.document_sums import DocumentSums

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A point value with its bootstrap replicates.

    Attributes:
        value: the statistic on all documents.
        replicates: [B], the statistic on each resample; estimates from one `Bootstrap` share their resamples, so
            sums and differences of estimates have honest (paired) intervals.
        sums: what to keep per document so that it can be computed again; None where that is not kept, as for
            differences and averages.
    """

    value: float
    replicates: Floats
    sums: DocumentSums | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval; NaN where no resample defines the statistic."""
        finite = self.replicates[np.isfinite(self.replicates)]
        if len(finite) == 0:
            return float("nan"), float("nan")
        low, high = np.quantile(finite, (0.025, 0.975))
        return float(low), float(high)

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.replicates - other.replicates)

    @staticmethod
    def mean(estimates: Sequence[Estimate]) -> Estimate:
        """The average of estimates that share their resamples (for instance over layer pairs)."""
        values = [e.value for e in estimates]
        return Estimate(float(np.mean(values)), np.mean([e.replicates for e in estimates], axis=0))


class Bootstrap:
    """Resamples of documents, drawn once and shared by all metrics.

    Args:
        n_documents: number of documents.
        samples: number of resamples B.
        seed: seed of the draw.

    Raises:
        UserError: no documents.
    """

    def __init__(self, n_documents: int, samples: int = 1000, seed: int = 0) -> None:
        if n_documents < 1:
            raise UserError("a bootstrap needs at least one document")
        self.n_documents = n_documents
        rng = np.random.default_rng(seed)
        uniform = np.full(n_documents, 1.0 / n_documents)
        self.counts: Floats = rng.multinomial(n_documents, uniform, size=samples).astype(np.float64)

    def estimate(self, statistic: Callable[..., Floats], *sums: Floats) -> Estimate:
        """Estimate of `statistic`, a function of sums over documents.

        Args:
            statistic: takes one array [..., K_i] per element of `sums` and returns [...].
            sums: per-document sums, [documents, K_i] or [documents].
        """
        arrays = [s.astype(np.float64).reshape(self.n_documents, -1) for s in sums]
        # 0/0 in a resample without any event is NaN, which `interval` leaves out.
        with np.errstate(invalid="ignore", divide="ignore"):
            value = statistic(*(a.sum(axis=0, keepdims=True) for a in arrays))
            replicates = [statistic(*(chunk @ a for a in arrays)) for chunk in np.array_split(self.counts, 20)]
        return Estimate(float(value[0]), np.concatenate(replicates))

    def ratio(self, numerator: Floats, denominator: Floats) -> Estimate:
        """Estimate of sum(numerator) / sum(denominator), both per document."""
        found = self.estimate(lambda n, d: n[..., 0] / d[..., 0], numerator, denominator)
        return replace(found, sums=DocumentSums(numerator, denominator))
