"""Bootstrap over documents: every averaged metric is a function of per-document sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sae_match.errors import UserError
from sae_match.metrics.document_sums import DocumentSums

Floats = npt.NDArray[np.float64]

MIN_DOCUMENTS = 4
"""Fewer documents give no interval. A resample repeats one document n times with probability n ** -n: for n = 3 that is
3.7 %, more than the 2.5 % that an interval leaves out on either side, so that its ends would be single documents."""
_Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A point value with its bootstrap replicates.

    Attributes:
        value: the statistic on all documents.
        replicates: [B], the statistic on each resample; estimates from one `Bootstrap` share their resamples, so
            sums and differences of estimates have honest (paired) intervals.
        sums: what to keep per document so that it can be computed again; None where that is not kept, as for
            differences and averages.
        trials: of a proportion of independent yes-or-no answers, their number; its interval is Wilson's, which has
            width for 0 of n, too.
    """

    value: float
    replicates: Floats
    sums: DocumentSums | None = None
    trials: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval; NaN where no resample defines the statistic, or there are too few documents."""
        if self.trials is not None:
            return wilson(self.value, self.trials)
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
        values, trials = [e.value for e in estimates], [e.trials for e in estimates if e.trials]
        # The variance of the mean of K proportions is that of one with this many trials.
        of_mean = len(trials) ** 2 / sum(1 / n for n in trials) if len(trials) == len(values) else None
        return Estimate(float(np.mean(values)), np.mean([e.replicates for e in estimates], axis=0), trials=of_mean)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); NaN where the proportion is."""
    scale = 1 + _Z**2 / trials
    middle = (share + _Z**2 / (2 * trials)) / scale
    half = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


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
        found = np.concatenate(replicates)
        return Estimate(float(value[0]), found if self.n_documents >= MIN_DOCUMENTS else np.full_like(found, np.nan))

    def ratio(self, numerator: Floats, denominator: Floats) -> Estimate:
        """Estimate of sum(numerator) / sum(denominator), both per document."""
        found = self.estimate(lambda n, d: n[..., 0] / d[..., 0], numerator, denominator)
        return replace(found, sums=DocumentSums(numerator, denominator))
