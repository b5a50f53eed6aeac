"""Numbers of jobs computed again on shared resamples of their documents: differences between jobs with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..metrics.bootstrap import Bootstrap, DocumentSums, Estimate
from ..metrics.description import MATCHED, headline_name
from ..record.documents import DOCUMENTS, SumsKey, read_documents
from ..record.labels import BUILT_IN_LABELS, Labels, joined
from ..record.pairs import near
from .records import Record, read_record

SAMPLES, SEED = 1000, 0
"""The resamples of every paired difference, whatever the jobs' own; those of a job with default settings."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    record_a: Record | Path, record_b: Record | Path, metric: str, variant: str = MATCHED, samples: int = SAMPLES
) -> Interval:
    """A metric of `record_a` minus that of `record_b`, averaged over their layer pairs as in metrics.json.

    Paired: both are computed on the same resamples of the documents (bootstrap, percentiles), so what the documents
    have in common cancels. A pure function of the two records' documents.parquet.

    Args:
        record_a, record_b: records, or their directories.
        metric: one that follows from sums per document, such as matching_score, explained_variance or delta_loss.
            Numbers of weights are exact and can be subtracted; matching_score_per_feature has no such sums.
        variant: as in pairs.csv: `matched`, a control, `ceiling`, or a splice's name for reconstructions and losses.

    Raises:
        UserError: a metric without sums per document; a record without a readable documents.parquet (weights_only), or
            without such a row in it; records of different documents, token windows or layer pairs.
    """
    first, second = (one if isinstance(one, Record) else read_record(Path(one)) for one in (record_a, record_b))
    labels, name = joined((first.labels, second.labels)), headline_name(metric, variant)
    if labels.metric(metric).statistic is None:
        names = ", ".join(known for known, about in labels.metrics.items() if about.statistic is not None)
        raise UserError(f"{metric} has no sums per document; paired differences exist for {names}")
    found: list[Mean] = []
    for record in (first, second):
        mean = means([record], [name], labels, samples).get(name)
        if mean is None:
            raise UserError(
                f"{record.path} has no {metric} of {variant} per document: {DOCUMENTS} is missing (evaluation=full "
                "writes one), damaged, or has no such row."
            )
        found.append(mean)
    difference = found[0].less(found[1])
    if difference is None:
        raise UserError(
            f"{first.path} and {second.path} evaluated {metric} on different documents, windows or layers, so there is "
            "no paired difference. Compare jobs with the same dataset, model.bos, tokenizer and layers."
        )
    return Interval(difference.value, *difference.interval)


@dataclass(frozen=True)
class Mean:
    """A number averaged over layer pairs with its resamples, and the pairs and texts that it averages."""

    estimate: Estimate
    over: tuple[tuple[int, int, str], ...]

    def less(self, other: Mean | None) -> Estimate | None:
        """The paired difference; None unless both are of the same documents and layer pairs."""
        return self.estimate - other.estimate if other is not None and self.over == other.over else None


def means(
    jobs: Sequence[Record],
    names: Iterable[str],
    labels: Labels = BUILT_IN_LABELS,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> dict[str, Mean]:
    """Headline numbers of one job, or of the jobs that split a span, with resamples: averages over layer pairs as in
    metrics.json. Those without sums per document are left out; all of them where a job's sums cannot be read."""
    sums: dict[SumsKey, DocumentSums] = {}
    found: dict[str, Mean] = {}
    try:
        for job in jobs:
            sums = read_documents(job.path / DOCUMENTS) | sums
    except (OSError, ValueError):
        return found
    kept = near([(key.layer, key.layer_to, key.variant) for key in sums])
    known = {key: sums[key] for key, is_near in zip(sums, kept, strict=True) if is_near}
    for name in names:
        about, variant = labels.split(name)
        if about.statistic is None:
            continue
        own = about.sums_of or about.name, variant
        keys = [key for key in sorted(known) if (key.metric, key.variant) == own]
        parts = [known[key] for key in keys]
        every = [_bootstrap(part.n_documents, samples, seed).from_sums(part, about.statistic) for part in parts]
        # Undefined ones are left out, as in metrics.json.
        defined = [estimate for estimate in every if math.isfinite(estimate.value)]
        if defined and len({part.n_documents for part in parts}) == 1:
            found[name] = Mean(Estimate.mean(defined), tuple((key.layer, key.layer_to, key.text) for key in keys))
    return found


@lru_cache(maxsize=16)
def _bootstrap(documents: int, samples: int, seed: int) -> Bootstrap:
    """Resamples, drawn once for each number of documents."""
    return Bootstrap(documents, samples, seed)
