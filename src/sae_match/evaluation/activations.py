"""Co-activation, sparsity and reconstruction metrics of one layer pair, streamed over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import PairActivations, Splice
from sae_match.matching import Permutation
from sae_match.metrics.streaming import ActivationCounts, CoactivationCounts, ReconstructionStatistics
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


@dataclass(frozen=True)
class PairPass:
    """What one pass over the tokens of a layer pair is about.

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
    splices: Mapping[str, Splice]
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


Collector = Callable[[PairPass], ActivationStatistics]
"""`collect_activations`, or what answers in its place."""


def collect_activations(asked: PairPass) -> ActivationStatistics:
    """Make a pass over the tokens of a pair; the sink positions of every window are left out.

    Raises:
        UserError: from `PairPass.check`.
    """
    asked.check()
    a, b, n, device = asked.a, asked.b, asked.n_documents, asked.a.device
    matchings = {variant: permutation.indices.to(device) for variant, permutation in asked.permutations.items()}
    statistics = ActivationStatistics(
        a=ActivationCounts(n, a.width, device),
        b=ActivationCounts(n, b.width, device),
        together={variant: CoactivationCounts.empty(n, indices) for variant, indices in matchings.items()},
        reconstruction={name: ReconstructionStatistics(n, b.d_model, device) for name in asked.splices},
    )
    for start in range(0, len(asked.document), asked.batch_windows):
        rows = slice(start, start + asked.batch_windows)
        x_a, x_b = (x[rows, asked.sink_positions :].to(device) for x in (asked.x_a, asked.x_b))
        _update(statistics, a, b, x_a, x_b, asked.document[rows].to(device), asked.splices)
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
    splices: Mapping[str, Splice],
) -> None:
    pair = PairActivations(x_a=x_a, x_b=x_b, f_a=a.encode(x_a), f_b=b.encode(x_b))
    active_a, active_b = pair.f_a > 0, pair.f_b > 0
    statistics.a.update(active_a, document)
    statistics.b.update(active_b, document)
    for counts in statistics.together.values():
        counts.update(active_a, active_b, document)
    for name, splice in splices.items():
        statistics.reconstruction[name].update(x_b, splice(pair), document)
