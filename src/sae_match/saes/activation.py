"""What an SAE computes from its tensors: activations, and exact rewritings of other parametrizations into the canonical
one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.arrays import Array, as_tensor
from sae_match.errors import UserError
from sae_match.options import parse


class ActivationKind(StrEnum):
    """Activation functions of the field.

    jumprelu: pre * (pre > threshold). A BatchTopK SAE at inference is one, with one threshold for all features.
    relu: the same with threshold 0.
    gated: with tied weights a gated SAE *is* a JumpReLU SAE (`canonical_tensors`).
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
        normalization: normalization of the input that cannot be folded into the weights, or `none`.

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
        """What enters the content hash beside the tensors; empty where the tensors determine everything."""
        facts = [] if self.k is None else [f"{self.kind.value} k={self.k}"]
        return " ".join(facts + ([] if self.normalization == "none" else [f"normalization={self.normalization}"]))

    @property
    def obstacle(self) -> str | None:
        """Why such an SAE cannot encode residual streams here, or None."""
        if self.normalization != "none":
            return (
                f"its inputs are normalized ({self.normalization}) by factors that are not in its weights "
                "(expected_average_only_in: give them with sae.norm_scaling_factors, or as Convention.normalization; "
                "others depend on each token)"
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

_CANONICAL_NAMES = {
    "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec",
    "bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag",
    "encoder_linear.weight": "W_enc", "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec", "decoder_linear.bias": "b_dec",
}  # fmt: skip
"""Names of torch's Linear layers (Goodfire calls them encoder_linear) and of dictionary_learning's gated class."""
_TRANSPOSED = ("encoder.weight", "decoder.weight", "encoder_linear.weight", "decoder_linear.weight")
"""torch's Linear layers store [out, in]."""
_TENSORS = {
    ActivationKind.jumprelu: ({"b_enc", "threshold"}, {"b_enc", "log_threshold"}),
    ActivationKind.gated: ({"b_gate", "b_mag", "r_mag"},),
}
"""What a state dict holds beside W_enc, W_dec and b_dec; of the other kinds, b_enc."""


def canonical_name(name: str) -> str:
    """The canonical name of a stored tensor."""
    return _CANONICAL_NAMES.get(name, name)


def tensor_names(stored: Iterable[str], kind: ActivationKind) -> set[str]:
    """Canonical names of the tensors that an SAE of this kind has, in the one of its forms that is nearest to these."""
    found = {canonical_name(name) for name in stored}
    choices = [{"W_enc", "W_dec", "b_dec", *more} for more in _TENSORS.get(kind, ({"b_enc"},))]
    return min(choices, key=lambda names: len(names ^ found))


def check_names(stored: Iterable[str], kind: ActivationKind, source: object) -> None:
    """Refuse a state dict with other tensors than an SAE of this kind has."""
    found, wanted = {canonical_name(name) for name in stored}, tensor_names(stored, kind)
    if missing_or_unknown := wanted ^ found:
        missing, unknown = (sorted(missing_or_unknown & side) for side in (wanted, found))
        raise UserError(
            f"{source}: a {kind.value} SAE has the tensors {', '.join(sorted(wanted))}; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. Another activation, or tensors "
            "that are not part of the SAE?"
        )


def as_float32(source: object, name: str, tensor: object) -> Tensor:
    """A floating-point tensor or array in float32, detached; anything else is refused, naming source and tensor."""
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f":
        tensor = as_tensor(tensor)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{source}: {name} must be a floating-point tensor, got {what}")
    return tensor.detach().to(torch.float32)


def canonical_tensors(
    stored: Mapping[str, Tensor], subtracts_b_dec: bool, rescales_by_decoder_norm: bool = False, *, source: object
) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and threshold (float32) that compute what the stored tensors' owner computes.

    - An input bias goes into the encoder's: (x - b_dec) @ W_enc + b = x @ W_enc + (b - b_dec @ W_enc).
    - Decoder norms that multiply pre-activations before they are ranked go into the encoder and out of the decoder.
    - A gated SAE with tied weights fires where x @ W_enc + b_gate > 0, with relu(x @ (W_enc * e^r_mag) + b_mag).
      Multiplied by e^r_mag, the gate reads: where the magnitude exceeds b_mag - e^r_mag * b_gate. That is the
      threshold; where it is negative, the relu acts at 0 instead (Rajamanoharan et al. 2024, "Improving Dictionary
      Learning with Gated SAEs").
    - `log_threshold` is exponentiated, one threshold for all features is repeated, and none at all is 0.

    Args:
        stored: W_enc, W_dec and b_dec by canonical names or by those of torch's Linear layers, with b_enc, or with
            b_gate, b_mag and r_mag; `threshold` or `log_threshold` where there is one. Shapes are as they should be.
        subtracts_b_dec: whether b_dec is subtracted from the input.
        source: for the message about something else than a floating-point tensor.
    """
    tensors = {}
    for name, tensor in stored.items():
        value = as_float32(source, name, tensor)
        # Contiguous: strides decide the order of sums below, and one SAE must have one hash from wherever it is read.
        tensors[canonical_name(name)] = (value.T if name in _TRANSPOSED else value).contiguous()
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    b_enc, threshold = tensors.get("b_enc"), tensors.get("threshold", W_enc.new_zeros(1))
    if "log_threshold" in tensors:
        threshold = tensors["log_threshold"].exp()
    if rescales_by_decoder_norm and b_enc is not None:
        norms = W_dec.norm(dim=1).clamp(min=1e-8)  # as SAELens clamps them
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    shift = b_dec @ W_enc if subtracts_b_dec else W_enc.new_zeros(1)
    if b_enc is None:
        gain = tensors["r_mag"].exp()
        b_gate, b_enc = tensors["b_gate"] - shift, tensors["b_mag"] - shift * gain
        W_enc, threshold = W_enc * gain, (b_enc - gain * b_gate).clamp(min=0)
    else:
        b_enc = b_enc - shift
    if threshold.numel() == 1:
        threshold = threshold.expand(W_enc.shape[-1])
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}


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
        stored_threshold: see `Activation`.

    Raises:
        UserError: an unknown activation or normalization, a factor that is not positive, a `topk` without its k or its
            `rescales_by_decoder_norm`.
    """

    activation: ActivationKind | str
    subtracts_b_dec: bool
    normalization: str | float
    k: int | None = None
    rescales_by_decoder_norm: bool | None = None
    stored_threshold: float | None = None

    def __post_init__(self) -> None:
        parse(ActivationKind, self.activation, "activation")
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
        return Activation(ActivationKind(self.activation), self.k, self.stored_threshold, named)

    def canonical(self, state_dict: Mapping[str, Float[Array, "..."]], source: object) -> dict[str, Any]:
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
