"""What metrics are computed from, streamed over tokens: how often features fire, and sums of reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.metrics.bootstrap import DocumentSums, Floats, compress_rows
from sae_match.metrics.metric import PairCounts


class ActivationCounts:
    """On how many tokens each feature fires, per document."""

    def __init__(self, n_documents: int, width: int, device: str | torch.device = "cpu") -> None:
        self.tokens = torch.zeros(n_documents, dtype=torch.int64, device=device)
        self.active = torch.zeros(n_documents, width, dtype=torch.int64, device=device)

    def update(self, active: Bool[Tensor, "windows tokens F"], document: Int[Tensor, " windows"]) -> None:
        """Add windows of tokens; `active` marks the features that fire."""
        self.tokens.index_add_(0, document, torch.full_like(document, active.shape[1]))
        self.active.index_add_(0, document, active.sum(dim=1))


@dataclass
class CoactivationCounts:
    """Co-activations of A's features with their partners, per document.

    Attributes:
        partners: [F_a] index into B, -1 = unmatched (which never co-fires but stays in the denominator).
        together: [documents, F_a] tokens on which a feature and its partner both fire.
    """

    partners: Int[Tensor, " F_a"]
    together: Int[Tensor, "documents F_a"]

    @classmethod
    def empty(cls, n_documents: int, partners: Int[Tensor, " F_a"]) -> CoactivationCounts:
        """Counts of nothing yet, on the device of `partners`."""
        return cls(partners, torch.zeros(n_documents, len(partners), dtype=torch.int64, device=partners.device))

    def update(
        self,
        active_a: Bool[Tensor, "windows tokens F_a"],
        active_b: Bool[Tensor, "windows tokens F_b"],
        document: Int[Tensor, " windows"],
    ) -> None:
        """Add windows of tokens."""
        partner_active = active_b[..., self.partners.clamp(min=0)] & (self.partners >= 0)
        self.together.index_add_(0, document, (active_a & partner_active).sum(dim=1))

    def of_pair(self, a: ActivationCounts, b: ActivationCounts, min_count: int) -> PairCounts:
        """These counts with those of both SAEs, as a metric is given them."""
        return PairCounts(
            active_a=_numpy(a.active),
            active_b=_numpy(b.active),
            together=_numpy(self.together),
            partners=_numpy(self.partners),
            tokens=_numpy(a.tokens),
            min_count=min_count,
        )

    def per_feature(self, a: ActivationCounts) -> Floats:
        """[F_a] score of each feature on all documents; NaN where it never fires."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(_numpy(self.together.sum(dim=0)) / _numpy(a.active.sum(dim=0)))


class ReconstructionStatistics:
    """Per-document sums from which explained variance and r2 follow exactly.

    Equal to scikit-learn's `explained_variance_score` and `r2_score` with `multioutput="variance_weighted"`. Sums are
    float64, so one pass is accurate for residual streams.

    Args:
        n_documents: documents over which sums are kept apart, for the bootstrap.
        d_model: dimensions of the residual stream.
    """

    def __init__(self, n_documents: int, d_model: int, device: str | torch.device = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.count = zeros(n_documents)
        self.error, self.error_squared = zeros(n_documents, d_model), zeros(n_documents)
        self.target, self.target_squared = zeros(n_documents, d_model), zeros(n_documents)

    def update(
        self,
        target: Float[Tensor, "windows tokens d"],
        reconstruction: Float[Tensor, "windows tokens d"],
        document: Int[Tensor, " windows"],
    ) -> None:
        """Add windows of tokens; `document` says which document each window belongs to."""
        x = target.to(torch.float64)
        error = reconstruction.to(torch.float64) - x
        self.count.index_add_(0, document, torch.full_like(document, x.shape[1], dtype=torch.float64))
        self.error.index_add_(0, document, error.sum(dim=1))
        self.error_squared.index_add_(0, document, error.square().sum(dim=(1, 2)))
        self.target.index_add_(0, document, x.sum(dim=1))
        self.target_squared.index_add_(0, document, x.square().sum(dim=(1, 2)))

    def sums(self) -> DocumentSums:
        """The sums per document, vectors compressed."""
        count, error, error_squared, target, target_squared = (
            tensor.cpu().numpy()
            for tensor in (self.count, self.error, self.error_squared, self.target, self.target_squared)
        )
        return DocumentSums(error_squared, target_squared, count, compress_rows(error), compress_rows(target))


def _numpy(counts: Tensor) -> npt.NDArray[np.int64]:
    return np.asarray(counts.cpu().numpy())
