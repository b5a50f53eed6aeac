"""Numbers of jobs computed again on shared resamples of their documents: differences between jobs with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..metrics.bootstrap import Bootstrap, DocumentSums, Estimate
from ..metrics.description import MATCHED, Description
from ..record.documents import DOCUMENTS, SumsKey, read_documents
from ..record.labels import BUILT_IN_LABELS, LABELS, Labels, read_labels
from .records import Record

SAMPLES, SEED = 1000, 0
"""The resamples of every paired difference, whatever the jobs' own; those of a job with default settings."""

Sums = Mapping[SumsKey, DocumentSums]


class Difference(NamedTuple):
    """A difference and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A number averaged over layer pairs with its resamples, and what it averages: only like means are subtracted."""

    estimate: Estimate
    over: tuple[tuple[int, int, str], ...]


def paired_difference(
    record_a: Record | Path, record_b: Record | Path, metric: str, variant: str = MATCHED, samples: int = SAMPLES
) -> Difference:
    """A metric of `record_a` minus that of `record_b`, averaged over their layer pairs as in metrics.json.

    Paired: both are computed on the same resamples of the documents (bootstrap, percentiles), so what the documents
    have in common cancels. A pure function of the two records' documents.parquet.

    Args:
        record_a, record_b: records, or their directories.
        metric: one that follows from sums per document, such as matching_score, explained_variance or delta_loss.
            Numbers of weights are exact and can be subtracted; matching_score_per_feature has no such sums.
        variant: as in pairs.csv: `matched`, a control, `ceiling`, or a splice's name for reconstructions and losses.

    Raises:
        UserError: the records are of different documents (or token windows) or layer pairs, one of them has no such
            row, or no documents.parquet (weights_only, or a record made before there was one).
    """
    a, b = (_checked_sums(_directory(record), metric, variant) for record in (record_a, record_b))
    if len({key.text for key in (*a, *b)}) > 1:
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
    means = [
        _mean(list(_estimates(sums, _description(_directory(record), metric), samples, SEED).values()))
        for record, sums in ((record_a, a), (record_b, b))
    ]
    difference = means[0] - means[1]
    return Difference(difference.value, *difference.interval)


def estimates(
    record: Record | Path, metric: str, variant: str = MATCHED, samples: int = SAMPLES
) -> dict[tuple[int, int], Estimate]:
    """A metric's estimate per layer pair of one record, on the resamples that `paired_difference` uses.

    Raises:
        UserError: as `paired_difference`.
    """
    directory = _directory(record)
    found = _estimates(_checked_sums(directory, metric, variant), _description(directory, metric), samples, SEED)
    return {(key.layer, key.layer_to): estimate for key, estimate in found.items()}


class Resamples:
    """Means of the records' headline numbers, kept once computed.

    Args:
        names: the headline numbers that will be asked for.
        labels: descriptions of their metrics.
    """

    def __init__(self, names: Sequence[str], labels: Labels = BUILT_IN_LABELS) -> None:
        self.labels = labels
        self._names = names
        self._known: dict[Path, dict[str, Mean]] = {}

    def difference(self, ours: Record, theirs: Record, name: str) -> Estimate | None:
        """`ours` minus `theirs`, resampled together; None unless both kept sums per document for the same documents
        and the same layer pairs."""
        a, b = self.mean(ours, name), self.mean(theirs, name)
        return a.estimate - b.estimate if a is not None and b is not None and a.over == b.over else None

    def mean(self, record: Record, name: str) -> Mean | None:
        """A headline number's resamples; None where the record has no sums per document for it."""
        if record.path not in self._known:
            sums = document_sums(record.sources)
            self._known[record.path] = means(sums, self._names, self.labels) if sums else {}
        return self._known[record.path].get(name)


def document_sums(sources: Sequence[Record]) -> Sums | None:
    """The sums per document of jobs that split a span (or of one job); None where a job has none, or they cannot be
    read."""
    found: dict[SumsKey, DocumentSums] = {}
    for source in sources:
        try:
            found = read_documents(source.path / DOCUMENTS) | found
        except (OSError, ValueError):
            return None
    return found


def means(
    sums: Sums, names: Sequence[str], labels: Labels = BUILT_IN_LABELS, samples: int = SAMPLES, seed: int = SEED
) -> dict[str, Mean]:
    """Averages over layer pairs as in metrics.json, with resamples; names without sums per document are left out."""
    found: dict[str, Mean] = {}
    for name in names:
        about, variant = labels.split(name)
        near = {key: own for key, own in _select(sums, about, variant).items() if key.layer_to - key.layer in (0, 1)}
        every = _estimates(near, about, samples, seed)
        defined = any(math.isfinite(estimate.value) for estimate in every.values())
        if defined and len({own.n_documents for own in near.values()}) == 1:
            over = tuple((key.layer, key.layer_to, key.text) for key in near)
            found[name] = Mean(_mean(list(every.values())), over)
    return found


def _select(sums: Sums, about: Description, variant: str) -> dict[SumsKey, DocumentSums]:
    """The sums that a metric of one variant follows from, by layer pair, in order."""
    if about.statistic is None:
        return {}
    kept = about.sums_of or about.name
    return {key: own for key, own in sorted(sums.items()) if (key.metric, key.variant) == (kept, variant)}


def _estimates(sums: Sums, about: Description, samples: int, seed: int) -> dict[SumsKey, Estimate]:
    return {
        key: _bootstrap(own.n_documents, samples, seed).from_sums(own, about.statistic)
        for key, own in sums.items()
        if about.statistic is not None
    }


def _mean(every: Sequence[Estimate]) -> Estimate:
    """The average over layer pairs; undefined ones are left out, as in metrics.json."""
    return Estimate.mean([estimate for estimate in every if math.isfinite(estimate.value)] or every)


@lru_cache(maxsize=16)
def _bootstrap(documents: int, samples: int, seed: int) -> Bootstrap:
    """Resamples, drawn once for each number of documents."""
    return Bootstrap(documents, samples, seed)


def _directory(record: Record | Path) -> Path:
    return record.path if isinstance(record, Record) else Path(record)


def _description(directory: Path, metric: str) -> Description:
    return _labels(directory).metric(metric)


def _labels(directory: Path) -> Labels:
    try:
        return read_labels(directory / LABELS)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / LABELS} cannot be read: {error}") from error


def _checked_sums(directory: Path, metric: str, variant: str) -> dict[SumsKey, DocumentSums]:
    """The sums of one metric and variant by layer pair, in order."""
    labels = _labels(directory)
    about = labels.metric(metric)
    if about.statistic is None:
        names = ", ".join(name for name, other in labels.metrics.items() if other.statistic is not None)
        raise UserError(f"{metric} has no sums per document; paired differences exist for {names}")
    path = directory / DOCUMENTS
    if not path.is_file():
        raise UserError(f"{directory} holds no {DOCUMENTS}: only full evaluations (evaluation=full) write one.")
    try:
        stored = read_documents(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    found = _select(stored, about, variant)
    if not found:
        kept = about.sums_of or about.name
        variants = ", ".join(sorted({key.variant for key in stored if key.metric == kept})) or "none"
        raise UserError(f"{directory} has no {metric} of {variant} per document; its variants: {variants}.")
    return found
