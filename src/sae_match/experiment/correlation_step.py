"""The control `correlation`: the matching of highest activation correlation, on text that is not evaluated."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_match.entries import Payload
from sae_match.evaluation.correlation import activation_correlations
from sae_match.experiment.evaluation_step import Evaluator
from sae_match.experiment.matching_cache import KIND, check_indices, finite, tensor_digest
from sae_match.language_model import ResidualStreams
from sae_match.matching import Permutation
from sae_match.matching.by_similarity import SimilarityMatching, match_by_similarity
from sae_match.saes import SparseAutoencoder

CORRELATION_VERSION = 2
"""To be raised when the correlations, or what is done with them, change their results."""

Excluded = tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None]


def match_by_correlation(
    evaluator: Evaluator, layers: tuple[int, int], a: SparseAutoencoder, b: SparseAutoencoder, excluded: Excluded
) -> SimilarityMatching:
    """The matching of two layers from the store, or solved and then committed: it takes two passes over the text.

    Args:
        excluded: features of either side to leave unmatched.
    """
    streams, cfg = fit_streams(evaluator), evaluator.cfg
    key = {
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
    return evaluator.store.get_or(
        KIND,
        key,
        lambda: _encode(_solve(evaluator, streams, layers, a, b, excluded)),
        lambda payload: _decode(payload, a.width, b.width),
        # One that was cut short by today's memory need not be the next job's.
        keep=lambda payload: payload["gap"] == 0,
    )


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


def _encode(matching: SimilarityMatching) -> Payload:
    permutation = matching.permutation
    return {
        "indices": permutation.indices,
        "width_b": permutation.n_b,
        "mean": float(matching.mean),
        "gap": float(matching.gap),
    }


def _decode(payload: Payload, width_a: int, width_b: int) -> SimilarityMatching:
    check_indices(payload["indices"], payload["width_b"], width_a, width_b)
    permutation = Permutation(torch.from_numpy(payload["indices"]), width_b)
    return SimilarityMatching(permutation, finite(payload["mean"]), finite(payload["gap"]))
