"""Exact rewritings of other parametrisations into pre = x @ W_enc + b_enc, f = pre * (pre > threshold)."""

from __future__ import annotations

from torch import Tensor


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
