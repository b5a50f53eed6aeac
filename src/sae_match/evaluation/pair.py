"""`evaluate_pair`: weights, co-activations and reconstructions of one layer pair as tidy rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.config.schema import SpliceUnits
from sae_match.evaluation.activations import ActivationStatistics, Collector, PairPass, collect_activations
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splices import Splice, splices_of_pair
from sae_match.matching import Permutation
from sae_match.metrics.bootstrap import Bootstrap, Estimate
from sae_match.metrics.metric import ActivationMetric, Metric, ReconstructionMetric, WeightMetric
from sae_match.metrics.registry import BUILT_IN
from sae_match.metrics.weight_distance import WeightDistances, weight_distances_of
from sae_match.saes import SparseAutoencoder


@dataclass(frozen=True)
class PairEvaluation:
    """Metrics of a pair as rows, and the raw counts behind them."""

    rows: list[MetricRow]
    statistics: ActivationStatistics


def weight_rows(
    distances: Mapping[str, WeightDistances], layer: int, layer_to: int, metrics: Mapping[str, Metric] = BUILT_IN
) -> list[MetricRow]:
    """Every metric of weights (`WeightMetric`) of every variant; n is the number of pairs."""
    chosen = [metric for metric in metrics.values() if isinstance(metric, WeightMetric)]
    rows: list[MetricRow] = []
    for variant, found in distances.items():
        pair, n = found.matched(), len(found.decoder_cosine)
        rows += [MetricRow(layer, layer_to, variant, metric.name, float(metric.value(pair)), n) for metric in chosen]
    return rows


def evaluate_pair(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    permutations: Permutation | dict[str, Permutation],
    x_a: Float[Tensor, "windows tokens d"],
    x_b: Float[Tensor, "windows tokens d"],
    document: Int[Tensor, " windows"] | None = None,
    *,
    units: SpliceUnits | str = SpliceUnits.theta,
    layers: tuple[int, int] = (0, 1),
    min_count: int = 10,
    bootstrap: Bootstrap | None = None,
    batch_windows: int = 8,
    sink_positions: int = 1,
    weights: bool = True,
    quantiles: Sequence[float] = (),
    more_splices: Mapping[str, Splice] | None = None,
    metrics: Mapping[str, Metric] = BUILT_IN,
    collect: Collector = collect_activations,
) -> PairEvaluation:
    """All metrics of one layer pair that need no language model, only its residual streams.

    Args:
        a, b: SAEs of layers t and t+1.
        permutations: one matching A -> B, or several by variant (`matched`, `random`, ...).
        x_a, x_b: resid_post of both layers on the same tokens; sink positions are left out.
        document: 0-based document of each window, for the intervals; each window its own document if None.
        units: units in which activations are carried along the permutation, `theta` or `raw`.
        layers: layer numbers, for the rows.
        min_count: per-feature scores average over features that fire at least this often.
        sink_positions: positions at each window's start that are not counted (1 = position 0).
        weights: also give the weight metrics, which need no residual streams.
        bootstrap: resamples over documents; 1,000 drawn with seed 0 if None.
        quantiles: also the splices that carry only the q share of matched pairs with the lowest MSE (Eq. 6).
        more_splices: further reconstructions of x_b, by name.
        metrics: what is measured, by name.
        collect: makes the pass over the tokens; one that has made it before may know the answer.

    Raises:
        UserError: shapes that do not fit together.
    """
    named = {"matched": permutations} if isinstance(permutations, Permutation) else permutations
    document = torch.arange(len(x_a)) if document is None else document
    bootstrap = bootstrap or Bootstrap(int(document.max()) + 1)
    splices = splices_of_pair(a, b, named, units, quantiles) | dict(more_splices or {})
    statistics = collect(PairPass(a, b, x_a, x_b, document, named, splices, batch_windows, sink_positions))
    rows = weight_rows(weight_distances_of(a, b, named), *layers, metrics) if weights else []
    rows += score_rows(statistics, bootstrap, layers, min_count, metrics)
    rows += reconstruction_rows(statistics, bootstrap, layers, metrics)
    return PairEvaluation(rows, statistics)


def score_rows(
    statistics: ActivationStatistics,
    bootstrap: Bootstrap,
    layers: tuple[int, int],
    min_count: int,
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> list[MetricRow]:
    """Every metric of activations (`ActivationMetric`) of every variant."""
    rows: list[MetricRow] = []
    for variant, together in statistics.together.items():
        counts = together.of_pair(statistics.a, statistics.b, min_count)
        rows += [
            estimate_row(layers, variant, metric.name, metric.estimate(counts, bootstrap), bootstrap)
            for metric in metrics.values()
            if isinstance(metric, ActivationMetric)
        ]
    return rows


def reconstruction_rows(
    statistics: ActivationStatistics,
    bootstrap: Bootstrap,
    layers: tuple[int, int],
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> list[MetricRow]:
    """Every metric of reconstructions (`ReconstructionMetric`) of every splice."""
    rows: list[MetricRow] = []
    for splice, reconstruction in statistics.reconstruction.items():
        sums = reconstruction.sums()
        rows += [
            estimate_row(layers, splice, metric.name, metric.estimate(sums, bootstrap), bootstrap)
            for metric in metrics.values()
            if isinstance(metric, ReconstructionMetric)
        ]
    return rows


def estimate_row(
    layers: tuple[int, int], variant: str, metric: str, estimate: Estimate, bootstrap: Bootstrap
) -> MetricRow:
    """A row with an interval; n is the number of documents."""
    return MetricRow(*layers, variant, metric, estimate.value, bootstrap.n_documents, estimate)
