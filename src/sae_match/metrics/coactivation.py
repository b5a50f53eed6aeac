"""How often matched features fire together (method section 5: matching_score and its relatives)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_match.metrics.bootstrap import Bootstrap, Estimate, Floats


class ActivationCounts:
    """On how many tokens each feature fires, per document: L0, dead features and the scores' denominators."""

    def __init__(self, n_documents: int, width: int, device: str | torch.device = "cpu") -> None:
        self.tokens = torch.zeros(n_documents, dtype=torch.int64, device=device)
        self.active = torch.zeros(n_documents, width, dtype=torch.int64, device=device)

    def update(self, active: Bool[Tensor, "windows tokens F"], document: Int[Tensor, " windows"]) -> None:
        """Add windows of tokens; `active` marks the features that fire."""
        self.tokens.index_add_(0, document, torch.full_like(document, active.shape[1]))
        self.active.index_add_(0, document, active.sum(dim=1))

    def l0(self, bootstrap: Bootstrap) -> Estimate:
        """Mean number of active features per token."""
        return bootstrap.ratio(_floats(self.active.sum(dim=1)), _floats(self.tokens))

    def dead(self) -> int:
        """Number of features that never fire on the counted tokens."""
        return int((self.active.sum(dim=0) == 0).sum())


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

    def matching_score(self, a: ActivationCounts, bootstrap: Bootstrap) -> Estimate:
        """P(partner fires | feature fires), pooled over features and tokens."""
        return bootstrap.ratio(_floats(self.together.sum(dim=1)), _floats(a.active.sum(dim=1)))

    def matching_iou(self, a: ActivationCounts, b: ActivationCounts, bootstrap: Bootstrap) -> Estimate:
        """Co-activations over activations of either partner, pooled over matched pairs."""
        matched = self.partners >= 0
        both = self.together[:, matched].sum(dim=1)
        either = a.active[:, matched].sum(dim=1) + b.active[:, self.partners[matched]].sum(dim=1) - both
        return bootstrap.ratio(_floats(both), _floats(either))

    def matching_score_per_feature(self, a: ActivationCounts, bootstrap: Bootstrap, min_count: int) -> Estimate:
        """The score of each feature, averaged over features that fire on at least `min_count` tokens.

        Which features count is decided on all documents, once; NaN where none does.
        """
        counted = a.active.sum(dim=0) >= min_count
        together, active = _floats(self.together[:, counted]), _floats(a.active[:, counted])
        return bootstrap.estimate(_mean_ratio, together, active)

    def per_feature(self, a: ActivationCounts) -> Floats:
        """[F_a] score of each feature on all documents; NaN where it never fires."""
        active = _floats(a.active.sum(dim=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(_floats(self.together.sum(dim=0)) / active)


def _mean_ratio(together: Floats, active: Floats) -> Floats:
    """Mean over features of together / active, leaving out features that a resample never activates."""
    fires = active > 0
    ratios = np.where(fires, together / np.where(fires, active, 1.0), 0.0)
    return np.asarray(ratios.sum(axis=-1) / fires.sum(axis=-1))


def _floats(counts: Tensor) -> Floats:
    return counts.cpu().numpy().astype(np.float64)
