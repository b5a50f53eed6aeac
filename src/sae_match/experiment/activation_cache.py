"""Passes over a pair's tokens that are already made: committed one by one, and kept until the job is done.

A killed job finds those of the pairs before the one in hand. They hold counts per document and feature (tens of
megabytes a pair at the width of Gemma Scope), which over the jobs of a sweep would outgrow the residual streams: a job
that is done removes those it used, since its record says all that follows from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_match.evaluation.activations import (
    ActivationRequest,
    ActivationStatistics,
    ComputeActivations,
    compute_activations,
)
from sae_match.evaluation.stored_activations import from_arrays, to_arrays
from sae_match.keys import tensor_digest
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key
from sae_match.saes import SparseAutoencoder

logger = logging.getLogger(__name__)

ACTIVATION_VERSION = 1
"""To be raised when the meaning of a stored count changes."""
FOLDER = "activations"


class ActivationCache:
    """The passes of one job.

    Args:
        cache_dir: the cache that jobs share.
        owner: what names the job, the same in each of its attempts.
    """

    def __init__(self, cache_dir: Path, owner: str) -> None:
        self._cache, self._owner = ResultCache(cache_dir / FOLDER), owner
        self._own: set[str] = set()

    def computing(self, **facts: object) -> ComputeActivations:
        """`compute_activations`, made once and then read.

        Args:
            facts: what a pass depends on beside its request: which residual streams of which layers.
        """

        def compute(request: ActivationRequest) -> ActivationStatistics:
            key = pass_key(request, facts)
            found = self._read(key, request)
            if found is None:
                found = compute_activations(request)
                self._put(key, to_arrays(found))
                logger.debug("activations committed (%s)", key[:12])
            else:
                logger.info("activations found in the cache (%s)", key[:12])
            return found

        return compute

    def per_feature(self, sae: SparseAutoencoder, facts: Mapping[str, object], measure: Callable[[], Tensor]) -> Tensor:
        """One number or truth value per feature of an SAE, measured once and then read.

        Args:
            facts: what is measured, on which residual streams and how.
        """
        key = content_key(
            {"version": ACTIVATION_VERSION, "sae": sae.content_hash, "device": sae.device.type, "facts": dict(facts)}
        )
        stored = (self._get(key) or {}).get("values")
        if isinstance(stored, np.ndarray) and stored.shape == (sae.width,):
            return torch.from_numpy(stored)
        values = measure().cpu()
        self._put(key, {"values": values.numpy()})
        return values

    def forget(self) -> None:
        """Remove the entries that this job has made, in whichever attempt: to be called when its record is complete.

        Those of other jobs that it has found stay with their makers, who may be killed yet.
        """
        for key in self._own:
            try:
                self._cache.remove(key)
            except OSError as error:  # somebody reads it, on a system where that holds a file
                logger.debug("%s stays: %s", self._cache.path(key), error)
        self._own.clear()

    def _put(self, key: str, payload: Mapping[str, object]) -> None:
        self._cache.put(key, {**payload, "owner": self._owner})
        self._own.add(key)

    def _get(self, key: str) -> Mapping[str, object] | None:
        payload = self._cache.get(key)
        if payload is not None and payload.get("owner") == self._owner:
            self._own.add(key)
        return payload

    def _read(self, key: str, request: ActivationRequest) -> ActivationStatistics | None:
        payload = self._get(key)
        if payload is None:
            return None
        try:
            return from_arrays(payload, request)
        except ValueError as error:
            logger.warning("cached activations %s are damaged and will be collected anew: %s", key[:12], error)
            return None


def pass_key(request: ActivationRequest, facts: Mapping[str, object]) -> str:
    """Content key of a pass: SAEs, matchings and splices in their order, and all other facts.

    `batch_windows` is not in it: SAEs compute in float32 whatever the model does, and sums are in float64.
    """
    return content_key(
        {
            "version": ACTIVATION_VERSION,
            "saes": [request.a.content_hash, request.b.content_hash],
            "permutations": [tensor_digest(found.indices) for found in request.permutations.values()],
            "splices": [splice.key() for splice in request.splices.values()],
            "device": request.a.device.type,
            "sink_positions": request.sink_positions,
            "facts": dict(facts),
        }
    )
