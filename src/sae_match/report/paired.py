"""Differences between jobs with an interval: the same documents resampled in both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..metrics.bootstrap import Bootstrap, Estimate
from ..metrics.document_sums import DocumentSums
from ..metrics.estimate_again import STATISTICS, estimate_again
from ..record.documents import DOCUMENTS, SumsKey, read_documents
from .records import Record

SAMPLES, SEED = 1000, 0
"""The resamples of every paired difference, whatever the jobs' own; those of a job with default settings."""


class Difference(NamedTuple):
    """A difference and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    record_a: Record | Path, record_b: Record | Path, metric: str, variant: str = "matched", samples: int = SAMPLES
) -> Difference:
    """A metric of `record_a` minus that of `record_b`, averaged over their layer pairs as in metrics.json.

    Paired: both are computed on the same resamples of the documents (bootstrap, percentiles), so what the documents
    have in common cancels. A pure function of the two records' documents.parquet.

    Args:
        record_a, record_b: records, or their directories.
        metric: matching_score, matching_iou, explained_variance, r2, fvu, delta_loss or l0. Other numbers have no
            sums per document: those of weights are exact and can be subtracted; matching_score_per_feature cannot.
        variant: as in pairs.csv: `matched`, a control, `ceiling`, or a splice's name for reconstructions and losses.

    Raises:
        UserError: the records are of different documents (or token windows) or layer pairs, one of them has no such
            row, or no documents.parquet (weights_only, or a record made before there was one).
    """
    if metric not in STATISTICS:
        raise UserError(f"{metric} has no sums per document; paired differences exist for {', '.join(STATISTICS)}")
    a, b = (_matching_sums(_directory(record), metric, variant) for record in (record_a, record_b))
    texts = {key.text for key in (*a, *b)}
    if len(texts) > 1:
        raise UserError(
            f"{_directory(record_a)} and {_directory(record_b)} evaluated {metric} on different documents or windows, "
            "so there is no paired difference. Compare jobs with the same dataset, model.bos and tokenizer."
        )
    if list(a) != list(b):
        pairs = [", ".join(f"{key.layer}->{key.layer_to}" for key in found) for found in (a, b)]
        raise UserError(
            f"{metric} of {variant}: {_directory(record_a)} has the layers {pairs[0]}, {_directory(record_b)} "
            f"{pairs[1]}. Compare jobs over the same layers."
        )
    bootstrap = Bootstrap(next(iter(a.values())).n_documents, samples, SEED)
    means = [_mean(found, metric, bootstrap) for found in (a, b)]
    difference = means[0] - means[1]
    return Difference(difference.value, *difference.interval)


def estimates(
    record: Record | Path, metric: str, variant: str = "matched", samples: int = SAMPLES
) -> dict[tuple[int, int], Estimate]:
    """A metric's estimate per layer pair of one record, on the resamples that `paired_difference` uses.

    Raises:
        UserError: as `paired_difference`.
    """
    found = _matching_sums(_directory(record), metric, variant)
    bootstrap = Bootstrap(next(iter(found.values())).n_documents, samples, SEED)
    return {(key.layer, key.layer_to): estimate_again(metric, sums, bootstrap) for key, sums in found.items()}


def _mean(found: dict[SumsKey, DocumentSums], metric: str, bootstrap: Bootstrap) -> Estimate:
    """The average over layer pairs; undefined ones are left out, as in metrics.json."""
    every = [estimate_again(metric, sums, bootstrap) for sums in found.values()]
    defined = [estimate for estimate in every if math.isfinite(estimate.value)]
    return Estimate.mean(defined or every)


def _directory(record: Record | Path) -> Path:
    return record.path if isinstance(record, Record) else Path(record)


def _matching_sums(directory: Path, metric: str, variant: str) -> dict[SumsKey, DocumentSums]:
    """The sums of one metric and variant by layer pair, in order."""
    path = directory / DOCUMENTS
    if not path.is_file():
        raise UserError(f"{directory} holds no {DOCUMENTS}: only full evaluations (evaluation=full) write one.")
    try:
        stored = read_documents(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    name = STATISTICS[metric][0]
    found = {key: sums for key, sums in sorted(stored.items()) if (key.metric, key.variant) == (name, variant)}
    if not found:
        variants = ", ".join(sorted({key.variant for key in stored if key.metric == name})) or "none"
        raise UserError(f"{directory} has no {metric} of {variant} per document; its variants: {variants}.")
    return found
