"""What one pass over a pair's tokens collected, as plain arrays and back, without losing a bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_match.evaluation.activations import ActivationRequest, ActivationStatistics
from sae_match.metrics.streaming import ActivationCounts, CoactivationCounts, ReconstructionStatistics

Arrays = dict[str, npt.NDArray[np.generic]]


def to_arrays(statistics: ActivationStatistics) -> Arrays:
    """The counts and sums by name; counts in the narrowest type that holds them.

    Variants and splices are numbered in their order: `from_arrays` is told their names. All splices have one target,
    which is there once, unless sums that were added up in another order (as accelerators may) differ in a bit.
    """
    arrays: Arrays = {
        "tokens": _narrow(statistics.a.tokens),
        "active_a": _narrow(statistics.a.active),
        "active_b": _narrow(statistics.b.active),
    }
    for i, counts in enumerate(statistics.together.values()):
        arrays[f"together_{i}"] = _narrow(counts.together)
    for i, sums in enumerate(statistics.reconstruction.values()):
        arrays[f"error_{i}"], arrays[f"error_squared_{i}"] = _numpy(sums.error), _numpy(sums.error_squared)
        for name, values in (("target", sums.target), ("target_squared", sums.target_squared)):
            if i == 0 or not np.array_equal(arrays[f"{name}_0"], _numpy(values)):
                arrays[f"{name}_{i}"] = _numpy(values)
    return arrays


def from_arrays(arrays: Mapping[str, object], request: ActivationRequest) -> ActivationStatistics:
    """What `to_arrays` was given.

    Args:
        request: what was computed.

    Raises:
        ValueError: an array is missing, or of another shape or kind.
    """
    documents, device = request.n_documents, request.a.device
    f_a, f_b, d = request.a.width, request.b.width, request.b.d_model

    def counts(name: str, *wanted: int) -> Tensor:
        return _tensor(arrays, name, "ui", wanted).to(device, torch.int64)

    def target(name: str, i: int, *wanted: int) -> Tensor:
        own = f"{name}_{i}"
        return _tensor(arrays, own if own in arrays else f"{name}_0", "f", wanted).to(device)

    tokens = counts("tokens", documents)
    a, b = ActivationCounts(documents, f_a, device), ActivationCounts(documents, f_b, device)
    a.tokens, a.active = tokens, counts("active_a", documents, f_a)
    b.tokens, b.active = tokens.clone(), counts("active_b", documents, f_b)
    together = {
        variant: CoactivationCounts(permutation.indices.to(device), counts(f"together_{i}", documents, f_a))
        for i, (variant, permutation) in enumerate(request.permutations.items())
    }
    reconstruction: dict[str, ReconstructionStatistics] = {}
    for i, name in enumerate(request.splices):
        found = ReconstructionStatistics(documents, d, device)
        found.count = tokens.to(torch.float64)
        found.error = _tensor(arrays, f"error_{i}", "f", (documents, d)).to(device)
        found.error_squared = _tensor(arrays, f"error_squared_{i}", "f", (documents,)).to(device)
        found.target, found.target_squared = target("target", i, documents, d), target("target_squared", i, documents)
        reconstruction[name] = found
    return ActivationStatistics(a, b, together, reconstruction)


def _numpy(values: Tensor) -> npt.NDArray[np.generic]:
    return np.asarray(values.cpu().numpy())


def _narrow(counts: Tensor) -> npt.NDArray[np.generic]:
    largest = int(counts.max()) if counts.numel() else 0
    return _numpy(counts).astype(np.min_scalar_type(largest))


def _tensor(arrays: Mapping[str, object], name: str, kinds: str, shape: tuple[int, ...]) -> Tensor:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.shape != shape:
        raise ValueError(f"{name} is not what such a pass collects")
    if array.dtype.kind == "f" and array.dtype.itemsize != 8:
        raise ValueError(f"{name} is not in float64")
    # torch knows few operations on unsigned integers: widened here, exactly.
    return torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.int64))
