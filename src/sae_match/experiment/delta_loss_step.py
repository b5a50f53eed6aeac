"""Delta loss of every splice of every pair; token losses are shared between jobs through the cache."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from tqdm import tqdm

from sae_match.content import content_key
from sae_match.evaluation.pair import estimate_row
from sae_match.evaluation.rows import MetricRow
from sae_match.evaluation.splice_losses import original_losses, splice_losses
from sae_match.evaluation.splices import BoundSplice, bind_all
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_step import PairMatching
from sae_match.metrics.metric import LossMetric, SplicedLosses

logger = logging.getLogger(__name__)

KIND = "token_losses"
LOSS_VERSION = 1
"""To be raised when the meaning of a cached loss changes."""


def delta_loss_rows(evaluator: Evaluator, pairs: list[PairMatching]) -> dict[tuple[int, int], list[MetricRow]]:
    """delta_loss of every splice of every pair; losses are shared between jobs through the cache."""
    splices = sum(splice.count(len(pairs[0].permutations)) for splice in evaluator.splices)
    total = len(pairs) * splices + 1
    with tqdm(
        total=total * len(evaluator.splice_windows.ids), desc="splicing", unit="window", disable=not evaluator.progress
    ) as bar:
        original = _original(evaluator, bar)
        return {(pair.layer, pair.layer_to): _pair_delta_loss(evaluator, pair, original, bar) for pair in pairs}


def _original(evaluator: Evaluator, bar: tqdm) -> Tensor:
    """Losses of the unchanged model, resumed after the span's last layer."""
    last, ids = evaluator.saes.layers[-1], evaluator.splice_windows.ids
    key = _loss_key(evaluator, last, None)
    losses = _cached(evaluator, key)
    if losses is None:
        residual = evaluator.splice_residual(last)
        batch = evaluator.study.evaluation.batch_windows
        losses = original_losses(evaluator.model, last, residual, ids, batch, bar.update)
        evaluator.store.put(KIND, key, {"losses": losses})
    else:
        bar.update(len(ids))
    return losses


def _pair_delta_loss(evaluator: Evaluator, matching: PairMatching, original: Tensor, bar: tqdm) -> list[MetricRow]:
    layers = matching.layer, matching.layer_to
    pair = evaluator.pair(layers, matching.permutations)
    splices = bind_all(evaluator.splices, pair)
    facts = {name: _loss_key(evaluator, pair.layers[1], splice) for name, splice in splices.items()}
    keys = {name: content_key(key) for name, key in facts.items()}
    losses: dict[str, Tensor] = {}
    todo: dict[str, BoundSplice] = {}
    for name, key in keys.items():
        # Splices with equal keys are equal: computed once, in this job and in those that share its cache.
        found = None if key in losses or key in todo else _cached(evaluator, facts[name])
        if found is not None:
            losses[key] = found
        if key in losses or key in todo:
            bar.update(len(evaluator.splice_windows.ids))
        else:
            todo[key] = splices[name]
    if todo:
        computed = splice_losses(
            evaluator.model,
            pair.layers[1],
            (pair.a, pair.b),
            (evaluator.splice_residual(pair.layers[0]), evaluator.splice_residual(pair.layers[1])),
            evaluator.splice_windows.ids,
            todo,
            pair.batch_windows,
            pair.sink_positions,
            bar.update,
        )
        stored = {keys[name]: facts[name] for name in facts}
        for key, values in computed.items():
            evaluator.store.put(KIND, stored[key], {"losses": values})
        losses |= computed
    logger.info("layers %d -> %d: token losses of %d splices, %d of them computed", *layers, len(splices), len(todo))
    bootstrap, document = evaluator.splice_bootstrap, evaluator.splice_windows.document
    rows: list[MetricRow] = []
    for name, key in keys.items():
        spliced = SplicedLosses(losses[key].numpy(), original.numpy(), document.numpy(), pair.sink_positions)
        rows += [
            estimate_row(layers, name, metric.name, metric.estimate(spliced, bootstrap), bootstrap)
            for metric in evaluator.metrics.values()
            if isinstance(metric, LossMetric)
        ]
    return rows


def _loss_key(evaluator: Evaluator, layer: int, splice: BoundSplice | None) -> dict[str, object]:
    """Key of token losses.

    Args:
        layer: the block whose output is replaced.
        splice: None = by its own residual stream.
    """
    study = evaluator.study
    # In half precision even the batch changes the last bits, and delta loss is a difference of two such losses.
    batch = None if study.model.dtype == "float32" else study.evaluation.batch_windows
    return {
        "version": LOSS_VERSION,
        "splice": None if splice is None else splice.key(),
        "device": evaluator.model.device.type,
        "batch_windows": batch,
        "layer": layer,
        "model": evaluator.model.key,
        "dtype": study.model.dtype,
        "sink_positions": study.model.sink_positions,
        "windows": evaluator.splice_windows.key,
    }


def _cached(evaluator: Evaluator, key: dict[str, object]) -> Tensor | None:
    payload = evaluator.store.get(KIND, key)
    return None if payload is None else torch.from_numpy(payload["losses"])
