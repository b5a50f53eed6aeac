"""The canonical JumpReLU sparse autoencoder that every checkpoint dialect is read into."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_match.errors import UserError

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
"""Canonical parameter names, in storage and hashing order."""


def first_indices(mask: Bool[Tensor, " n"], limit: int = 10) -> str:
    """The indices where `mask` is true, at most `limit` of them, for error messages."""
    found = mask.nonzero().flatten().tolist()
    more = f", ... ({len(found)} in all)" if len(found) > limit else ""
    return ", ".join(str(i) for i in found[:limit]) + more


class SparseAutoencoder:
    """A JumpReLU SAE with `width` features over a residual stream of `d_model` dimensions.

        pre = x @ W_enc + b_enc;   f = pre * (pre > threshold);   x_hat = f @ W_dec + b_dec

    (method section 1; the paper's Eqs. 1-2.) Parameters are float32 and treated as constants; inputs of any
    floating dtype and any batch shape are computed in float32.

    Args:
        W_enc: encoder, [d, F].
        b_enc: encoder bias, [F].
        W_dec: decoder, [F, d].
        b_dec: decoder bias, [d].
        threshold: JumpReLU threshold of each feature in activation units, [F].
        source: where the parameters came from; named in errors and provenance.

    Raises:
        UserError: if shapes disagree, a tensor is not floating point, or a value is NaN or infinite.
    """

    def __init__(
        self,
        *,
        W_enc: Float[Tensor, "d F"],
        b_enc: Float[Tensor, " F"],
        W_dec: Float[Tensor, "F d"],
        b_dec: Float[Tensor, " d"],
        threshold: Float[Tensor, " F"],
        source: str = "memory",
    ) -> None:
        given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
        _check_tensors(given, source)
        self.source = source
        as_float32 = {name: t.detach().to(torch.float32).contiguous() for name, t in given.items()}
        self.W_enc: Float[Tensor, "d F"] = as_float32["W_enc"]
        self.b_enc: Float[Tensor, " F"] = as_float32["b_enc"]
        self.W_dec: Float[Tensor, "F d"] = as_float32["W_dec"]
        self.b_dec: Float[Tensor, " d"] = as_float32["b_dec"]
        self.threshold: Float[Tensor, " F"] = as_float32["threshold"]

    @property
    def d_model(self) -> int:
        """Dimensions of the residual stream, d."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of features, F."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        """Device that holds the parameters."""
        return self.W_enc.device

    def parameters(self) -> dict[str, Tensor]:
        """The five parameter tensors by canonical name."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def to(self, device: str | torch.device) -> SparseAutoencoder:
        """This SAE with its parameters on `device` (itself, if they are there already)."""
        if torch.device(device) == self.device:
            return self
        return SparseAutoencoder(**{n: t.to(device) for n, t in self.parameters().items()}, source=self.source)

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch F"]:
        """Feature activations, zero unless the pre-activation is strictly above the threshold."""
        pre = torch.matmul(x.to(torch.float32), self.W_enc) + self.b_enc
        return pre * (pre > self.threshold)

    def decode(self, f: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch d"]:
        """Reconstruction of the residual stream from feature activations."""
        return torch.matmul(f.to(torch.float32), self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    __call__ = forward

    @cached_property
    def content_hash(self) -> str:
        """sha256 of shapes and float32 values: equal for equal SAEs, whatever file or dialect they came from."""
        digest = hashlib.sha256()
        for name, tensor in self.parameters().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"SparseAutoencoder(d_model={self.d_model}, width={self.width}, source={self.source!r})"


def _check_tensors(given: dict[str, Tensor], source: str) -> None:
    """Refuse wrong types, shapes and non-finite values, naming the source, the key and the indices."""
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{source}: {name} must be a floating-point tensor, got {what}")
    if given["W_enc"].ndim != 2:
        raise UserError(f"{source}: W_enc must be [d, F], got shape {tuple(given['W_enc'].shape)}")
    d, n_features = given["W_enc"].shape
    if d == 0 or n_features == 0:
        raise UserError(f"{source}: W_enc has an empty dimension, shape {(d, n_features)}")
    expected = {"b_enc": (n_features,), "W_dec": (n_features, d), "b_dec": (d,), "threshold": (n_features,)}
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(given[name].shape)}, expected {shape} "
                f"because W_enc is [d={d}, F={n_features}]. A transposed matrix? W_enc is [d, F], W_dec is [F, d]."
            )
    for name, tensor in given.items():
        _check_finite(name, tensor, source)


def _check_finite(name: str, tensor: Tensor, source: str) -> None:
    bad = ~torch.isfinite(tensor)
    if not bool(bad.any()):
        return
    # The feature axis is the last of W_enc and the first of everything else.
    axis = 0 if name == "W_enc" else 1
    per_feature = bad.any(dim=axis) if tensor.ndim == 2 else bad
    kind = "dimension" if name == "b_dec" else "feature"
    raise UserError(f"{source}: {name} holds NaN or infinity at {kind} {first_indices(per_feature)}")
