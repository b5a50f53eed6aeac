"""Which per-document sums of a job are kept: those of every averaged metric of the adjacent pairs and ceilings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.metrics.bootstrap import DocumentSums
from sae_match.metrics.metric import LossMetric
from sae_match.record.documents import SumsKey


def text_facts(evaluator: Evaluator) -> dict[str, Any]:
    """text.json: which documents and windows were evaluated, and under `fit` those that controls were fitted on."""
    facts = {"key": evaluator.windows.key, **evaluator.windows.info}
    if evaluator.fit is not None:
        fit = evaluator.fit.windows
        counts = {"documents": fit.n_documents, "windows": fit.n_windows, "tokens": fit.ids.numel()}
        facts["fit"] = {**fit.info, "key": fit.key, **counts, "titles": fit.titles}
    return facts


def document_sums(evaluator: Evaluator, rows: Iterable[MetricRow]) -> dict[SumsKey, DocumentSums]:
    """The sums that the rows' estimates carry, each with the content key of the windows it is about."""
    kept: dict[SumsKey, DocumentSums] = {}
    for row in rows:
        metric = evaluator.metrics.get(row.metric)
        if metric is None or metric.about.statistic is None or metric.about.sums_of is not None:
            continue
        if row.estimate is not None and row.estimate.sums is not None:
            windows = evaluator.splice_windows if isinstance(metric, LossMetric) else evaluator.windows
            key = SumsKey(row.layer, row.layer_to, row.variant, row.metric, windows.key)
            kept[key] = row.estimate.sums
    return kept
