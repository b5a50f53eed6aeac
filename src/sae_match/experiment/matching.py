"""Matching the pairs of a job, with their controls: permutations, weight metrics and the solver's certificate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_match.evaluation.controls import ControlMatching, MatchingControl, identity, random, solver_values
from sae_match.evaluation.nulls import null_rows, rotated
from sae_match.evaluation.pair import feature_table, weight_rows
from sae_match.experiment.inputs import Inputs
from sae_match.experiment.matching_cache import cached_matching
from sae_match.matching import UNMATCHED, Matching, Permutation
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import Problems
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

UNMAPPED = "unmapped"
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
        inputs: models, text and residual streams; None for weights_only.
        provenance: written into the headers of permutations.
        keep: called with each permutation as soon as it is found, but for those of two seeds.
        null_alpha: share of features that may exceed the rotated null's threshold; None = no null is matched.
    """

    store: Store
    similarity: Comparison
    solver: Solver
    folding: FoldingKind
    excluded: Excluded = lambda site, sae: None
    inputs: Inputs | None = None
    seed: int = 0
    provenance: Mapping[str, object] = field(default_factory=dict)
    keep: Callable[[Pair, Permutation], None] = lambda pair, permutation: None
    null_alpha: float | None = None

    def features(self, pair: Pair, a: SparseAutoencoder, b: SparseAutoencoder) -> FeaturePair:
        """Two SAEs as similarities see them."""
        excluded = self.excluded(pair.a, a), self.excluded(pair.b, b)
        features = FeaturePair(a, b, self.folding, excluded, layers=pair.blocks, seed=self.seed)
        if (inputs := self.inputs) is None:
            return features
        fit, fit_b = inputs.fit(pair)
        return replace(
            features, fit=fit, fit_b=fit_b, mapped=inputs.mapped(pair, a),
            batch_windows=inputs.batch_windows, sink_positions=inputs.sink_positions,
        )  # fmt: skip

    def match(self, pair: Pair, features: FeaturePair) -> Matching:
        """The job's own matching of a pair, from the store where it is known."""
        found = cached_matching(self.store, self.similarity, self.solver, features)
        a, b = pair.layers
        provenance = {**found.permutation.provenance, "layer_a": a, "layer_b": b, **self.provenance}
        permutation = replace(found.permutation, provenance=provenance)
        if pair.role is not Role.seeds:
            self.keep(pair, permutation)
        return replace(found, permutation=permutation)


@dataclass(frozen=True)
class MatchedPair:
    """The permutations of one pair and what follows from weights alone.

    Attributes:
        permutations: by variant: those of `pair.role.variants`, and the controls; none holds a feature that is
            excluded.
        confidence: [F_a] by variant, of those that order their pairs; as in `Matching`.
        rows: weight metrics of every variant, the solver's certificate and what is known of the controls' solvers.
        features: of the job's own pairs, one row per matched feature with its distances; empty otherwise.
        random_mse: decoder MSE of each pair of a random matching of such a pair, to draw beside the matched ones.
        warnings: what a reader of the result must know.
    """

    pair: Pair
    permutations: dict[str, Permutation]
    rows: list[MetricRow]
    confidence: dict[str, Float[Tensor, " F_a"]] = field(default_factory=dict)
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
    """Match a pair that the job is about, and find the permutations of the controls.

    Of two models whose residual streams are mapped, variant `unmapped` is the job's own matching without the map.
    """
    features = matcher.features(pair, a, b)
    matching = matcher.match(pair, features)
    found = {MATCHED: _own(matching)} | match_controls(matcher, features, controls)
    permutations = {variant: one.permutation for variant, one in found.items()}
    # Compared whether or not they are among the controls: the figure of decoder distances shows a random matching.
    # In one call, which folds both SAEs once.
    compared = weight_distances_of(
        *features.weights, {**permutations, IDENTITY: identity(features), ANY_RANDOM: random(features)}
    )
    distances = {name: compared[name] for name in permutations}
    if features.mapped is not None and a.d_model == b.d_model:
        raw = cached_matching(matcher.store, matcher.similarity, matcher.solver, replace(features, mapped=None))
        found[UNMAPPED], permutations[UNMAPPED] = _own(raw), raw.permutation
        distances |= weight_distances_of(a, b, {UNMAPPED: raw.permutation})
    logger.info(
        "%s: objective %.6g, %s, %.2f s", pair, matching.objective,
        "no bound" if matching.gap is None else f"gap {matching.gap:.1e}", matching.seconds,
    )  # fmt: skip
    planted = planted_identity(*(torch.from_numpy(compared[name].decoder_cosine) for name in (IDENTITY, ANY_RANDOM)))
    return MatchedPair(
        pair,
        permutations,
        value_rows(found, pair)
        + null_rows_of(matcher, pair, features, found, controls)
        + weight_rows(metrics, distances, pair.layers),
        confidences(found),
        feature_table(a, b, matching.permutation, distances=distances[MATCHED]),
        compared[ANY_RANDOM].mse["W_dec"],
        () if planted is None else (f"{pair}: {planted}",),
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
    exact = {EXACT: _own(matching)}
    rows += value_rows(exact, pair)
    rows += weight_rows(metrics, weight_distances_of(a, b, permutations), pair.layers)
    return MatchedPair(pair, permutations, rows, confidences(exact))


def match_seeds(
    matcher: PairMatcher,
    pair: Pair,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    metrics: Mapping[str, Metric],
    controls: Collection[MatchingControl] = (),
) -> MatchedPair:
    """Match two seeds of one layer, the reference of every score, and find the permutations of the controls."""
    features = matcher.features(pair, a, b)
    own = matcher.match(pair, features)
    others = match_controls(matcher, features, controls)
    values = solver_values(own) if others else {}  # beside those of the controls
    found = {CEILING: ControlMatching(own.permutation, values, own.confidence)} | others
    permutations = {variant: one.permutation for variant, one in found.items()}
    rows = value_rows(found, pair) + null_rows_of(matcher, pair, features, found, controls)
    rows += weight_rows(metrics, weight_distances_of(a, b, permutations), pair.layers)
    return MatchedPair(pair, permutations, rows, confidences(found))


def match_controls(
    matcher: PairMatcher, features: FeaturePair, controls: Iterable[MatchingControl]
) -> dict[str, ControlMatching]:
    """What each control makes of a pair, by variant."""

    problems = Problems()  # matchers of one similarity, one after the other, share what it computes

    def match(pair: FeaturePair, similarity: Comparison, solver: Solver) -> Matching:
        return cached_matching(matcher.store, similarity, solver.on(pair.a.device.type), pair, problems)

    return {control.name: control.match(features, match) for control in controls}


def null_rows_of(
    matcher: PairMatcher,
    pair: Pair,
    features: FeaturePair,
    found: Mapping[str, ControlMatching],
    controls: Collection[MatchingControl],
) -> list[MetricRow]:
    """What the rotated null says of every matcher that orders its pairs; nothing where it is not asked for.

    Args:
        found: the job's own matching first, then those of the controls.
    """
    if matcher.null_alpha is None:
        return []
    turned = replace(features, b=rotated(features.b, features.seed))
    own = cached_matching(matcher.store, matcher.similarity, matcher.solver, turned)
    ordered = [control for control in controls if found[control.name].confidence is not None]
    nulls = {next(iter(found)): own.confidence} | confidences(match_controls(matcher, turned, ordered))
    return null_rows(confidences(found), nulls, pair.layers, matcher.null_alpha)


def value_rows(found: Mapping[str, ControlMatching], pair: Pair) -> list[MetricRow]:
    """The numbers about how each variant was found."""
    return [
        MetricRow(*pair.layers, variant, name, value, len(one.permutation.matched))
        for variant, one in found.items()
        for name, value in one.values.items()
    ]


def confidences(found: Mapping[str, ControlMatching]) -> dict[str, Float[Tensor, " F_a"]]:
    """By what each variant orders its pairs, where it does."""
    return {variant: one.confidence for variant, one in found.items() if one.confidence is not None}


def _own(matching: Matching) -> ControlMatching:
    """The job's own matching, also with what the solver counted, and bound and tolerance where it gives a bound."""
    values = solver_values(matching)
    if matching.lower_bound is not None:
        values |= {"lower_bound": matching.lower_bound, "tolerance": matching.tolerance}
    values |= {f"solver/{name}": value for name, value in matching.statistics.items()}
    return ControlMatching(matching.permutation, values, matching.confidence)


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
