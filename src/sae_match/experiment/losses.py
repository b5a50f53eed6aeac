"""Token losses of every splice of neighbors, as rows; losses are shared between jobs through the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from sae_match.content import content_key
from sae_match.evaluation.splice_losses import original_losses, splice_losses
from sae_match.evaluation.splices import BoundSplice
from sae_match.experiment.evaluation import Evaluator
from sae_match.experiment.matching import MatchedPair
from sae_match.experiment.saes import JobSaes
from sae_match.metrics.metric import MetricRow, SplicedLosses, metric_rows
from sae_match.pairs import Site

logger = logging.getLogger(__name__)

KIND = "token_losses"
LOSS_VERSION = 1
"""To be raised when the meaning of a cached loss changes."""


def loss_rows(evaluator: Evaluator, saes: JobSaes, pairs: Sequence[MatchedPair], progress: bool) -> list[MetricRow]:
    """Every metric of the losses of every splice of every pair."""
    splices = sum(splice.count(len(pairs[0].permutations)) for splice in evaluator.splices)
    windows = len(evaluator.splice_windows.ids)
    rows: list[MetricRow] = []
    with tqdm(total=(len(pairs) * splices + 1) * windows, desc="splicing", unit="window", disable=not progress) as bar:
        last = {evaluator.inputs.stream(pair.pair.b).key: pair.pair.b for pair in pairs}  # of every model
        originals: dict[str, Tensor] = {}
        for pair in pairs:
            model = evaluator.inputs.stream(pair.pair.b).key
            if model not in originals:
                originals[model] = _original(evaluator, last[model], bar)
            rows += _pair_rows(evaluator, saes, pair, originals[model], bar)
    return rows


def _original(evaluator: Evaluator, site: Site, bar: tqdm) -> Tensor:
    """Losses of the unchanged model, resumed after the last layer."""
    ids = evaluator.splice_windows.ids
    key = _loss_key(evaluator, site, None)
    losses = _known(evaluator, key)
    if losses is not None:
        bar.update(len(ids))
        return losses
    residual, model = evaluator.splice_residual(site), evaluator.inputs.models.of(site.source)
    losses = original_losses(model, site.at, residual, ids, evaluator.inputs.batch_windows, bar.update)
    evaluator.store.put(KIND, key, {"losses": losses})
    return losses


def _pair_rows(
    evaluator: Evaluator, saes: JobSaes, matched: MatchedPair, original: Tensor, bar: tqdm
) -> list[MetricRow]:
    sites, windows = (matched.pair.a, matched.pair.b), evaluator.splice_windows
    pair = evaluator.splice_pair(matched, *saes.pair(matched.pair))
    splices = evaluator.bind(matched.pair.role, pair)
    # Splices with equal keys are equal: computed once, in this job and in those that share its store.
    keys = {name: _loss_key(evaluator, sites[1], splice) for name, splice in splices.items()}
    hashes = {name: content_key(key) for name, key in keys.items()}
    facts = {hashes[name]: key for name, key in keys.items()}
    losses = {one: found for one, key in facts.items() if (found := _known(evaluator, key)) is not None}
    todo = {hashes[name]: splice for name, splice in splices.items() if hashes[name] not in losses}
    bar.update(len(windows.ids) * (len(splices) - len(todo)))
    if todo:
        residuals = evaluator.splice_residual(sites[0]), evaluator.splice_residual(sites[1])
        computed = splice_losses(
            evaluator.inputs.models.of(sites[1].source), sites[1].at, (pair.a, pair.b), residuals, windows.ids, todo,
            pair.batch_windows, pair.sink_positions, bar.update,
        )  # fmt: skip
        for one, values in computed.items():
            evaluator.store.put(KIND, facts[one], {"losses": values})
        losses |= computed
    logger.info("%s: token losses of %d splices, %d of them computed", matched.pair, len(splices), len(todo))
    rows: list[MetricRow] = []
    for name, one in hashes.items():
        spliced = SplicedLosses(losses[one].numpy(), original.numpy(), windows.document.numpy(), pair.sink_positions)
        rows += metric_rows(evaluator.metrics, spliced, evaluator.splice_bootstrap, matched.pair.layers, name)
    return rows


def _loss_key(evaluator: Evaluator, site: Site, splice: BoundSplice | None) -> dict[str, object]:
    """Key of token losses.

    Args:
        site: whose layer's output is replaced.
        splice: None = by its own residual stream.
    """
    model = evaluator.inputs.models.of(site.source)
    # In half precision even the batch changes the last bits, and delta loss is a difference of two such losses.
    dtype = str(model.hf.dtype).removeprefix("torch.")
    batch = None if dtype == "float32" else evaluator.inputs.batch_windows
    return {
        "version": LOSS_VERSION,
        "splice": None if splice is None else splice.key(),
        "device": model.device.type,
        "batch_windows": batch,
        "layer": site.at,
        "model": model.key,
        "dtype": dtype,
        "sink_positions": evaluator.inputs.sink_positions,
        "windows": evaluator.splice_windows.key,
    }


def _known(evaluator: Evaluator, key: dict[str, object]) -> Tensor | None:
    payload = evaluator.store.get(KIND, key)
    return None if payload is None else torch.from_numpy(payload["losses"])
