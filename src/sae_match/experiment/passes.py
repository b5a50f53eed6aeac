"""Passes over a pair's tokens that are already made: committed one by one, and kept until the job is done.

A killed job finds those of the pairs before the one in hand. They hold counts per document and feature (tens of
megabytes a pair at the width of Gemma Scope), which over the jobs of a sweep would outgrow the residual streams: a job
that is done removes those it made (`Store.forget`), since its record holds all that follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sae_match.entries import Payload
from sae_match.evaluation.activations import (
    ActivationRequest,
    ActivationStatistics,
    compute_activations,
    from_arrays,
    to_arrays,
)
from sae_match.keys import tensor_digest
from sae_match.saes import SparseAutoencoder
from sae_match.store import Store

ACTIVATION_VERSION = 1
"""To be raised when the meaning of a stored count changes."""
KIND = "activations"


def activations(store: Store, request: ActivationRequest, facts: Mapping[str, object]) -> ActivationStatistics:
    """`compute_activations`, made once and then read.

    Args:
        facts: what a pass depends on beside its request: which residual streams of which layers.
    """
    return store.get_or(
        KIND,
        pass_key(request, facts),
        lambda: to_arrays(compute_activations(request)),
        lambda payload: from_arrays(payload, request),
    )


def per_feature(
    store: Store, sae: SparseAutoencoder, facts: Mapping[str, object], measure: Callable[[], Tensor]
) -> Tensor:
    """One number or truth value per feature of an SAE, measured once and then read; on the CPU.

    Args:
        facts: what is measured, on which residual streams and how.
    """

    def decode(payload: Payload) -> Tensor:
        if payload["values"].shape != (sae.width,):
            raise ValueError(f"it is not for {sae.width} features")
        return torch.from_numpy(payload["values"])

    key = {"version": ACTIVATION_VERSION, "sae": sae.content_hash, "device": sae.device.type, "facts": dict(facts)}
    return store.get_or(KIND, key, lambda: {"values": measure()}, decode)


def pass_key(request: ActivationRequest, facts: Mapping[str, object]) -> dict[str, object]:
    """Key of a pass: SAEs, matchings and splices in their order, and all other facts.

    `batch_windows` is not in it: SAEs compute in float32 whatever the model does, and sums are in float64.
    """
    return {
        "version": ACTIVATION_VERSION,
        "saes": [request.a.content_hash, request.b.content_hash],
        "permutations": [tensor_digest(found.indices) for found in request.permutations.values()],
        "splices": [splice.key() for splice in request.splices.values()],
        "device": request.a.device.type,
        "sink_positions": request.sink_positions,
        "facts": dict(facts),
    }
