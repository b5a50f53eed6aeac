"""Bootstrap over documents: every averaged metric is a function of sums over the tokens of each document.

Two kinds of sums cover the metrics of this package: a ratio (of co-activations to activations, say), and those of a
reconstruction (explained variance), whose variances need the sum vectors of error and target as well. A job keeps them,
so that a metric and its interval can be computed again, in pairs with another job's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sae_match.errors import UserError

Floats = npt.NDArray[np.float64]
Statistic = Literal["ratio", "explained_variance", "r2", "fvu"]


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums of one metric over the tokens of each document, float64.

    A ratio: `numerator` and `denominator`, the rest None. A reconstruction: the squared lengths of error and target,
    their sum vectors (compressed, see `compress_rows`), and the number of tokens.

    Attributes:
        numerator, denominator: [documents].
        tokens: [documents].
        numerator_vector, denominator_vector: [documents, K].
    """

    numerator: Floats
    denominator: Floats
    tokens: Floats | None = None
    numerator_vector: Floats | None = None
    denominator_vector: Floats | None = None

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.numerator)


def compress_rows(vectors: Floats) -> Floats:
    """The rows of a [documents, d] matrix in at most as many dimensions as there are documents.

    An orthonormal change of basis (QR): lengths of sums of rows, all that a variance needs, stay what they are.
    """
    documents, d = vectors.shape
    if d <= documents:
        return np.ascontiguousarray(vectors, dtype=np.float64)
    triangle: Floats = np.asarray(np.linalg.qr(vectors.T.astype(np.float64), mode="r"))
    return np.ascontiguousarray(triangle.T)


def sum_of_squared_deviations(tokens: Floats, total: Floats, squared: Floats) -> Floats:
    """Sum over tokens and dimensions of the squared deviation from the per-dimension mean.

    Args:
        tokens, squared: [..., 1]; total: [..., d].
    """
    return np.asarray(squared[..., 0] - np.square(total).sum(axis=-1) / tokens[..., 0])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.asarray(numerator[..., 0] / denominator[..., 0])


def _explained_variance(n: Floats, error: Floats, error_squared: Floats, x: Floats, x_squared: Floats) -> Floats:
    left = sum_of_squared_deviations(n, error, error_squared)
    return np.asarray(1 - left / sum_of_squared_deviations(n, x, x_squared))


def _fvu(n: Floats, error: Floats, error_squared: Floats, x: Floats, x_squared: Floats) -> Floats:
    return np.asarray(error_squared[..., 0] / sum_of_squared_deviations(n, x, x_squared))


def _r2(n: Floats, error: Floats, error_squared: Floats, x: Floats, x_squared: Floats) -> Floats:
    return np.asarray(1 - _fvu(n, error, error_squared, x, x_squared))


STATISTICS: Mapping[Statistic, Callable[..., Floats]] = {
    "ratio": _ratio,
    "explained_variance": _explained_variance,
    "r2": _r2,
    "fvu": _fvu,
}
"""Functions of `DocumentSums` added up over documents."""

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
        sums: what it was computed from; None where that is no `DocumentSums`, as for differences and averages.
        trials: of a proportion of independent yes-or-no answers, their number; its interval is Wilson's, which has
            width for 0 of n, too.
    """

    value: float
    replicates: Floats = field(repr=False)
    sums: DocumentSums | None = field(default=None, repr=False)
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
        self.samples, self.seed = samples, seed
        uniform = np.full(n_documents, 1.0 / n_documents)
        self.counts: Floats = rng.multinomial(n_documents, uniform, size=samples).astype(np.float64)

    def draws(self, n: int) -> Floats:
        """[B, n] resamples of n other things, such as features, drawn within those of the documents."""
        rng = np.random.default_rng([self.seed, n])
        return rng.multinomial(n, np.full(n, 1.0 / n), size=self.samples).astype(np.float64)

    def estimate(self, statistic: Callable[..., Floats], *sums: npt.NDArray[np.generic]) -> Estimate:
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

    def ratio(self, numerator: npt.NDArray[np.generic], denominator: npt.NDArray[np.generic]) -> Estimate:
        """Estimate of sum(numerator) / sum(denominator), both per document, [documents]."""
        return self.from_sums(DocumentSums(numerator.astype(np.float64), denominator.astype(np.float64)), "ratio")

    def from_sums(self, sums: DocumentSums, statistic: Statistic) -> Estimate:
        """Estimate of one of `STATISTICS` from sums per document.

        Raises:
            ValueError: these sums are those of a ratio, and the statistic is one of a reconstruction.
        """
        arrays: tuple[Floats, ...] = (sums.numerator, sums.denominator)
        if statistic != "ratio":
            if sums.tokens is None or sums.numerator_vector is None or sums.denominator_vector is None:
                raise ValueError(f"these sums are those of a ratio, and {statistic} is a statistic of a reconstruction")
            vectors = sums.numerator_vector, sums.denominator_vector
            arrays = (sums.tokens, vectors[0], sums.numerator, vectors[1], sums.denominator)
        return replace(self.estimate(STATISTICS[statistic], *arrays), sums=sums)
