"""Exact rewritings of other parametrizations into pre = x @ W_enc + b_enc, f = pre * (pre > threshold)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes.activation import ActivationKind

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec",
           "decoder.bias": "b_dec"}  # fmt: skip
"""Names of torch's Linear layers, which store [out, in]."""
_TRANSPOSED = ("encoder.weight", "decoder.weight")
_OPTIONAL = {
    ActivationKind.jumprelu: ({"b_enc", "threshold"}, {"b_enc", "log_threshold"}),
    ActivationKind.gated: ({"b_gate", "b_mag", "r_mag"},),
}


def subtract_input_bias(tensors: dict[str, Tensor]) -> None:
    """Fold an input bias into the encoder's, in place: (x - b_dec) @ W_enc + b = x @ W_enc + (b - b_dec @ W_enc).

    Args:
        tensors: W_enc [d, F], b_dec [d], and b_enc [F], or b_gate, b_mag and r_mag [F] of a gated SAE.
    """
    shift = tensors["b_dec"] @ tensors["W_enc"]
    if "b_gate" in tensors:
        tensors["b_gate"] = tensors["b_gate"] - shift
        tensors["b_mag"] = tensors["b_mag"] - shift * tensors["r_mag"].exp()
    else:
        tensors["b_enc"] = tensors["b_enc"] - shift


def canonical_gated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gated SAE with tied weights as the JumpReLU SAE that it is (Rajamanoharan et al. 2024, on gated SAEs).

    It fires where x @ W_enc + b_gate > 0, with relu(x @ (W_enc * e^r_mag) + b_mag). Multiplied by e^r_mag, the gate
    says: where the magnitude exceeds b_mag - e^r_mag * b_gate. That is the threshold; where it is negative, the relu
    acts at 0 instead.

    Args:
        tensors: W_enc [d, F], W_dec [F, d], b_dec [d], and b_gate, b_mag, r_mag [F].
    """
    gain = tensors["r_mag"].exp()
    return {
        "W_enc": tensors["W_enc"] * gain,
        "b_enc": tensors["b_mag"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "threshold": (tensors["b_mag"] - gain * tensors["b_gate"]).clamp(min=0),
    }


def canonical_tensors(
    state_dict: Mapping[str, Tensor],
    kind: ActivationKind,
    *,
    subtracts_b_dec: bool,
    rescales_by_decoder_norm: bool | None,
    source: str,
) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and threshold (float32) that compute what the state dict's owner computes.

    Raises:
        UserError: missing or unknown names, other values than tensors, or a TopK of which it is not said whether
            activations are multiplied by decoder norms.
    """
    if kind is ActivationKind.topk and rescales_by_decoder_norm is None:
        raise UserError(
            f"{source}: say with rescales_by_decoder_norm=True or False whether this TopK ranks its pre-activations "
            "multiplied by decoder norms (SAELens: cfg.rescale_acts_by_decoder_norm; sparsify, dictionary_learning: no)"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{source}: {name} must be a tensor, got {type(tensor).__name__}")
        value = tensor.detach().to(torch.float32)
        tensors[_LINEAR.get(name, name)] = value.T if name in _TRANSPOSED else value
    _check_names(set(tensors), kind, source)
    if rescales_by_decoder_norm:
        norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-8)  # as SAELens clamps them
        tensors |= {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms}
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if subtracts_b_dec:
        subtract_input_bias(tensors)
    if kind is ActivationKind.gated:
        return canonical_gated(tensors)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    width = tensors["W_enc"].shape[-1]
    threshold = tensors.get("threshold", tensors["b_enc"].new_zeros(width))
    return tensors | {"threshold": threshold.expand(width) if threshold.numel() == 1 else threshold}


def _check_names(found: set[str], kind: ActivationKind, source: str) -> None:
    choices = [{"W_enc", "W_dec", "b_dec", *more} for more in _OPTIONAL.get(kind, ({"b_enc"},))]
    if found in choices:
        return
    wanted = min(choices, key=lambda names: len(names ^ found))
    missing, unknown = sorted(wanted - found), sorted(found - wanted)
    raise UserError(
        f"{source}: a {kind.value} SAE has the tensors {', '.join(sorted(wanted))}; missing: "
        f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. Another activation, or tensors that "
        "are not part of the SAE?"
    )
