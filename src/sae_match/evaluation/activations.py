"""One pass over the tokens of a layer pair: co-activations and sums of reconstructions, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import BoundSplice, PairActivations, first_equals
from sae_match.matching import Permutation
from sae_match.metrics.streaming import ActivationCounts, CoactivationCounts, ReconstructionStatistics
from sae_match.saes import SparseAutoencoder
from sae_match.saes.site import refuse_encoding

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass
class ActivationStatistics:
    """Everything that one pass over the tokens of a layer pair collects.

    Attributes:
        a, b: activation counts of the two SAEs.
        together: co-activation counts by permutation variant.
        reconstruction: statistics of each splice as a reconstruction of x_b.
    """

    a: ActivationCounts
    b: ActivationCounts
    together: dict[str, CoactivationCounts]
    reconstruction: dict[str, ReconstructionStatistics]


@dataclass(frozen=True)
class ActivationRequest:
    """What one pass over the tokens of a layer pair counts and sums up.

    Attributes:
        a, b: SAEs of layers t and t+1, on the device on which to compute.
        x_a, x_b: resid_post of the two layers on the same tokens; memory-mapped CPU tensors are fine.
        document: 0-based document of each window.
        permutations: matchings A -> B by variant.
        splices: reconstructions of x_b by name.
        sink_positions: positions at each window's start that are not counted (1 = position 0).
    """

    a: SparseAutoencoder
    b: SparseAutoencoder
    x_a: Float[Tensor, "windows tokens d_a"]
    x_b: Float[Tensor, "windows tokens d_b"]
    document: Int[Tensor, " windows"]
    permutations: Mapping[str, Permutation]
    splices: Mapping[str, BoundSplice]
    batch_windows: int = 8
    sink_positions: int = 1

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.document.max()) + 1

    def check(self) -> None:
        """Refuse what cannot be passed over.

        Raises:
            UserError: residuals of different shapes or of another width than the SAEs, windows that are too short, or
                SAEs of another site than resid_post, or that only match.
        """
        x_a, x_b = self.x_a, self.x_b
        if x_a.shape[:2] != x_b.shape[:2] or x_a.ndim != 3 or len(self.document) != len(x_a):
            raise UserError(
                f"residuals must be [windows, tokens, d] on the same tokens: got {tuple(x_a.shape)} and "
                f"{tuple(x_b.shape)} with {len(self.document)} document indices"
            )
        if x_a.shape[1] <= self.sink_positions:
            raise UserError(
                f"windows of {x_a.shape[1]} tokens are too short: the first {self.sink_positions} are never counted"
            )
        for sae, x in ((self.a, x_a), (self.b, x_b)):
            refuse_encoding(sae.source, sae.site, sae.match_only)
            if sae.d_model != x.shape[2]:
                raise UserError(f"{sae.source} reads d_model={sae.d_model}, but the residual stream has {x.shape[2]}")


def compute_activations(request: ActivationRequest) -> ActivationStatistics:
    """Make a pass over the tokens of a pair; the sink positions of every window are left out.

    Splices with equal keys are computed once and share their sums.

    Raises:
        UserError: from `ActivationRequest.check`.
    """
    request.check()
    a, b, n, device = request.a, request.b, request.n_documents, request.a.device
    matchings = {variant: permutation.indices.to(device) for variant, permutation in request.permutations.items()}
    firsts = first_equals(request.splices)
    sums = {name: ReconstructionStatistics(n, b.d_model, device) for name in dict.fromkeys(firsts.values())}
    statistics = ActivationStatistics(
        a=ActivationCounts(n, a.width, device),
        b=ActivationCounts(n, b.width, device),
        together={variant: CoactivationCounts.empty(n, indices) for variant, indices in matchings.items()},
        reconstruction={name: sums[first] for name, first in firsts.items()},
    )
    distinct = {name: request.splices[name] for name in sums}
    for start in range(0, len(request.document), request.batch_windows):
        rows = slice(start, start + request.batch_windows)
        x_a, x_b = (x[rows, request.sink_positions :].to(device) for x in (request.x_a, request.x_b))
        _update(statistics, a, b, x_a, x_b, request.document[rows].to(device), distinct)
    return statistics


def never_active(
    sae: SparseAutoencoder, x: Float[Tensor, "windows tokens d"], batch_windows: int = 8, sink_positions: int = 1
) -> Bool[Tensor, " F"]:
    """Which features fire on no token of these windows, sink positions left out; on the CPU."""
    return firing_counts(sae, x, batch_windows, sink_positions) == 0


@torch.no_grad()
def firing_counts(
    sae: SparseAutoencoder, x: Float[Tensor, "windows tokens d"], batch_windows: int = 8, sink_positions: int = 1
) -> Int[Tensor, " F"]:
    """On how many tokens of these windows each feature fires, sink positions left out; on the CPU."""
    counts = torch.zeros(sae.width, dtype=torch.int64, device=sae.device)
    for part in x[:, sink_positions:].split(batch_windows):
        counts += (sae.encode(part.to(sae.device)) > 0).sum(dim=(0, 1))
    return counts.cpu()


@torch.no_grad()
def _update(
    statistics: ActivationStatistics,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    x_a: Tensor,
    x_b: Tensor,
    document: Tensor,
    splices: Mapping[str, BoundSplice],
) -> None:
    pair = PairActivations(x_a=x_a, x_b=x_b, f_a=a.encode(x_a), f_b=b.encode(x_b))
    active_a, active_b = pair.f_a > 0, pair.f_b > 0
    statistics.a.update(active_a, document)
    statistics.b.update(active_b, document)
    for counts in statistics.together.values():
        counts.update(active_a, active_b, document)
    for name, splice in splices.items():
        statistics.reconstruction[name].update(x_b, splice(pair), document)


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
