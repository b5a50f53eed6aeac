"""Metrics computed again from what is kept per document."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sae_match.metrics.bootstrap import Bootstrap, Estimate, Floats
from sae_match.metrics.document_sums import DocumentSums, spread


def _ratio(sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
    return bootstrap.ratio(sums.numerator, sums.denominator)


def _reconstruction(sums: DocumentSums) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    if sums.tokens is None or sums.numerator_vector is None or sums.denominator_vector is None:
        raise ValueError("these sums are those of a ratio, not of a reconstruction")
    return sums.tokens, sums.numerator_vector, sums.numerator, sums.denominator_vector, sums.denominator


def _explained_variance(sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
    return bootstrap.estimate(lambda n, e, e2, x, x2: 1 - spread(n, e, e2) / spread(n, x, x2), *_reconstruction(sums))


def _fvu(sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
    return bootstrap.estimate(lambda n, e, e2, x, x2: e2[..., 0] / spread(n, x, x2), *_reconstruction(sums))


def _r2(sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
    fvu = _fvu(sums, bootstrap)
    return Estimate(1 - fvu.value, 1 - fvu.replicates)


STATISTICS: Mapping[str, tuple[str, Callable[[DocumentSums, Bootstrap], Estimate]]] = {
    "matching_score": ("matching_score", _ratio),
    "matching_iou": ("matching_iou", _ratio),
    "l0": ("l0", _ratio),
    "delta_loss": ("delta_loss", _ratio),
    "explained_variance": ("explained_variance", _explained_variance),
    "r2": ("explained_variance", _r2),
    "fvu": ("explained_variance", _fvu),
}
"""Metric -> under which name its sums are kept, and what follows from them. matching_score_per_feature is not among
them: its sums are one per feature and document. Metrics of weights average over no documents."""

STORED = frozenset(stored for stored, _ in STATISTICS.values())
"""Metrics whose sums are kept."""


def estimate_again(metric: str, sums: DocumentSums, bootstrap: Bootstrap) -> Estimate:
    """A metric's estimate from its sums, on the resamples of `bootstrap`.

    Raises:
        KeyError: not one of `STATISTICS`.
        ValueError: sums of another metric's kind.
    """
    return STATISTICS[metric][1](sums, bootstrap)
