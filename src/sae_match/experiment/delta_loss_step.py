"""Delta loss of every splice of every pair; token losses are shared between jobs through the cache."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae_match.config.controls import Control, chosen
from sae_match.config.schema import FoldingScale, SpliceUnits
from sae_match.content import content_key
from sae_match.evaluation.linear_map import LINEAR_MAP
from sae_match.evaluation.pair import estimate_row
from sae_match.evaluation.quantile_splice import QUANTILE
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splice_losses import original_losses, splice_losses
from sae_match.evaluation.splices import ENCODE_PERMUTE_DECODE, Splice, splices_of_pair
from sae_match.experiment.controls_step import linear_map
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_step import PairMatching
from sae_match.metrics.delta_loss import delta_loss

logger = logging.getLogger(__name__)

THRESHOLDS = (FoldingScale.auto, FoldingScale.threshold)
"""Scales that follow from the SAE; any other enters the key of a splice in theta units."""
LOSS_VERSION = 1
"""To be raised when the meaning of a cached loss changes."""


def delta_loss_rows(evaluator: Evaluator, pairs: list[PairMatching]) -> dict[tuple[int, int], list[MetricRow]]:
    """delta_loss of every splice of every pair; losses are shared between jobs through the cache."""
    evaluation = evaluator.cfg.evaluation
    others = 3 + len(evaluation.quantiles) + (Control.linear_map in chosen(evaluation.controls))
    total = len(pairs) * (len(pairs[0].permutations) + others) + 1
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
        batch = evaluator.cfg.evaluation.batch_windows
        losses = original_losses(evaluator.model, last, residual, ids, batch, bar.update)
        evaluator.cache.put(key, {"losses": losses.numpy()})
    else:
        bar.update(len(ids))
    return losses


def _pair_delta_loss(evaluator: Evaluator, pair: PairMatching, original: Tensor, bar: tqdm) -> list[MetricRow]:
    a, b = evaluator.saes.load(pair.layer), evaluator.saes.load(pair.layer_to)
    splices = splices_of_pair(a, b, pair.permutations, evaluator.units, evaluator.cfg.evaluation.quantiles)
    splices |= linear_map(evaluator, pair)
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
    logger.info("layers %d -> %d: token losses of %d splices", pair.layer, pair.layer_to, len(splices))
    bootstrap, document = evaluator.splice_bootstrap, evaluator.splice_windows.document
    sinks, layers = evaluator.cfg.model.sink_positions, (pair.layer, pair.layer_to)
    estimates = {name: delta_loss(losses[name], original, document, bootstrap, sinks) for name in splices}
    return [estimate_row(layers, name, "delta_loss", estimate, bootstrap) for name, estimate in estimates.items()]


def _splice_key(evaluator: Evaluator, pair: PairMatching, name: str) -> str:
    """Content key of one splice: only what its value depends on, so that jobs share the baselines."""
    facts = evaluator.saes.facts
    layer_a, layer_b = facts[pair.layer].content_hash, facts[pair.layer_to].content_hash
    permuted, partly = name.startswith(ENCODE_PERMUTE_DECODE), name.startswith(QUANTILE)
    depends: dict[str, object] = {"layer_a": pair.layer}
    if permuted or partly:
        variant = name.removeprefix(ENCODE_PERMUTE_DECODE).removeprefix("_") if permuted else ""
        indices = pair.permutations[variant or "matched"].indices.tolist()
        depends |= {"sae_a": layer_a, "sae_b": layer_b, "indices": content_key(indices), "units": evaluator.units.value}
        # The pairs that a quantile splice carries are chosen in folded units, whatever travels along them.
        needs_theta = partly or evaluator.units is SpliceUnits.theta
        if needs_theta and evaluator.cfg.folding.scale not in THRESHOLDS:
            saes = [evaluator.saes.load(layer) for layer in (pair.layer, pair.layer_to)]
            depends["theta"] = content_key([sae.theta.tolist() for sae in saes])
    elif name == LINEAR_MAP and evaluator.fit is not None:
        depends |= {"fit": evaluator.fit.windows.key}
    elif name == "encode_decode_current":
        depends = {"sae_b": layer_b}
    elif name == "encode_decode_previous":
        depends |= {"sae_a": layer_a}
    return _loss_key(evaluator, ENCODE_PERMUTE_DECODE if permuted else name, pair.layer_to, depends)


def _loss_key(evaluator: Evaluator, kind: str, layer: int, depends: dict[str, object]) -> str:
    cfg = evaluator.cfg
    # In half precision even the batch changes the last bits, and delta loss is a difference of two such losses.
    batch = None if cfg.model.dtype == "float32" else cfg.evaluation.batch_windows
    return content_key(
        {
            "version": LOSS_VERSION,
            "device": evaluator.model.device.type,
            "batch_windows": batch,
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
