"""The canonical sparse autoencoder that every checkpoint dialect is read into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_match.arrays import Array, as_tensor
from sae_match.errors import UserError
from sae_match.options import parse
from sae_match.saes.activation import JUMPRELU, Activation, Convention, as_float32
from sae_match.saes.site import Site

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
"""Canonical parameter names, in storage and hashing order."""


def first_indices(mask: Bool[Tensor, " n"], limit: int = 10) -> str:
    """The indices where `mask` is true, at most `limit` of them, for error messages."""
    found = mask.nonzero().flatten().tolist()
    more = f", ... ({len(found)} in all)" if len(found) > limit else ""
    return ", ".join(str(i) for i in found[:limit]) + more


class SparseAutoencoder:
    """An SAE with `width` features over `d_model` dimensions, by default a JumpReLU SAE over the residual stream.

        pre = x @ W_enc + b_enc;   f = pre * (pre > threshold);   x_hat = f @ W_dec + b_dec

    (The paper's Eqs. 1-2.) Other activations have the same five parameters; a b_dec that is subtracted from the input
    is folded into b_enc. Parameters are float32 constants; inputs of any floating dtype and batch shape, tensors or
    numpy arrays, are computed in float32. A threshold below 0 counts as 0, as in SAELens, dictionary_learning and
    Gemma Scope.

    Args:
        W_enc: encoder, [d, F].
        b_enc: encoder bias, [F].
        W_dec: decoder, [F, d].
        b_dec: decoder bias, [d].
        threshold: JumpReLU threshold of each feature in activation units, [F]; 0 where there is none.
        activation: how pre-activations become activations.
        site: where in the block the SAE reads.
        scale: theta of each feature in folding, in place of the threshold, [F], positive.
        match_only: why this SAE only matches and never encodes; None if it encodes.
        stated_l0: active features per token that it was trained for, where that is stated and is not the k of a TopK.
        source: where the parameters came from; named in errors and provenance.

    Raises:
        UserError: shapes disagree, a tensor is missing or not floating point, or a value is NaN or infinite.
    """

    def __init__(
        self,
        *,
        W_enc: Float[Array, "d F"],
        b_enc: Float[Array, " F"],
        W_dec: Float[Array, "F d"],
        b_dec: Float[Array, " d"],
        threshold: Float[Array, " F"] | None = None,
        activation: Activation = JUMPRELU,
        site: Site = Site.resid_post,
        scale: Float[Array, " F"] | None = None,
        match_only: str | None = None,
        stated_l0: float | None = None,
        source: str = "memory",
    ) -> None:
        if threshold is None:
            raise UserError(
                f"{source}: no threshold. A state dict does not say what the SAE computes from it: use "
                "SparseAutoencoder.from_state_dict(state_dict, Convention(...))"
            )
        given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
        if scale is not None:
            given["scale"] = scale
        tensors = {name: as_float32(source, name, values) for name, values in given.items()}
        _check_tensors(tensors, source)
        checked = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if activation.k is not None and activation.k > W_enc.shape[1]:
            raise UserError(f"{source}: k={activation.k} of {W_enc.shape[1]} features")
        self.source, self.activation, self.site = source, activation, site
        self.match_only = match_only or activation.obstacle
        self.stated_l0 = stated_l0
        self.W_enc: Float[Tensor, "d F"] = checked["W_enc"]
        self.b_enc: Float[Tensor, " F"] = checked["b_enc"]
        self.W_dec: Float[Tensor, "F d"] = checked["W_dec"]
        self.b_dec: Float[Tensor, " d"] = checked["b_dec"]
        self.threshold: Float[Tensor, " F"] = checked["threshold"].clamp(min=0)
        self.scale: Float[Tensor, " F"] | None = checked.get("scale")

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Float[Array, "..."]],
        convention: Convention,
        *,
        site: Site | str = Site.unknown,
        source: str = "state dict",
    ) -> SparseAutoencoder:
        """The SAE of another library's `state_dict()`, given what the tensors do not say.

        Names are those of `canonical_tensors`.

        Args:
            convention: see `Convention`; nothing of it is guessed.

        Raises:
            UserError: missing or unknown tensors, or anything that the constructor refuses.
        """
        tensors = convention.canonical(state_dict, source)
        return cls(**tensors, activation=convention.how, site=parse(Site, site, "site"), source=source)

    @classmethod
    def from_sae_lens(cls, sae: object, *, site: Site | str | None = None) -> SparseAutoencoder:
        """A copy of a live SAELens object, which takes its conventions from the object's `cfg` and is compared with
        the object's own `encode` and `decode`. `load_sae` takes those of dictionary_learning and sparsify as well.

        Args:
            site: where in the block it reads, if its `cfg.metadata.hook_name` does not say.

        Raises:
            UserError: another kind of object, an architecture that is not supported, or one that computes something
                else than its class says.
        """
        from sae_match.saes.live import read_sae_lens  # it builds on this class

        return read_sae_lens(sae, site)

    @property
    def d_model(self) -> int:
        """Dimensions that the SAE reads, d."""
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

    def replace(self, **changes: Any) -> SparseAutoencoder:
        """A new SAE with some constructor arguments changed; tensors that stay are shared."""
        names = ("activation", "site", "scale", "match_only", "stated_l0", "source")
        return SparseAutoencoder(**{**self.parameters(), **{name: getattr(self, name) for name in names}, **changes})

    def to(self, device: str | torch.device) -> SparseAutoencoder:
        """This SAE with its tensors on `device` (itself, if they are there already)."""
        if torch.device(device) == self.device:
            return self
        scale = None if self.scale is None else self.scale.to(device)
        return self.replace(**{n: t.to(device) for n, t in self.parameters().items()}, scale=scale)

    @property
    def foldable(self) -> bool:
        """Whether every feature has a `theta`."""
        return self.scale is not None or bool((self.threshold > 0).all())

    @property
    def theta(self) -> Float[Tensor, " F"]:
        """The unit of each feature when it is folded: `scale` where one is set, else the threshold.

        Raises:
            UserError: no scale is set and a threshold is not positive, naming the features and the choices.
        """
        if self.scale is not None:
            return self.scale
        not_positive = self.threshold <= 0
        if bool(not_positive.any()):
            library = "sae_match.saes.with_scale"
            if not bool(not_positive.all()):
                library += " or leave these features out: match(..., exclude_a=a.threshold <= 0, exclude_b=...)"
            raise UserError(
                f"{self.source} ({self.activation.kind.value}): threshold must be positive to be folded, but is <= 0 "
                f"at feature {first_indices(not_positive)}. Choose another theta: folding.scale=stored (the scalar "
                "threshold beside a TopK), estimated, mean_activation, max_activation (measured on text) or "
                f"decoder_norm (needs no data); or folding=none. In the library, {library}."
            )
        return self.threshold

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Tensor, "*batch F"]:
        """Feature activations, zero unless the pre-activation is strictly above the threshold (or among the k largest).

        Raises:
            UserError: an SAE that only matches.
        """
        if self.match_only is not None:
            raise UserError(
                f"{self.source}: cannot encode, because {self.match_only}. It can be matched by its weights"
            )
        pre = torch.matmul(as_tensor(x, self.device).to(torch.float32), self.W_enc) + self.b_enc
        return self.activation(pre, self.threshold)

    def decode(self, f: Float[Array, "*batch F"]) -> Float[Tensor, "*batch d"]:
        """Reconstruction of the residual stream from feature activations."""
        return torch.matmul(as_tensor(f, self.device).to(torch.float32), self.W_dec) + self.b_dec

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))

    forward = __call__

    @cached_property
    def content_hash(self) -> str:
        """sha256 of shapes, float32 values and activation: equal for equal SAEs, whatever file they came from.

        Site and folding scale do not enter: they do not change what the SAE computes.
        """
        digest = hashlib.sha256()
        for name, tensor in self.parameters().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().data)
        digest.update(self.activation.signature.encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        kind = self.activation.kind.value if self.activation.k is None else f"topk k={self.activation.k}"
        source = self.source if len(self.source) <= 48 else f"...{self.source[-45:]}"
        return f"SparseAutoencoder(d_model={self.d_model}, width={self.width}, {kind}, {self.site.value}, {source!r})"


def _check_tensors(given: Mapping[str, Tensor], source: str) -> None:
    """Refuse wrong shapes and values, naming the source, the key and the indices."""
    shape = tuple(given["W_enc"].shape)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{source}: W_enc must be [d, F] without an empty dimension, got shape {shape}")
    d, n_features = shape
    expected = {"W_enc": shape, "W_dec": (n_features, d), "b_dec": (d,)}
    for name, tensor in given.items():
        if tuple(tensor.shape) != (wanted := expected.get(name, (n_features,))):
            raise UserError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, expected {wanted} "
                f"because W_enc is [d={d}, F={n_features}]. A transposed matrix? W_enc is [d, F], W_dec is [F, d]."
            )
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            # The feature axis is the last of W_enc and the first of everything else.
            indices = first_indices(bad.any(dim=0 if name == "W_enc" else 1) if tensor.ndim == 2 else bad)
            kind = "dimension" if name == "b_dec" else "feature"
            raise UserError(f"{source}: {name} holds NaN or infinity at {kind} {indices}")
    if "scale" in given and bool((given["scale"] <= 0).any()):
        raise UserError(f"{source}: scale must be positive, but is not at feature {first_indices(given['scale'] <= 0)}")
