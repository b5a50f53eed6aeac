"""How pre-activations become feature activations, as one small value object."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError


class ActivationKind(StrEnum):
    """Activation functions of the field.

    jumprelu: pre * (pre > threshold). A BatchTopK SAE at inference is one, with one threshold for all features.
    relu: the same with threshold 0.
    gated: with tied weights a gated SAE *is* a JumpReLU SAE (Rajamanoharan et al. 2024, "Improving Dictionary Learning
        with Gated SAEs"): its magnitude path is the encoder, and b_mag - exp(r_mag) * b_gate the threshold (0 where
        that is negative).
    topk: the k largest pre-activations of a token, where positive.
    batch_topk: a BatchTopK SAE whose threshold was never set; which features fire depends on the batch.
    """

    jumprelu = "jumprelu"
    relu = "relu"
    gated = "gated"
    topk = "topk"
    batch_topk = "batch_topk"


@dataclass(frozen=True)
class Activation:
    """The activation of an SAE beside its thresholds.

    Attributes:
        kind: see `ActivationKind`.
        k: active features per token (topk; the training target of batch_topk).
        stored_threshold: scalar threshold that a TopK checkpoint carries without using it; a possible folding scale.
        normalization: normalisation of the input that cannot be folded into the weights, or `none`.

    Raises:
        UserError: k missing or not positive for topk, or given for another kind; a stored threshold <= 0.
    """

    kind: ActivationKind = ActivationKind.jumprelu
    k: int | None = None
    stored_threshold: float | None = None
    normalization: str = "none"

    def __post_init__(self) -> None:
        ranked = self.kind in (ActivationKind.topk, ActivationKind.batch_topk)
        if (self.k is not None) != ranked or (self.k is not None and self.k < 1):
            raise UserError(f"activation {self.kind.value} with k={self.k}: topk needs a positive k, others have none")
        if self.stored_threshold is not None and not self.stored_threshold > 0:
            raise UserError(f"stored threshold {self.stored_threshold}: must be positive")

    @property
    def signature(self) -> str:
        """What enters the content hash beside the tensors; empty where the tensors say everything."""
        facts = []
        if self.k is not None:
            facts.append(f"{self.kind.value} k={self.k}")
        if self.normalization != "none":
            facts.append(f"normalization={self.normalization}")
        return " ".join(facts)

    @property
    def obstacle(self) -> str | None:
        """Why such an SAE cannot encode residual streams here, or None."""
        if self.normalization != "none":
            return (
                f"its inputs are normalised ({self.normalization}) by factors that are not in its weights "
                "(expected_average_only_in: give them with sae.norm_scaling_factors; others depend on each token)"
            )
        if self.kind is ActivationKind.batch_topk:
            return "it is a BatchTopK SAE without a threshold, so what fires depends on the batch"
        return None

    def __call__(self, pre: Float[Tensor, "*batch F"], threshold: Float[Tensor, " F"]) -> Float[Tensor, "*batch F"]:
        """Feature activations from pre-activations."""
        if self.kind is not ActivationKind.topk or self.k is None:
            return pre * (pre > threshold)
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())


JUMPRELU = Activation()
"""The default: JumpReLU with a threshold per feature."""
RELU = Activation(ActivationKind.relu)
GATED = Activation(ActivationKind.gated)
