"""Composed, exact and random permutations of two layers further apart than neighbours."""

from __future__ import annotations

from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splices import BoundSplice, SplicePair, bind_all
from sae_match.evaluation.standard_splices import EncodeDecodePrevious, EncodePermuteDecode, LayerDrop
from sae_match.matching import UNMATCHED, Permutation

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


def far_splices(pair: SplicePair) -> dict[str, BoundSplice]:
    """The splice of Eq. 5 along every permutation, called like the permutation, and what the distance itself costs:
    `encode_decode_previous` and `layer_drop` (layer A's reconstruction and residual in place of x_b)."""
    return EncodePermuteDecode().by_variant(pair) | bind_all((EncodeDecodePrevious(), LayerDrop()), pair)
