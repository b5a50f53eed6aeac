"""The full evaluation: residual streams of real text, co-activations, reconstructions and delta loss per pair."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_match.errors import UserError
from sae_match.evaluation.activations import ActivationRequest, ActivationStatistics, never_active
from sae_match.evaluation.pair import activation_rows, weight_rows
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splices import BoundSplice, Splice, SplicePair, SpliceUnits, bind_all, resolve_units
from sae_match.evaluation.standard_splices import EncodePermuteDecode
from sae_match.experiment.activation_cache import ActivationCache
from sae_match.experiment.matching_cache import cached_matching
from sae_match.experiment.matching_step import PairMatching, feature_pair
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.matching import Permutation
from sae_match.matching.similarity import DeadFeatures
from sae_match.matching.solution import Solver
from sae_match.metrics.bootstrap import MIN_DOCUMENTS, Bootstrap
from sae_match.metrics.description import CEILING, TO_CEILING
from sae_match.metrics.metric import LayerActivity, LayerMetric, Metric
from sae_match.metrics.registry import BUILT_IN
from sae_match.metrics.weight_distance import weight_distances_of
from sae_match.plan.checks import captured_layers
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import TokenWindows, load_fit_windows, load_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitText:
    """Text that is not evaluated, on which controls are fitted, and the span's residual streams on it."""

    windows: TokenWindows
    streams: ResidualStreams


@dataclass(frozen=True)
class Evaluator:
    """Everything that the evaluation of a pair shares with the other pairs.

    Attributes:
        windows: all evaluation windows; residual streams and activation metrics cover these.
        splice_rows: marks the windows on which token losses are computed.
        splice_windows: those windows.
        passes: passes over a pair's tokens that are already made.
        units: units in which activations travel along a permutation, `theta` or `raw`.
        splices: those of every adjacent pair.
        metrics: what is measured, by name.
        fit: None where no control is fitted.
    """

    study: Study
    saes: SpanSaes
    solver: Solver
    model: LanguageModel
    windows: TokenWindows
    splice_rows: Tensor
    splice_windows: TokenWindows
    streams: ResidualStreams
    store: Store
    bootstrap: Bootstrap
    splice_bootstrap: Bootstrap
    progress: bool
    passes: ActivationCache
    units: SpliceUnits
    splices: tuple[Splice, ...]
    fit: FitText | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: BUILT_IN)

    def pair(self, layers: tuple[int, int], permutations: Mapping[str, Permutation]) -> SplicePair:
        """What the splices of two layers are made from."""
        a, b = (self.saes.load(layer) for layer in layers)
        return self.pair_of(a, b, layers, permutations)

    def pair_of(
        self,
        a: SparseAutoencoder,
        b: SparseAutoencoder,
        layers: tuple[int, int],
        permutations: Mapping[str, Permutation],
    ) -> SplicePair:
        """The same of two SAEs that need not be the span's."""
        fit = None if self.fit is None else self.fit.streams
        batch, sinks = self.study.evaluation.batch_windows, self.study.model.sink_positions
        return SplicePair(a, b, permutations, self.units, layers, fit, batch, sinks)

    def activations(self, pair: SplicePair, splices: Mapping[str, BoundSplice]) -> ActivationStatistics:
        """What one pass over the evaluation text of a pair counts and sums up, made once and then known."""
        x_a, x_b = (self.streams.layer(layer) for layer in pair.layers)
        request = ActivationRequest(
            pair.a, pair.b, x_a, x_b, self.windows.document, pair.permutations, splices,
            pair.batch_windows, pair.sink_positions,
        )  # fmt: skip
        return self.passes.computing(streams=self.streams.key, layers=pair.layers)(request)

    def rows(self, pair: SplicePair, statistics: ActivationStatistics) -> list[MetricRow]:
        """Every metric that follows from a pass."""
        return activation_rows(statistics, self.bootstrap, pair.layers, self.study.evaluation.min_count, self.metrics)

    def splice_residual(self, layer: int) -> Tensor:
        """resid_post of one layer on the splice windows; the memory-mapped whole where those are all windows."""
        residual = self.streams.layer(layer)
        return residual if bool(self.splice_rows.all()) else residual[self.splice_rows]


def prepare(
    store: Store,
    study: Study,
    saes: SpanSaes,
    solver: Solver,
    passes: ActivationCache,
    device: str,
    progress: bool,
    metrics: Mapping[str, Metric] = BUILT_IN,
) -> Evaluator:
    """Load model and text, and capture the span's residual streams (or find them in the store)."""
    model = load_language_model(study.model, device, store)
    saes.check_model(model.d_model, model.name)
    context = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and study.dataset.window_tokens > context:
        raise UserError(
            f"dataset.window_tokens={study.dataset.window_tokens}: the context of {model.name} is {context} tokens"
        )
    windows = load_windows(study.dataset, model.tokenizer, store, study.model.bos)
    model.check_ids(windows.ids)
    splice_rows = windows.leading(study.evaluation.splice_documents, study.evaluation.splice_windows_per_document)
    splice_windows = windows.subset(splice_rows)
    streams = capture(model, windows, captured_layers(study), store, study.evaluation.batch_windows, progress)
    saes.measure_on(streams, passes)
    fit = None
    if study.fitted:
        other = load_fit_windows(
            study.dataset, windows, study.evaluation.fit_documents, model.tokenizer, store, study.model.bos
        )
        fit = FitText(other, capture(model, other, saes.layers, store, study.evaluation.batch_windows, progress))
    logger.info(
        "%d windows of %d documents; token losses on %d of them",
        windows.n_windows, windows.n_documents, splice_windows.n_windows,
    )  # fmt: skip
    for what, count in (("metrics", windows.n_documents), ("delta losses", splice_windows.n_documents)):
        if count < MIN_DOCUMENTS:
            logger.warning(
                "%s have no intervals: %d documents, and intervals over documents need at least %d",
                what, count, MIN_DOCUMENTS,
            )  # fmt: skip
    samples, seed = study.evaluation.bootstrap_samples, study.seed
    return Evaluator(
        study=study,
        saes=saes,
        solver=solver,
        model=model,
        windows=windows,
        splice_rows=splice_rows,
        splice_windows=splice_windows,
        streams=streams,
        store=store,
        bootstrap=Bootstrap(windows.n_documents, samples, seed),
        splice_bootstrap=Bootstrap(splice_windows.n_documents, samples, seed),
        progress=progress,
        passes=passes,
        units=resolve_units(study.evaluation.splice_units, study.folding.name),
        splices=study.evaluation.all_splices,
        fit=fit,
        metrics=metrics,
    )


def dead_features(evaluator: Evaluator) -> dict[int, Bool[Tensor, " F"]]:
    """Which features of each layer fire on no counted token of the evaluation text."""
    layers = tqdm(evaluator.saes.layers, desc="finding dead features", disable=not evaluator.progress)
    dead = {layer: _dead(evaluator, layer, evaluator.saes.load(layer)) for layer in layers}
    for layer, mask in dead.items():
        logger.info("layer %d: %d of %d features are dead and set aside", layer, int(mask.sum()), len(mask))
    return dead


def _dead(evaluator: Evaluator, layer: int, sae: SparseAutoencoder) -> Bool[Tensor, " F"]:
    batch, sinks = evaluator.study.evaluation.batch_windows, evaluator.study.model.sink_positions
    facts = {"what": "dead", "streams": evaluator.streams.key, "layer": layer, "sinks": sinks}
    return evaluator.passes.per_feature(
        sae, facts, lambda: never_active(sae, evaluator.streams.layer(layer), batch, sinks)
    )


def evaluate_layer_pair(evaluator: Evaluator, matching: PairMatching) -> tuple[list[MetricRow], ActivationStatistics]:
    """All text metrics of one pair, and the activation counts behind its per-feature columns."""
    pair = evaluator.pair((matching.layer, matching.layer_to), matching.permutations)
    statistics = evaluator.activations(pair, bind_all(evaluator.splices, pair))
    return evaluator.rows(pair, statistics), statistics


def ceiling_rows(evaluator: Evaluator, layer: int) -> list[MetricRow]:
    """The same metrics for two seeds of one layer, where a second one exists: the ceiling of every score."""
    a, second = evaluator.saes.load(layer), evaluator.saes.load_ceiling(layer)
    if second is None:
        return []
    aside = evaluator.study.matching.dead_features is DeadFeatures.exclude
    excluded = [_dead(evaluator, layer, sae) if aside else None for sae in (a, second)]
    matching = cached_matching(
        evaluator.store,
        evaluator.study.matching,
        evaluator.solver,
        feature_pair(
            evaluator.study,
            a,
            second,
            (layer, layer),
            (excluded[0], excluded[1]),
            None if evaluator.fit is None else evaluator.fit.streams,
        ),
    )
    permutations = {CEILING: matching.permutation}
    pair = evaluator.pair_of(a, second, (layer, layer), permutations)
    statistics = evaluator.activations(pair, EncodePermuteDecode().by_variant(pair))
    rows = weight_rows(weight_distances_of(a, second, permutations), layer, layer, evaluator.metrics)
    return rows + evaluator.rows(pair, statistics)


def log_ceiling_gaps(rows: Sequence[MetricRow], metrics: Mapping[str, Metric] = BUILT_IN) -> None:
    """Log how far each pair is from what two seeds of one layer reach: the SAEs' own variance."""
    shown = {name for name, metric in metrics.items() if metric.about.headline}
    known = {(row.layer, row.layer_to, row.metric): row.value for row in rows if row.variant == CEILING}
    for row in rows:
        metric = row.metric.removesuffix(TO_CEILING)
        if metric != row.metric and metric in shown and row.estimate is not None:
            seeds = [
                f"{known[at, at, metric]:.3f} for two seeds of layer {at}"
                for at in (row.layer, row.layer_to)
                if (at, at, metric) in known
            ]
            logger.info(
                "layers %d -> %d: %s is %+.3f%s from %s",
                row.layer, row.layer_to, metric, row.value,
                "" if math.isnan(row.estimate.interval[0]) else " [{:+.3f}, {:+.3f}]".format(*row.estimate.interval),
                ", ".join(seeds),
            )  # fmt: skip


def layer_rows(evaluator: Evaluator, layer: int, statistics: ActivationStatistics, second: bool) -> list[MetricRow]:
    """Every metric of one layer (`LayerMetric`).

    Args:
        statistics: counts of a pair that contains the layer, as its second member if `second`.
    """
    counts = statistics.b if second else statistics.a
    sae = evaluator.saes.load(layer)
    norms = evaluator.streams.layer(layer)[:, evaluator.study.model.sink_positions :].norm(dim=-1)
    unfolded = sae.scale is not None and bool((sae.scale == 1).all())
    activity = LayerActivity(
        active=counts.active.cpu().numpy(),
        tokens=counts.tokens.cpu().numpy(),
        theta=None if unfolded else sae.theta.cpu().numpy(),
        decoder_norm=(sae.theta * sae.W_dec.norm(dim=1)).cpu().numpy(),
        residual_norm=norms.cpu().numpy(),
    )
    return [
        MetricRow(layer, layer, metric.reference, metric.name, *measured)
        for metric in evaluator.metrics.values()
        if isinstance(metric, LayerMetric) and (measured := metric.measure(activity, evaluator.bootstrap)) is not None
    ]
