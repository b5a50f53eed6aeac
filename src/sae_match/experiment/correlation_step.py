"""The control `correlation`: the matching of highest activation correlation, on text that is not evaluated."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.correlation import activation_correlations
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_cache import FOLDER, alone, tensor_digest
from sae_match.language_model import ResidualStreams
from sae_match.matching import Permutation
from sae_match.matching.by_similarity import SimilarityMatching, match_by_similarity
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

CORRELATION_VERSION = 2
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
    if found is not None:
        return found
    with alone(cache.directory / f"{key}.lock"):
        found = _read(cache, key, a.width, b.width)  # another process may have solved it while this one waited
        if found is None:
            found = _solve(evaluator, streams, layers, a, b, excluded)
            indices = found.permutation.indices.numpy()
            if found.gap == 0:  # one that was cut short by today's memory need not be the next job's
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
    sides = [
        (sae, streams.layer(layer), _kept(sae, gone)) for sae, layer, gone in zip((a, b), layers, excluded, strict=True)
    ]
    # The narrower side in front: the matrix is then made the way round in which it is matched, and never copied.
    turned = len(sides[0][2]) > len(sides[1][2])
    (first, x_first, kept_first), (second, x_second, kept_second) = reversed(sides) if turned else sides
    similarity = activation_correlations(
        first,
        second,
        x_first,
        x_second,
        cfg.evaluation.batch_windows,
        cfg.model.sink_positions,
        kept_first if len(kept_first) < first.width else None,
        kept_second if len(kept_second) < second.width else None,
    ).cpu()
    part = match_by_similarity(similarity, memory_limit_gib=cfg.solver.memory_limit_gib)
    whole = part.permutation.embedded(kept_first, kept_second, first.width, second.width)
    return part._replace(permutation=Permutation(whole.inverse().indices, b.width) if turned else whole)


def _kept(sae: SparseAutoencoder, gone: Bool[Tensor, " F"] | None) -> Int[Tensor, " K"]:
    """Features that are matched."""
    return torch.arange(sae.width) if gone is None else (~gone.cpu()).nonzero().flatten()


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
