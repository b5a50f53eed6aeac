"""Co-activation, sparsity and reconstruction metrics of one layer pair, streamed over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import PairActivations, Splice
from sae_match.matching import Permutation
from sae_match.metrics.coactivation import ActivationCounts, CoactivationCounts
from sae_match.metrics.reconstruction import ReconstructionStatistics
from sae_match.saes import SparseAutoencoder
from sae_match.saes.header import refuse_encoding


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


class Collector(Protocol):
    """`collect_activations`, or what answers in its place."""

    def __call__(
        self,
        a: SparseAutoencoder,
        b: SparseAutoencoder,
        x_a: Float[Tensor, "windows tokens d"],
        x_b: Float[Tensor, "windows tokens d"],
        document: Int[Tensor, " windows"],
        permutations: dict[str, Permutation],
        splices: dict[str, Splice],
        batch_windows: int = 8,
        sink_positions: int = 1,
    ) -> ActivationStatistics:
        """One pass over the tokens of a pair."""


def collect_activations(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    x_a: Float[Tensor, "windows tokens d"],
    x_b: Float[Tensor, "windows tokens d"],
    document: Int[Tensor, " windows"],
    permutations: dict[str, Permutation],
    splices: dict[str, Splice],
    batch_windows: int = 8,
    sink_positions: int = 1,
) -> ActivationStatistics:
    """One pass over the tokens of a pair; the sink positions of every window are left out.

    Args:
        a, b: SAEs of layers t and t+1, on the device on which to compute.
        x_a, x_b: resid_post of the two layers on the same tokens; memory-mapped CPU tensors are fine.
        document: 0-based document of each window.
        permutations: matchings A -> B by variant.
        splices: reconstructions of x_b by name.
        sink_positions: positions at each window's start that are not counted (1 = position 0).

    Raises:
        UserError: residuals of different shapes or of another width than the SAEs, or SAEs of another site than
            resid_post, or that only match.
    """
    _check_residuals(a, b, x_a, x_b, document, sink_positions)
    x_a, x_b = x_a[:, sink_positions:], x_b[:, sink_positions:]
    n_documents, device = int(document.max()) + 1, a.device
    statistics = ActivationStatistics(
        a=ActivationCounts(n_documents, a.width, device),
        b=ActivationCounts(n_documents, b.width, device),
        together={v: CoactivationCounts.empty(n_documents, p.indices.to(device)) for v, p in permutations.items()},
        reconstruction={name: ReconstructionStatistics(n_documents, b.d_model, device) for name in splices},
    )
    for start in range(0, len(document), batch_windows):
        rows = slice(start, start + batch_windows)
        _update(statistics, a, b, x_a[rows].to(device), x_b[rows].to(device), document[rows].to(device), splices)
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
    splices: dict[str, Splice],
) -> None:
    pair = PairActivations(x_a=x_a, x_b=x_b, f_a=a.encode(x_a), f_b=b.encode(x_b))
    active_a, active_b = pair.f_a > 0, pair.f_b > 0
    statistics.a.update(active_a, document)
    statistics.b.update(active_b, document)
    for counts in statistics.together.values():
        counts.update(active_a, active_b, document)
    for name, splice in splices.items():
        statistics.reconstruction[name].update(x_b, splice(pair), document)


def _check_residuals(
    a: SparseAutoencoder, b: SparseAutoencoder, x_a: Tensor, x_b: Tensor, document: Tensor, sink_positions: int
) -> None:
    if x_a.shape != x_b.shape or x_a.ndim != 3 or len(document) != len(x_a):
        raise UserError(
            f"residuals must be [windows, tokens, d] on the same tokens: got {tuple(x_a.shape)} and "
            f"{tuple(x_b.shape)} with {len(document)} document indices"
        )
    if x_a.shape[1] <= sink_positions:
        raise UserError(f"windows of {x_a.shape[1]} tokens are too short: the first {sink_positions} are never counted")
    for sae, x in ((a, x_a), (b, x_b)):
        refuse_encoding(sae.source, sae.site, sae.match_only)
        if sae.d_model != x.shape[2]:
            raise UserError(f"{sae.source} reads d_model={sae.d_model}, but the residual stream has {x.shape[2]}")
