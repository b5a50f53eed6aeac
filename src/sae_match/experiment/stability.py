"""The seeds of one layer in a job, and how much of their features they share."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace

import pandas as pd

from sae_match.errors import UserError
from sae_match.evaluation.stability import ROTATED, SEEDS, Stability, stability
from sae_match.experiment.matching_cache import cached_matching
from sae_match.experiment.saes import JobSaes
from sae_match.matching import Matching
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.metrics.metric import MetricRow
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)

METRICS = ("pw_mcc", "shared_fraction", "subspace_rank", "subspace_share", "subspace_share_random")
"""Columns of `Stability.to_frame` that become rows of pairs.csv."""


@dataclass(frozen=True)
class ComparedSeeds:
    """What the seeds of one layer have in common.

    Attributes:
        rows: metrics of the variants `seeds`, `rotated` and `random`, means over pairs of seeds; with more than two
            seeds also of every pair, as `seeds_I_J`.
        features: one row per feature of the job's own SAE and other seed, as in stability.parquet.
        warnings: seeds that were trained from one initialization.
    """

    rows: list[MetricRow]
    features: pd.DataFrame
    warnings: tuple[str, ...]


def compare_seeds(study: Study, store: Store, saes: JobSaes, layer: int) -> ComparedSeeds | None:
    """Compare the SAE of a layer, its second seed and those of `evaluation.stability_seeds`; None where it is alone.

    Raises:
        UserError: a file that cannot be read, one SAE given twice, or from `stability`.
    """
    seeds = _load(study, saes, layer)
    if len(seeds) < 2:
        return None

    def match(similarity: Comparison, solver: Solver, pair: FeaturePair) -> Matching:
        limited = replace(solver, memory_limit_gib=study.solver.memory_limit_gib)
        return cached_matching(store, similarity, limited, pair)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in the record
        found = stability(seeds, seed=study.seed, match=match)
    told = tuple(f"layer {layer}: {text}" for text in found.warnings)
    features = found.features()
    features.insert(0, "layer", layer)
    return ComparedSeeds(_rows(found, layer), features, told)


def _load(study: Study, saes: JobSaes, layer: int) -> list[SparseAutoencoder]:
    source, second = saes.sources[0], replace(saes.sources[0], second=True)
    seeds = [one.load(layer) for one in (source, second) if one.has(layer)]
    paths = source.existing_seeds(layer, study.evaluation.stability_seeds or [])
    seeds += [source.format.read(path, layer) for path in paths]
    known: dict[str, str] = {}
    for sae in seeds:
        if sae.content_hash in known:
            raise UserError(f"{sae.source}: the same SAE as {known[sae.content_hash]}, so it is no further seed")
        known[sae.content_hash] = sae.source
    return [sae.to(saes.device) for sae in seeds]


def _rows(found: Stability, layer: int) -> list[MetricRow]:
    table, n = found.to_frame(), found.widths[0]
    pairs = table[table["variant"] == SEEDS]
    tables = [table.groupby("variant")[list(METRICS)].mean()]  # of pairs that have a number
    if len(pairs) > 1:
        tables.append(pairs.set_index(f"{SEEDS}_" + pairs["a"].astype(str) + "_" + pairs["b"].astype(str)))
    rows = [
        MetricRow(layer, layer, variant, metric, value, n)
        for each in tables
        for metric in METRICS
        for variant, value in zip(each.index.tolist(), each[metric].tolist(), strict=True)
    ]
    rows.append(MetricRow(layer, layer, SEEDS, "reappearing", float(found.reappearing().mean()), n))
    ours, null = tables[0]["pw_mcc"][[SEEDS, ROTATED]]
    logger.info("layer %d: %d seeds, PW-MCC %.3f, of rotated ones %.3f", layer, len(found.widths), ours, null)
    return [row for row in rows if not math.isnan(row.value)]  # where every feature reappears nothing is spanned
