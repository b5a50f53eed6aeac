"""Matching every adjacent pair of the span, with its controls; each permutation is on disk as soon as it exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_match.evaluation.controls import identity, random
from sae_match.evaluation.pair import weight_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.matching_cache import cached_matching
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.matching import Matching, Permutation
from sae_match.matching.feature_pair import FeaturePair, Streams
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.metrics.metric import Metric
from sae_match.metrics.registry import BUILT_IN
from sae_match.metrics.weight_distance import WeightDistances, weight_distances_of
from sae_match.record.job import JobRecord
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairMatching:
    """One pair's matching with its controls.

    Attributes:
        layer, layer_to: layers t and t+1.
        permutations: `matched` and the controls that are asked for, all without the features set aside.
        rows: weight metrics of every variant and the solver's certificate.
        features: one row per matched feature with its distances.
        random_mse: decoder MSE of each pair of the random control, to draw beside the matched ones.
        warnings: what a reader of the result must know.
    """

    layer: int
    layer_to: int
    permutations: dict[str, Permutation]
    rows: list[MetricRow]
    features: pd.DataFrame
    random_mse: npt.NDArray[np.float32]
    warnings: tuple[str, ...] = ()


def match_span(
    store: Store,
    study: Study,
    saes: SpanSaes,
    solver: Solver,
    record: JobRecord,
    progress: bool,
    aside: Mapping[int, Bool[Tensor, " F"]] | None = None,
    fit: Streams | None = None,
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> list[PairMatching]:
    """Match all adjacent pairs, saving each permutation into the record when it is found.

    Args:
        aside: features to leave unmatched, by layer; none where a layer is missing.
        fit: residual streams of text on which controls are fitted; None where none needs any.
        metrics: what is measured, by name.
    """
    pairs = tqdm(saes.pairs, desc="matching layer pairs", disable=not progress)
    return [match_pair(store, study, saes, solver, record, layers, aside or {}, fit, metrics) for layers in pairs]


def match_pair(
    store: Store,
    study: Study,
    saes: SpanSaes,
    solver: Solver,
    record: JobRecord,
    layers: tuple[int, int],
    aside: Mapping[int, Bool[Tensor, " F"]],
    fit: Streams | None = None,
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> PairMatching:
    """Match one pair, save its permutation and find its controls.

    No SAE outlives this call except the two that `saes` holds.
    """
    layer, layer_to = layers
    a, b = saes.load(layer), saes.load(layer_to)
    matching, matched = match_and_save(store, study, a, b, solver, record, layers, aside, fit)
    pair = feature_pair(study, a, b, layers, (aside.get(layer), aside.get(layer_to)), fit)
    permutations, found = {"matched": matched}, list[MetricRow]()

    def match(similarity: Comparison, own: Solver) -> Matching:
        return cached_matching(store, similarity, own.on(saes.device), pair)

    for control in study.evaluation.matchers:
        other = control.match(pair, match)
        permutations[control.name] = other.permutation
        n = len(other.permutation.matched)
        found += [MetricRow(*layers, control.name, name, value, n) for name, value in other.values.items()]
    # Compared whether or not they are among the controls: the figure of decoder distances shows a random matching.
    always = {"identity": identity(pair), "any": random(pair)}
    references = weight_distances_of(a, b, always)
    distances = weight_distances_of(a, b, permutations)
    random_mse = references["any"].W_dec.cpu().numpy()
    planted = planted_identity(references["identity"], references["any"], layer, layer_to)
    rows = weight_rows(distances, layer, layer_to, metrics) + certificate_rows(matching, layer, layer_to) + found
    features = feature_table(matched, distances["matched"], layer, layer_to)
    logger.info(
        "layers %d -> %d: objective %.6g, %s, %.2f s",
        layer, layer_to, matching.objective, "no bound" if matching.gap is None else f"gap {matching.gap:.1e}",
        matching.seconds,
    )  # fmt: skip
    if planted is not None:
        logger.warning("%s", planted)
    return PairMatching(
        layer, layer_to, permutations, rows, features, random_mse, () if planted is None else (planted,)
    )


_STANDARD_ERRORS = 4.0
"""By so many the identity must stand above random pairs: chance gives that once in 30,000 pairs of layers."""


def planted_identity(vanilla: WeightDistances, random: WeightDistances, layer: int, layer_to: int) -> str | None:
    """A warning where feature i resembles feature i of the next layer more than a random one; None where it does not.

    The order of features means nothing, so that the identity is a random permutation, unless both SAEs were trained
    from one initialization (the default of sparsify and dictionary_learning): then the best match is largely that.

    Compared is the mean decoder cosine, whose error over pairs of features is known; intervals over documents do not
    say how much a matching score varies from one random permutation to another.
    """
    ours, theirs = (found.decoder_cosine.to(torch.float64) for found in (vanilla, random))
    if min(len(ours), len(theirs)) < 2:
        return None
    margin = float(ours.mean() - theirs.mean())
    error = float((ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt())
    if margin <= _STANDARD_ERRORS * error:
        return None
    return (
        f"layers {layer} -> {layer_to}: feature i resembles feature i of the next layer (vanilla: mean decoder cosine "
        f"{float(ours.mean()):.3f}, random pairs {float(theirs.mean()):.3f} +- {error:.3f}). The SAEs seem to be "
        "trained from one initialization, and the matching largely finds that: take SAEs of different seeds"
    )


def feature_pair(
    study: Study,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    layers: tuple[int, int],
    excluded: tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None] = (None, None),
    fit: Streams | None = None,
) -> FeaturePair:
    """Two SAEs of the job as similarities see them."""
    return FeaturePair(
        a, b, study.folding.name, excluded, layers, fit,
        study.evaluation.batch_windows, study.model.sink_positions, study.seed,
    )  # fmt: skip


def match_and_save(
    store: Store,
    study: Study,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    solver: Solver,
    record: JobRecord,
    layers: tuple[int, int],
    aside: Mapping[int, Bool[Tensor, " F"]],
    fit: Streams | None = None,
) -> tuple[Matching, Permutation]:
    """Match two layers as configured; their permutation is in the record, its header says what produced it."""
    layer, layer_to = layers
    pair = feature_pair(study, a, b, layers, (aside.get(layer), aside.get(layer_to)), fit)
    matching = cached_matching(store, study.matching, solver, pair)
    provenance = {**matching.permutation.provenance, "layer_a": layer, "layer_b": layer_to, "sae": study.sae.name}
    provenance["folding_scale"] = study.folding.scale.value
    matched = replace(matching.permutation, provenance=provenance)
    matched.save(record.permutation_path(layer, layer_to))
    return matching, matched


def certificate_rows(matching: Matching, layer: int, layer_to: int) -> list[MetricRow]:
    """Objective, number of pairs, time and what the solver counted; bound, gap and tolerance where it gives a bound."""
    n = len(matching.permutation.matched)
    values = {"objective": matching.objective, "matched_pairs": float(n), "solver_seconds": matching.seconds}
    if matching.lower_bound is not None and matching.gap is not None:
        values |= {"lower_bound": matching.lower_bound, "gap": matching.gap, "tolerance": matching.tolerance}
    values |= {f"solver/{name}": value for name, value in matching.statistics.items()}
    return [MetricRow(layer, layer_to, "matched", name, value, n) for name, value in values.items()]


def aside_rows(aside: Mapping[int, Bool[Tensor, " F"]]) -> list[MetricRow]:
    """How many features of each layer were set aside."""
    return [
        MetricRow(layer, layer, "sae", "features_aside", float(mask.sum()), len(mask)) for layer, mask in aside.items()
    ]


def feature_table(matched: Permutation, distances: WeightDistances, layer: int, layer_to: int) -> pd.DataFrame:
    """One row per matched feature: partner, mean squared differences in folded units, decoder cosine."""
    rows = matched.matched
    return pd.DataFrame(
        {
            "layer": layer,
            "layer_to": layer_to,
            "feature": rows.numpy(),
            "partner": matched.indices[rows].numpy(),
            "mse_W_enc": distances.W_enc.cpu().numpy(),
            "mse_b_enc": distances.b_enc.cpu().numpy(),
            "mse_W_dec": distances.W_dec.cpu().numpy(),
            "decoder_cosine": distances.decoder_cosine.cpu().numpy(),
        }
    )
