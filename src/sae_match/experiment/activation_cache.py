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

from sae_match.content import content_key
from sae_match.evaluation.activations import ActivationStatistics, Collector, PairPass, collect_activations
from sae_match.evaluation.stored_activations import from_arrays, to_arrays
from sae_match.experiment.matching_cache import tensor_digest
from sae_match.saes import SparseAutoencoder
from sae_match.store import ResultCache

logger = logging.getLogger(__name__)

ACTIVATION_VERSION = 1
"""To be raised when the meaning of a stored count, or of a splice's name, changes."""
FOLDER = "activations"


class ActivationCache:
    """The passes of one job.

    Args:
        cache_dir: the cache that jobs share.
        owner: what names the job, the same in each of its attempts.
    """

    def __init__(self, cache_dir: Path, owner: str, read: bool = True) -> None:
        self._cache, self._owner = ResultCache(cache_dir / FOLDER, read), owner
        self._own: set[str] = set()

    def collector(self, **facts: object) -> Collector:
        """`collect_activations`, made once and then read.

        Args:
            facts: what a pass depends on beside its own arguments: which residual streams, in which units activations
                travel, and whatever else decides what a splice of a given name does.
        """

        def collect(asked: PairPass) -> ActivationStatistics:
            key = pass_key(asked, facts)
            found = self._read(key, asked)
            if found is None:
                found = collect_activations(asked)
                self._put(key, to_arrays(found))
                logger.debug("activations committed (%s)", key[:12])
            else:
                logger.info("activations found in the cache (%s)", key[:12])
            return found

        return collect

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

    def _read(self, key: str, asked: PairPass) -> ActivationStatistics | None:
        payload = self._get(key)
        if payload is None:
            return None
        try:
            return from_arrays(payload, asked)
        except ValueError as error:
            logger.warning("cached activations %s are damaged and will be collected anew: %s", key[:12], error)
            return None


def pass_key(asked: PairPass, facts: Mapping[str, object]) -> str:
    """Content key of a pass: SAEs with what plays theta for them, matchings, splices by name, and all other facts."""
    saes = asked.a, asked.b
    return content_key(
        {
            "version": ACTIVATION_VERSION,
            "saes": [sae.content_hash for sae in saes],
            "theta": [tensor_digest(sae.theta) for sae in saes],
            "permutations": {name: tensor_digest(p.indices) for name, p in asked.permutations.items()},
            "order": [list(asked.permutations), list(asked.splices)],
            "device": asked.a.device.type,
            "batch_windows": asked.batch_windows,
            "sink_positions": asked.sink_positions,
            "facts": dict(facts),
        }
    )
