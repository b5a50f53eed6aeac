"""What a state dict does not say of the SAE that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_match.arrays import Array
from sae_match.errors import UserError
from sae_match.saes.activation import (
    Activation,
    ActivationKind,
    as_float32,
    canonical_name,
    canonical_tensors,
    check_names,
)

NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
"""SAELens' names for what is done to an input."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What an SAE computes from its tensors, where the tensors do not tell.

    Attributes:
        activation: `jumprelu`, `relu`, `gated`, `topk` or `batch_topk`. A BatchTopK SAE with its threshold is a
            `jumprelu` one; without, it only matches.
        subtracts_b_dec: whether b_dec is subtracted from the input (SAELens: `cfg.apply_b_dec_to_input`).
        normalization: `none`; the one number that multiplies every input, which is folded into the weights; or another
            of `NORMALIZATIONS` (SAELens: `cfg.normalize_activations`), with which the SAE only matches.
        k: active features per token of a `topk` or `batch_topk`.
        rescales_by_decoder_norm: whether a `topk` multiplies its pre-activations by the decoder norms before it ranks
            them (SAELens: `cfg.rescale_acts_by_decoder_norm`; sparsify, dictionary_learning: no).

    Raises:
        UserError: an unknown activation or normalization, a factor that is not positive, a `topk` without its k or its
            `rescales_by_decoder_norm`.
    """

    activation: ActivationKind | str
    subtracts_b_dec: bool
    normalization: str | float
    k: int | None = None
    rescales_by_decoder_norm: bool | None = None

    def __post_init__(self) -> None:
        if self.activation not in tuple(ActivationKind):
            raise UserError(f"activation={self.activation}: must be one of {', '.join(ActivationKind)}")
        named = isinstance(self.normalization, str)
        if self.normalization not in NORMALIZATIONS if named else not float(self.normalization) > 0:
            raise UserError(
                f"normalization={self.normalization}: must be one of {', '.join(NORMALIZATIONS)}, or the positive "
                "number that multiplies every input"
            )
        if self.activation == ActivationKind.topk and self.rescales_by_decoder_norm is None:
            raise UserError(
                "rescales_by_decoder_norm=True or False must say whether this TopK ranks pre-activations times decoder "
                "norms (SAELens: cfg.rescale_acts_by_decoder_norm; sparsify, dictionary_learning: no)"
            )
        _ = self.how  # refuses a k that is missing or has no meaning

    @property
    def how(self) -> Activation:
        """How pre-activations become activations."""
        named = self.normalization if isinstance(self.normalization, str) else "none"
        return Activation(ActivationKind(self.activation), k=self.k, normalization=named)

    def canonical(self, state_dict: Mapping[str, Float[Array, "..."]], source: str) -> dict[str, Any]:
        """The five canonical tensors that compute the same (`canonical_tensors`).

        Raises:
            UserError: missing or unknown tensors, or something else than floating-point ones.
        """
        check_names(state_dict, ActivationKind(self.activation), source)
        stored: dict[str, Tensor] = {name: as_float32(source, name, values) for name, values in state_dict.items()}
        if not isinstance(self.normalization, str):
            # (x s - b_dec) W_enc = (x - b_dec / s) s W_enc, and what is decoded is divided by s.
            powers = {"W_enc": 1, "W_dec": -1, "b_dec": -1}
            stored = {
                name: values * self.normalization ** powers.get(canonical_name(name), 0)
                for name, values in stored.items()
            }
        return canonical_tensors(stored, self.subtracts_b_dec, bool(self.rescales_by_decoder_norm), source=source)
