"""Composition over growing distance: every far pair solved exactly, and compared with its composed permutation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_match.evaluation.far_pair import COMPOSED, EXACT, RANDOM, agreement_rows, far_splices
from sae_match.evaluation.pair import weight_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_step import PairMatching, certificate_rows, match_and_save
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.matching import Permutation
from sae_match.matching.solution import Solver
from sae_match.metrics.metric import Metric
from sae_match.metrics.registry import BUILT_IN
from sae_match.metrics.weight_distance import weight_distances_of
from sae_match.plan.checks import far_pairs
from sae_match.record.job import JobRecord
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FarPair:
    """Two layers further apart than neighbours.

    Attributes:
        layer, layer_to: the layers.
        permutations: `composed`, `exact` and `random`.
    """

    layer: int
    layer_to: int
    permutations: dict[str, Permutation]


def compare_over_distance(
    store: Store,
    study: Study,
    saes: SpanSaes,
    solver: Solver,
    record: JobRecord,
    matchings: Sequence[PairMatching],
    evaluator: Evaluator | None,
    aside: Mapping[int, Bool[Tensor, " F"]],
    progress: bool,
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> tuple[list[MetricRow], list[FarPair]]:
    """Rows and permutations of every far pair, by start, then distance; none where `composition` asks for none.

    Each exact permutation is in the record as soon as it exists. Two SAEs are held at a time.

    Args:
        matchings: the span's adjacent pairs, with their random controls.
        evaluator: None for weights_only, which leaves agreement and weight metrics.
        aside: features to leave unmatched, by layer.
        metrics: what is measured, by name.
    """
    rows: list[MetricRow] = []
    pairs: list[FarPair] = []
    for layers in tqdm(far_pairs(study), desc="composing over distance", disable=not progress):
        start, stop = layers
        a, b = saes.load(start), saes.load(stop)
        matching, exact = match_and_save(
            store,
            study,
            a,
            b,
            solver,
            record,
            layers,
            aside,
            None if evaluator is None or evaluator.fit is None else evaluator.fit.streams,
        )
        permutations = {COMPOSED: compose(matchings, layers, "matched"), EXACT: exact}
        permutations[RANDOM] = compose(matchings, layers, "random")
        found = agreement_rows(permutations, layers)
        logger.info("layers %d -> %d: %.1f %% of composed partners are exact ones", *layers, 100 * found[0].value)
        found += [replace(row, variant=EXACT) for row in certificate_rows(matching, *layers)]
        found += weight_rows(weight_distances_of(a, b, permutations), start, stop, metrics)
        if evaluator is not None:
            pair = evaluator.pair(layers, permutations)
            found += evaluator.rows(pair, evaluator.activations(pair, far_splices(pair)))
        rows += found
        pairs.append(FarPair(start, stop, permutations))
    return rows, pairs


def compose(matchings: Sequence[PairMatching], layers: tuple[int, int], variant: str) -> Permutation:
    """The adjacent pairs' permutations of one variant between two layers, composed step by step."""
    steps = [pair.permutations[variant] for pair in matchings if layers[0] <= pair.layer < layers[1]]
    return reduce(Permutation.compose, steps)
