"""Co-activation, sparsity and reconstruction metrics of one layer pair, streamed over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import BoundSplice, PairActivations, first_equals
from sae_match.matching import Permutation
from sae_match.metrics.streaming import ActivationCounts, CoactivationCounts, ReconstructionStatistics
from sae_match.saes import SparseAutoencoder
from sae_match.saes.site import refuse_encoding


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
    x_a: Float[Tensor, "windows tokens d"]
    x_b: Float[Tensor, "windows tokens d"]
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
        if x_a.shape != x_b.shape or x_a.ndim != 3 or len(self.document) != len(x_a):
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


ComputeActivations = Callable[[ActivationRequest], ActivationStatistics]
"""`compute_activations`, or what answers in its place."""


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


@torch.no_grad()
def never_active(
    sae: SparseAutoencoder, x: Float[Tensor, "windows tokens d"], batch_windows: int = 8, sink_positions: int = 1
) -> Bool[Tensor, " F"]:
    """Which features fire on no token of these windows, sink positions left out; on the CPU."""
    fired = torch.zeros(sae.width, dtype=torch.bool, device=sae.device)
    for part in x[:, sink_positions:].split(batch_windows):
        fired |= (sae.encode(part.to(sae.device)) > 0).any(dim=(0, 1))
    return ~fired.cpu()


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
