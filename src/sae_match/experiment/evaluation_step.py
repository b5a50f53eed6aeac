"""The full evaluation: residual streams of real text, co-activations, reconstructions and delta loss per pair."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae_match.config.schema import Config, SpliceUnits
from sae_match.evaluation.activations import ActivationStatistics
from sae_match.evaluation.pair import estimate_row, evaluate_pair
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splice_losses import original_losses, splice_losses
from sae_match.evaluation.splices import Splice, resolve_units, splices_of_pair
from sae_match.experiment.matching_step import PairMatching, match_configured, weight_rows
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.matching.solution import Solver
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.delta_loss import delta_loss
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key
from sae_match.text import TokenWindows, load_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Everything that the evaluation of a pair shares with the other pairs.

    Attributes:
        windows: all evaluation windows; residual streams and activation metrics cover these.
        splice_rows: marks the windows on which token losses are computed.
        splice_windows: those windows.
    """

    cfg: Config
    saes: SpanSaes
    solver: Solver
    model: LanguageModel
    windows: TokenWindows
    splice_rows: Tensor
    splice_windows: TokenWindows
    streams: ResidualStreams
    cache: ResultCache
    bootstrap: Bootstrap
    splice_bootstrap: Bootstrap
    progress: bool

    @property
    def units(self) -> SpliceUnits:
        """Units in which activations travel, resolved."""
        return resolve_units(self.cfg.evaluation.splice_units, self.cfg.folding.name)

    def splice_residual(self, layer: int) -> Tensor:
        """resid_post of one layer on the splice windows; the memory-mapped whole where those are all windows."""
        residual = self.streams.layer(layer)
        return residual if bool(self.splice_rows.all()) else residual[self.splice_rows]


def prepare(cfg: Config, saes: SpanSaes, solver: Solver, device: str, progress: bool) -> Evaluator:
    """Load model and text, and capture the span's residual streams (or find them in the cache)."""
    cache_dir = Path(cfg.paths.cache_dir)
    model = load_language_model(cfg.model, device, cache_dir)
    saes.check_model(model.d_model, model.name)
    windows = load_windows(cfg.dataset, model.tokenizer, cache_dir, cfg.model.bos)
    splice_rows = windows.leading(cfg.evaluation.splice_documents, cfg.evaluation.splice_windows_per_document)
    splice_windows = windows.subset(splice_rows)
    streams = capture(model, windows, saes.layers, cache_dir, cfg.evaluation.batch_windows, progress)
    samples, seed = cfg.evaluation.bootstrap_samples, cfg.seed
    return Evaluator(
        cfg=cfg,
        saes=saes,
        solver=solver,
        model=model,
        windows=windows,
        splice_rows=splice_rows,
        splice_windows=splice_windows,
        streams=streams,
        cache=ResultCache(cache_dir / "splice_losses"),
        bootstrap=Bootstrap(windows.n_documents, samples, seed),
        splice_bootstrap=Bootstrap(splice_windows.n_documents, samples, seed),
        progress=progress,
    )


def evaluate_span(evaluator: Evaluator, pair: PairMatching) -> tuple[list[MetricRow], ActivationStatistics]:
    """All text metrics of one pair, and the activation counts behind its per-feature columns."""
    a, b = evaluator.saes.load(pair.layer), evaluator.saes.load(pair.layer_to)
    evaluation = evaluate_pair(
        a,
        b,
        pair.permutations,
        evaluator.streams.layer(pair.layer),
        evaluator.streams.layer(pair.layer_to),
        evaluator.windows.document,
        units=evaluator.units,
        layers=(pair.layer, pair.layer_to),
        min_count=evaluator.cfg.evaluation.min_count,
        bootstrap=evaluator.bootstrap,
        batch_windows=evaluator.cfg.evaluation.batch_windows,
        sink_positions=evaluator.cfg.model.sink_positions,
    )
    weight_metrics = {row.metric for row in pair.rows}
    rows = [row for row in evaluation.rows if row.metric not in weight_metrics]
    return rows, evaluation.statistics


def ceiling_rows(evaluator: Evaluator, layer: int) -> list[MetricRow]:
    """The same metrics for two seeds of one layer, where a second one exists: the ceiling of every score."""
    a, second = evaluator.saes.load(layer), evaluator.saes.load_ceiling(layer)
    if second is None:
        return []
    permutation = match_configured(evaluator.cfg, a, second, evaluator.solver).permutation
    x = evaluator.streams.layer(layer)
    evaluation = evaluate_pair(
        a,
        second,
        {"ceiling": permutation},
        x,
        x,
        evaluator.windows.document,
        units=evaluator.units,
        layers=(layer, layer),
        min_count=evaluator.cfg.evaluation.min_count,
        bootstrap=evaluator.bootstrap,
        batch_windows=evaluator.cfg.evaluation.batch_windows,
        sink_positions=evaluator.cfg.model.sink_positions,
    )
    return [row for row in evaluation.rows if row.variant == "ceiling"]


def layer_rows(evaluator: Evaluator, layer: int, statistics: ActivationStatistics, second: bool) -> list[MetricRow]:
    """L0, dead features, mean threshold and median residual norm of one layer.

    Args:
        statistics: counts of a pair that contains the layer, as its second member if `second`.
    """
    counts = statistics.b if second else statistics.a
    facts = evaluator.saes.facts[layer]
    norms = evaluator.streams.layer(layer)[:, evaluator.cfg.model.sink_positions :].norm(dim=-1)
    n = norms.numel()
    return [
        estimate_row((layer, layer), "sae", "l0", counts.l0(evaluator.bootstrap), evaluator.bootstrap),
        MetricRow(layer, layer, "sae", "dead_features", counts.dead(), facts.width),
        MetricRow(layer, layer, "sae", "mean_threshold", facts.mean_threshold, facts.width),
        MetricRow(layer, layer, "model", "median_residual_norm", float(norms.median()), n),
    ]


def delta_loss_rows(evaluator: Evaluator, pairs: list[PairMatching]) -> dict[tuple[int, int], list[MetricRow]]:
    """delta_loss of every splice of every pair; losses are shared between jobs through the cache."""
    total = len(pairs) * (len(pairs[0].permutations) + 3) + 1
    with tqdm(
        total=total * len(evaluator.splice_windows.ids), desc="splicing", unit="window", disable=not evaluator.progress
    ) as bar:
        original = _original(evaluator, bar)
        return {(pair.layer, pair.layer_to): _pair_delta_loss(evaluator, pair, original, bar) for pair in pairs}


def _original(evaluator: Evaluator, bar: tqdm) -> Tensor:
    """Losses of the unchanged model, resumed after the span's last layer."""
    last, ids = evaluator.saes.layers[-1], evaluator.splice_windows.ids
    key = _loss_key(evaluator, "original", last, {})
    losses = _cached(evaluator, key)
    if losses is None:
        residual = evaluator.splice_residual(last)
        losses = original_losses(evaluator.model, last, residual, ids, evaluator.cfg.evaluation.batch_windows, bar.update)
        evaluator.cache.put(key, {"losses": losses.numpy()})
    else:
        bar.update(len(ids))
    return losses


def _pair_delta_loss(evaluator: Evaluator, pair: PairMatching, original: Tensor, bar: tqdm) -> list[MetricRow]:
    a, b = evaluator.saes.load(pair.layer), evaluator.saes.load(pair.layer_to)
    splices = splices_of_pair(a, b, pair.permutations, evaluator.units)
    keys = {name: _splice_key(evaluator, pair, name) for name in splices}
    losses: dict[str, Tensor] = {}
    for name, key in keys.items():
        found = _cached(evaluator, key)
        if found is not None:
            losses[name] = found
            bar.update(len(evaluator.splice_windows.ids))
    todo: dict[str, Splice] = {name: splice for name, splice in splices.items() if name not in losses}
    if todo:
        computed = splice_losses(
            evaluator.model,
            pair.layer_to,
            (a, b),
            (evaluator.splice_residual(pair.layer), evaluator.splice_residual(pair.layer_to)),
            evaluator.splice_windows.ids,
            todo,
            evaluator.cfg.evaluation.batch_windows,
            evaluator.cfg.model.sink_positions,
            bar.update,
        )
        for name, values in computed.items():
            evaluator.cache.put(keys[name], {"losses": values.numpy()})
        losses |= computed
    bootstrap, document = evaluator.splice_bootstrap, evaluator.splice_windows.document
    sinks, layers = evaluator.cfg.model.sink_positions, (pair.layer, pair.layer_to)
    estimates = {name: delta_loss(losses[name], original, document, bootstrap, sinks) for name in splices}
    return [estimate_row(layers, name, "delta_loss", estimate, bootstrap) for name, estimate in estimates.items()]


def _splice_key(evaluator: Evaluator, pair: PairMatching, name: str) -> str:
    """Content key of one splice: only what its value depends on, so that jobs share the baselines."""
    facts = evaluator.saes.facts
    layer_a, layer_b = facts[pair.layer].content_hash, facts[pair.layer_to].content_hash
    variant = name.removeprefix("encode_permute_decode").removeprefix("_") or "matched"
    depends: dict[str, object] = {"layer_a": pair.layer}
    if name.startswith("encode_permute_decode"):
        indices = pair.permutations[variant].indices.tolist()
        depends |= {"sae_a": layer_a, "sae_b": layer_b, "indices": content_key(indices), "units": evaluator.units.value}
    elif name == "encode_decode_current":
        depends = {"sae_b": layer_b}
    elif name == "encode_decode_previous":
        depends |= {"sae_a": layer_a}
    kind = "encode_permute_decode" if name.startswith("encode_permute_decode") else name
    return _loss_key(evaluator, kind, pair.layer_to, depends)


def _loss_key(evaluator: Evaluator, kind: str, layer: int, depends: dict[str, object]) -> str:
    return content_key(
        {
            "kind": kind,
            "layer": layer,
            "model": evaluator.model.key,
            "dtype": evaluator.cfg.model.dtype,
            "sink_positions": evaluator.cfg.model.sink_positions,
            "windows": evaluator.splice_windows.key,
            **depends,
        }
    )


def _cached(evaluator: Evaluator, key: str) -> Tensor | None:
    payload = evaluator.cache.get(key)
    if payload is None or not isinstance(payload.get("losses"), np.ndarray):
        return None
    return torch.from_numpy(payload["losses"])
