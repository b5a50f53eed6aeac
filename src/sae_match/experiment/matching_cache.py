"""Matchings that are already known: stored by the content of both SAEs, what was compared and how it was solved.

They are committed one by one, so that a killed job loses the pair in hand at most, and shared by all jobs of a sweep
that differ in something else (the text, the evaluation). A matching brings the figures of the run that found it with
it: its seconds are those of the first time.
"""

from __future__ import annotations

import torch

from sae_match.entries import Payload
from sae_match.matching import Matching, Permutation
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import Problems, match_features
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store

MATCHING_VERSION = 4
"""To be raised when a solver, or what it minimizes, changes its results."""
KIND = "matchings"


def cached_matching(
    store: Store, similarity: Comparison, solver: Solver, pair: FeaturePair, problems: Problems | None = None
) -> Matching:
    """The matching of a pair of SAEs from the store, or found and then committed.

    Of given similarities only a matching that is proved the best is kept: one that was cut short by today's memory
    need not be the next job's. A limit of time is part of the solver's key.
    """
    return store.get_or(
        KIND,
        matching_key(similarity, solver, pair),
        lambda: _encode(match_features(similarity, solver, pair, problems)),
        lambda payload: _decode(payload, pair.a, pair.b, solver.name),
        keep=lambda payload: "mean_similarity" not in payload["statistics"] or not payload["gap"],
    )


def matching_key(similarity: Comparison, solver: Solver, pair: FeaturePair) -> dict[str, object]:
    """Key of a matching: everything that can change the permutation, its cost or its proof."""
    return {
        "version": MATCHING_VERSION,
        "similarity": similarity.pair_key(pair),
        "solver": solver.key(),
        "device": pair.a.device.type,
    }


def _encode(matching: Matching) -> Payload:
    permutation = matching.permutation
    return {
        "indices": permutation.indices,
        "width_b": permutation.n_b,
        "many_to_one": permutation.many_to_one,
        "provenance": dict(permutation.provenance),
        "objective": matching.objective,
        "lower_bound": matching.lower_bound,
        "gap": matching.gap,
        "tolerance": matching.tolerance,
        "seconds": matching.seconds,
        "statistics": dict(matching.statistics),
        "confidence": matching.confidence,
    }


def _decode(payload: Payload, a: SparseAutoencoder, b: SparseAutoencoder, solver: str) -> Matching:
    """The stored matching.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, UserError: it is not one of these SAEs by this solver.
    """
    indices, provenance = payload["indices"], payload["provenance"]
    if indices.shape != (a.width,) or payload["width_b"] != b.width:
        raise ValueError(f"it is not for {a.width} and {b.width} features")
    confidence = payload["confidence"]
    if confidence.shape != (a.width,):
        raise ValueError(f"its confidence is not that of {a.width} features")
    if (provenance["sae_a"], provenance["sae_b"], provenance["solver"]) != (a.content_hash, b.content_hash, solver):
        raise ValueError("it is for other SAEs or from another solver")
    return Matching(
        Permutation(torch.from_numpy(indices), b.width, provenance, payload["many_to_one"]),
        objective=float(payload["objective"]),
        lower_bound=payload["lower_bound"],
        tolerance=float(payload["tolerance"]),
        seconds=float(payload["seconds"]),
        statistics=dict(payload["statistics"]),
        confidence=torch.from_numpy(confidence),
    )
