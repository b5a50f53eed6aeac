"""Composed, exact and random permutations of two layers further apart than neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.config.schema import SpliceUnits
from sae_match.evaluation.activations import Collector, PairPass, collect_activations
from sae_match.evaluation.pair import reconstruction_rows, score_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splices import Splice, parse_units, permuted_splice
from sae_match.matching import UNMATCHED, Permutation
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.metric import Metric
from sae_match.metrics.registry import BUILT_IN
from sae_match.saes import SparseAutoencoder

COMPOSED, EXACT, RANDOM = "composed", "exact", "random"
"""The composition of the matched neighbours, the matching of the two layers themselves, and the composition of the
neighbours' random controls (which is again a uniformly random permutation)."""
FAR_VARIANTS = (COMPOSED, EXACT, RANDOM)


def agreement_rows(permutations: dict[str, Permutation], layers: tuple[int, int]) -> list[MetricRow]:
    """Metric `agreement`: of the features that the exact matching gives a partner, the share given the same one.

    NaN where the exact matching is empty.

    Args:
        permutations: by variant, `exact` among them.
    """
    exact = permutations[EXACT].indices
    matched = exact != UNMATCHED
    n = int(matched.sum())
    rows: list[MetricRow] = []
    for variant, permutation in permutations.items():
        if variant != EXACT:
            same = int(((permutation.indices == exact) & matched).sum())
            rows.append(MetricRow(*layers, variant, "agreement", same / n if n else float("nan"), n))
    return rows


def evaluate_far_pair(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: dict[str, Permutation],
    x_a: Float[Tensor, "windows tokens d"],
    x_b: Float[Tensor, "windows tokens d"],
    document: Int[Tensor, " windows"],
    *,
    units: SpliceUnits | str,
    layers: tuple[int, int],
    min_count: int,
    bootstrap: Bootstrap,
    batch_windows: int = 8,
    sink_positions: int = 1,
    metrics: Mapping[str, Metric] = BUILT_IN,
    collect: Collector = collect_activations,
) -> list[MetricRow]:
    """Matching scores of every variant, and how well x_b is explained by the splice of Eq. 5 along it.

    A splice's rows bear the variant's name; beside them `encode_decode_previous` and `layer_drop` (layer A's
    reconstruction and residual in place of x_b) say what the distance itself costs.

    Args:
        a, b: SAEs of the two layers; other arguments as in `evaluate_pair`.

    Raises:
        UserError: shapes that do not fit together.
    """
    units = parse_units(units)
    splices: dict[str, Splice] = {name: permuted_splice(a, b, p, units) for name, p in permutations.items()}
    splices["encode_decode_previous"] = lambda pair: a.decode(pair.f_a)
    splices["layer_drop"] = lambda pair: pair.x_a
    with torch.no_grad():
        asked = PairPass(a, b, x_a, x_b, document, permutations, splices, batch_windows, sink_positions)
        statistics = collect(asked)
    rows = score_rows(statistics, bootstrap, layers, min_count, metrics)
    return rows + reconstruction_rows(statistics, bootstrap, layers, metrics)
