"""Matching the pairs of a job, with their controls: permutations, weight metrics and the solver's certificate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from sae_match.evaluation.controls import Matcher, MatchingControl, identity, random
from sae_match.evaluation.nulls import null_rows
from sae_match.evaluation.pair import feature_table, weight_rows
from sae_match.experiment.matching_cache import cached_matching
from sae_match.matching import UNMATCHED, Matching, Permutation
from sae_match.matching.feature_pair import FeaturePair, Streams
from sae_match.matching.planted import planted_identity
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.metrics.description import CEILING, MATCHED
from sae_match.metrics.metric import Metric, MetricRow
from sae_match.metrics.weight_distance import weight_distances_of
from sae_match.pairs import COMPOSED, EXACT, RANDOM, Pair, Role, Site
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind
from sae_match.store import Store

logger = logging.getLogger(__name__)

IDENTITY, ANY_RANDOM = "/identity", "/random"
"""Compared beside the variants of neighbors; no variant has such a name."""
Excluded = Callable[[Site, SparseAutoencoder], Bool[Tensor, " F"] | None]
"""Features of a dictionary that stay unmatched; None = none."""


@dataclass(frozen=True)
class PairMatcher:
    """What all matchings of a job share.

    Attributes:
        similarity, solver: the job's own; controls bring theirs.
        excluded: features to leave unmatched.
        fit: residual streams of text on which similarities are fitted; None where none needs any.
        provenance: written into the headers of permutations.
        keep: called with each permutation as soon as it is found, but for those of two seeds.
        null_alpha: share of features that may exceed the rotated null's threshold; None = no null is matched.
    """

    store: Store
    similarity: Comparison
    solver: Solver
    folding: FoldingKind
    excluded: Excluded = lambda site, sae: None
    fit: Streams | None = None
    batch_windows: int = 8
    sink_positions: int = 1
    seed: int = 0
    provenance: Mapping[str, object] = field(default_factory=dict)
    keep: Callable[[Pair, Permutation], None] = lambda pair, permutation: None
    null_alpha: float | None = None

    def features(self, pair: Pair, a: SparseAutoencoder, b: SparseAutoencoder) -> FeaturePair:
        """Two SAEs as similarities see them."""
        excluded = self.excluded(pair.a, a), self.excluded(pair.b, b)
        return FeaturePair(
            a, b, self.folding, excluded, pair.layers, self.fit, self.batch_windows, self.sink_positions, self.seed
        )

    def match(self, pair: Pair, features: FeaturePair) -> Matching:
        """The job's own matching of a pair, from the store where it is known."""
        found = cached_matching(self.store, self.similarity, self.solver, features)
        a, b = features.layers
        provenance = {**found.permutation.provenance, "layer_a": a, "layer_b": b, **self.provenance}
        permutation = replace(found.permutation, provenance=provenance)
        if pair.role is not Role.seeds:
            self.keep(pair, permutation)
        return replace(found, permutation=permutation)

    def null_rows(
        self, variant: str, features: FeaturePair, controls: Iterable[MatchingControl] = ()
    ) -> list[MetricRow]:
        """What the rotated null says of the job's own matcher, under the name `variant`, and of those of controls."""
        if self.null_alpha is None:
            return []
        matchers = {variant: (self.similarity, self.solver)}
        for control in controls:
            if isinstance(control, Matcher):
                matchers[control.name] = (control.similarity, control.solver.on(features.a.device.type))
        return null_rows(matchers, features, self.null_alpha, partial(cached_matching, self.store))


@dataclass(frozen=True)
class MatchedPair:
    """The permutations of one pair and what follows from weights alone.

    Attributes:
        permutations: by variant: those of `pair.role.variants`, and the controls of neighbors; none holds a feature
            that is excluded.
        rows: weight metrics of every variant and the solver's certificate.
        features: of neighbors, one row per matched feature with its distances; empty otherwise.
        random_mse: decoder MSE of each pair of a random matching of neighbors, to draw beside the matched ones.
        warnings: what a reader of the result must know.
    """

    pair: Pair
    permutations: dict[str, Permutation]
    rows: list[MetricRow]
    features: pd.DataFrame = field(default_factory=pd.DataFrame)
    random_mse: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    warnings: tuple[str, ...] = ()


def match_neighbors(
    matcher: PairMatcher,
    pair: Pair,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    controls: Collection[MatchingControl],
    metrics: Mapping[str, Metric],
) -> MatchedPair:
    """Match layers t and t+1, and find the permutations of the controls."""
    features = matcher.features(pair, a, b)
    matching = matcher.match(pair, features)
    permutations, rows = {MATCHED: matching.permutation}, certificate_rows(matching, pair, MATCHED)

    def match(similarity: Comparison, solver: Solver) -> Matching:
        return cached_matching(matcher.store, similarity, solver.on(a.device.type), features)

    for control in controls:
        other = control.match(features, match)
        permutations[control.name] = other.permutation
        n = len(other.permutation.matched)
        rows += [MetricRow(*pair.layers, control.name, name, value, n) for name, value in other.values.items()]
    rows += matcher.null_rows(MATCHED, features, controls)
    # Compared whether or not they are among the controls: the figure of decoder distances shows a random matching.
    # In one call, which folds both SAEs once.
    compared = weight_distances_of(a, b, {**permutations, IDENTITY: identity(features), ANY_RANDOM: random(features)})
    distances = {name: compared[name] for name in permutations}
    logger.info(
        "%s: objective %.6g, %s, %.2f s", pair, matching.objective,
        "no bound" if matching.gap is None else f"gap {matching.gap:.1e}", matching.seconds,
    )  # fmt: skip
    planted = planted_identity(compared[IDENTITY].decoder_cosine, compared[ANY_RANDOM].decoder_cosine)
    if planted is not None:
        planted = f"{pair}: {planted}"
        logger.warning("%s", planted)
    return MatchedPair(
        pair,
        permutations,
        rows + weight_rows(metrics, distances, pair.layers),
        feature_table(a, b, matching.permutation, distances=distances[MATCHED]),
        compared[ANY_RANDOM].W_dec.cpu().numpy(),
        () if planted is None else (planted,),
    )


def match_distant(
    matcher: PairMatcher,
    pair: Pair,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    neighbors: Iterable[MatchedPair],
    metrics: Mapping[str, Metric],
) -> MatchedPair:
    """Match two layers further apart, and compose the permutations of the neighbors between them."""
    matching = matcher.match(pair, matcher.features(pair, a, b))
    between = [found for found in neighbors if pair.a.layer <= found.pair.a.layer < pair.b.layer]
    permutations = {
        COMPOSED: reduce(Permutation.compose, (found.permutations[MATCHED] for found in between)),
        EXACT: matching.permutation,
        RANDOM: reduce(Permutation.compose, (found.permutations[RANDOM] for found in between)),
    }
    rows = agreement_rows(permutations, pair)
    logger.info("%s: %.1f %% of composed partners are exact ones", pair, 100 * rows[0].value)
    rows += certificate_rows(matching, pair, EXACT)
    return MatchedPair(
        pair, permutations, rows + weight_rows(metrics, weight_distances_of(a, b, permutations), pair.layers)
    )


def match_seeds(
    matcher: PairMatcher, pair: Pair, a: SparseAutoencoder, b: SparseAutoencoder, metrics: Mapping[str, Metric]
) -> MatchedPair:
    """Match two seeds of one layer: the ceiling of every score."""
    features = matcher.features(pair, a, b)
    permutations = {CEILING: matcher.match(pair, features).permutation}
    rows = matcher.null_rows(CEILING, features)
    rows += weight_rows(metrics, weight_distances_of(a, b, permutations), pair.layers)
    return MatchedPair(pair, permutations, rows)


def certificate_rows(matching: Matching, pair: Pair, variant: str) -> list[MetricRow]:
    """Objective, number of pairs, time and what the solver counted; bound, gap and tolerance where it gives a bound."""
    n = len(matching.permutation.matched)
    values = {"objective": matching.objective, "matched_pairs": float(n), "solver_seconds": matching.seconds}
    if matching.lower_bound is not None and matching.gap is not None:
        values |= {"lower_bound": matching.lower_bound, "gap": matching.gap, "tolerance": matching.tolerance}
    values |= {f"solver/{name}": value for name, value in matching.statistics.items()}
    return [MetricRow(*pair.layers, variant, name, value, n) for name, value in values.items()]


def agreement_rows(permutations: Mapping[str, Permutation], pair: Pair) -> list[MetricRow]:
    """Metric `agreement`: of the features that the exact matching gives a partner, the share given the same one.

    NaN where the exact matching is empty.

    Args:
        permutations: by variant, `exact` among them.
    """
    exact = permutations[EXACT].indices
    matched = exact != UNMATCHED
    n = int(matched.sum())
    shares = {
        variant: int(((permutation.indices == exact) & matched).sum()) / n if n else float("nan")
        for variant, permutation in permutations.items()
        if variant != EXACT
    }
    return [MetricRow(*pair.layers, variant, "agreement", share, n) for variant, share in shares.items()]
