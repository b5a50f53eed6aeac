"""Explained variance, r2 and FVU of a reconstruction, streamed over tokens in one pass (method section 5)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.metrics.bootstrap import Bootstrap, Estimate, Floats
from sae_match.metrics.document_sums import DocumentSums, rotated, spread


class ReconstructionStatistics:
    """Per-document sums from which explained variance and r2 follow exactly.

        explained_variance = 1 - sum_d Var(x_hat_d - x_d) / sum_d Var(x_d)          (variances over tokens)
        r2 = 1 - fvu       = 1 - sum ||x_hat - x||^2 / sum ||x - mean(x)||^2

    Equal to scikit-learn's `explained_variance_score` and `r2_score` with
    `multioutput="variance_weighted"`. Sums are float64, so one pass is accurate for residual streams.

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

    def explained_variance(self, bootstrap: Bootstrap) -> Estimate:
        """1 - Var(x_hat - x) / Var(x); 1 for a reconstruction that is right up to a constant."""
        n, e, e2, x, x2 = self._arrays(
            self.count, self.error, self.error_squared, self.target, self.target_squared
        )  # fmt: skip
        found = bootstrap.estimate(lambda n, e, e2, x, x2: 1 - spread(n, e, e2) / spread(n, x, x2), n, e, e2, x, x2)
        return replace(found, sums=DocumentSums(e2, x2, n, rotated(e), rotated(x)))

    def r2(self, bootstrap: Bootstrap) -> Estimate:
        """1 - squared error / squared deviation from the mean; fvu is one minus this."""
        return bootstrap.estimate(
            lambda n, e2, x, x2: 1 - e2[..., 0] / spread(n, x, x2),
            *self._arrays(self.count, self.error_squared, self.target, self.target_squared),
        )

    def _arrays(self, *tensors: Tensor) -> list[Floats]:
        return [t.cpu().numpy() for t in tensors]
