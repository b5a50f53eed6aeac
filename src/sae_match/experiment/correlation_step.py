"""The control `correlation`: the matching of highest activation correlation, on text that is not evaluated."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.correlation import activation_correlations
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_cache import FOLDER, tensor_digest
from sae_match.language_model import ResidualStreams
from sae_match.matching import Permutation
from sae_match.matching.by_similarity import SimilarityMatching, match_by_similarity
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

CORRELATION_VERSION = 1
"""To be raised when the correlations, or what is done with them, change their results."""

Excluded = tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None]


def match_by_correlation(
    evaluator: Evaluator, layers: tuple[int, int], a: SparseAutoencoder, b: SparseAutoencoder, excluded: Excluded
) -> SimilarityMatching:
    """The matching of two layers from the cache, or solved and then committed: it takes two passes over the text.

    Args:
        excluded: features of either side to leave unmatched.
    """
    streams, cfg = fit_streams(evaluator), evaluator.cfg
    cache = ResultCache(Path(cfg.paths.cache_dir) / FOLDER)
    key = content_key(
        {
            "version": CORRELATION_VERSION,
            "kind": "correlation",
            "streams": streams.key,
            "layers": layers,
            "saes": [a.content_hash, b.content_hash],
            "excluded": [None if mask is None else tensor_digest(mask) for mask in excluded],
            "batch_windows": cfg.evaluation.batch_windows,
            "sink_positions": cfg.model.sink_positions,
            "device": a.device.type,
        }
    )
    found = _read(cache, key, a.width, b.width)
    if found is None:
        found = _solve(evaluator, streams, layers, a, b, excluded)
        indices = found.permutation.indices.numpy()
        cache.put(key, {"indices": indices, "width_b": b.width, "mean": found.mean, "gap": found.gap})
    return found


def fit_streams(evaluator: Evaluator) -> ResidualStreams:
    """Residual streams of the text on which controls are fitted.

    Raises:
        RuntimeError: no such text was prepared.
    """
    if evaluator.fit is None:
        raise RuntimeError("a control needs text to be fitted on, and none was prepared")
    return evaluator.fit.streams


def _solve(
    evaluator: Evaluator,
    streams: ResidualStreams,
    layers: tuple[int, int],
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    excluded: Excluded,
) -> SimilarityMatching:
    cfg = evaluator.cfg
    x_a, x_b = (streams.layer(layer) for layer in layers)
    similarity = activation_correlations(a, b, x_a, x_b, cfg.evaluation.batch_windows, cfg.model.sink_positions).cpu()
    if all(mask is None for mask in excluded):
        return match_by_similarity(similarity)
    kept_a, kept_b = (
        torch.arange(n) if gone is None else (~gone).nonzero().flatten()
        for n, gone in zip(similarity.shape, excluded, strict=True)
    )
    part = match_by_similarity(similarity[kept_a][:, kept_b])
    whole: Permutation = part.permutation.embedded(kept_a, kept_b, *similarity.shape)
    return part._replace(permutation=whole)


def _read(cache: ResultCache, key: str, width_a: int, width_b: int) -> SimilarityMatching | None:
    payload = cache.get(key)
    if payload is None:
        return None
    try:
        indices, mean, gap = payload["indices"], payload["mean"], payload["gap"]
        if not isinstance(indices, np.ndarray) or indices.shape != (width_a,) or payload["width_b"] != width_b:
            raise ValueError(f"it is not for {width_a} and {width_b} features")
        if not isinstance(mean, float) or not isinstance(gap, float):
            raise ValueError("mean or gap is no number")
        found = SimilarityMatching(Permutation(torch.from_numpy(indices), width_b), mean, gap)
    except (KeyError, TypeError, ValueError, UserError) as error:
        logger.warning("cached matching %s is damaged and will be solved anew: %s", cache.path(key), error)
        return None
    logger.info("matching by correlation found in the cache (%s)", key[:12])
    return found
