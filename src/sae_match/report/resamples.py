"""Bootstrap resamples of many jobs' headline numbers, read once per job: paired differences between any two of them.

The same resamples as `paired.paired_difference`; what that reads per call is read here once per job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..metrics.bootstrap import Bootstrap, Estimate
from ..metrics.document_sums import DocumentSums
from ..metrics.estimate_again import STATISTICS, estimate_again
from ..record.documents import DOCUMENTS, SumsKey, read_documents
from .paired import SAMPLES, SEED
from .records import Record

Resampled = Callable[[int], Bootstrap]


@dataclass(frozen=True)
class Mean:
    """A headline number with its resamples, and what it averages: only like means have a paired difference."""

    estimate: Estimate
    over: tuple[tuple[int, int, str], ...]


class Resamples:
    """Means of the records' headline numbers, kept once computed.

    Args:
        names: the headline numbers that will be asked for.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._known: dict[Path, dict[str, Mean]] = {}
        self._bootstrap = cached_bootstrap(SAMPLES, SEED)

    def difference(self, ours: Record, theirs: Record, name: str) -> Estimate | None:
        """`ours` minus `theirs`, resampled together; None unless both kept sums per document for the same documents
        and the same layer pairs."""
        a, b = self.mean(ours, name), self.mean(theirs, name)
        return a.estimate - b.estimate if a is not None and b is not None and a.over == b.over else None

    def mean(self, record: Record, name: str) -> Mean | None:
        """A headline number's resamples; None where the record has no sums per document for it."""
        if record.path not in self._known:
            sums = document_sums(record.sources)
            self._known[record.path] = means(sums, self._names, self._bootstrap) if sums else {}
        return self._known[record.path].get(name)


def cached_bootstrap(samples: int, seed: int) -> Resampled:
    """From a number of documents to their resamples, drawn once for each number."""
    known: dict[int, Bootstrap] = {}

    def bootstrap(documents: int) -> Bootstrap:
        if documents not in known:
            known[documents] = Bootstrap(documents, samples, seed)
        return known[documents]

    return bootstrap


def document_sums(sources: Sequence[Record]) -> dict[SumsKey, DocumentSums] | None:
    """The sums per document of jobs that split a span (or of one job); None where a job has none, or they cannot be
    read."""
    found: dict[SumsKey, DocumentSums] = {}
    for source in sources:
        try:
            found = read_documents(source.path / DOCUMENTS) | found
        except (OSError, ValueError):
            return None
    return found


def means(sums: dict[SumsKey, DocumentSums], names: Sequence[str], bootstrap: Resampled) -> dict[str, Mean]:
    """Averages over layer pairs as in metrics.json, with resamples; names without sums per document are left out.

    Args:
        bootstrap: from a number of documents to their resamples.
    """
    found: dict[str, Mean] = {}
    for name in names:
        metric, _, variant = name.partition("/")
        family = STATISTICS[metric][0] if metric in STATISTICS else None
        near = [
            key
            for key in sorted(sums)
            if (key.metric, key.variant) == (family, variant or "matched") and key.layer_to - key.layer in (0, 1)
        ]
        every = [estimate_again(metric, sums[key], bootstrap(sums[key].n_documents)) for key in near]
        defined = [estimate for estimate in every if math.isfinite(estimate.value)]
        if defined and len({len(sums[key].numerator) for key in near}) == 1:
            over = tuple((key.layer, key.layer_to, key.text) for key in near)
            found[name] = Mean(Estimate.mean(defined), over)
    return found
