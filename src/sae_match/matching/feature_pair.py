"""What a similarity may compare: two SAEs, the text on which it may be fitted, and the features that are matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.errors import UserError
from sae_match.keys import tensor_digest
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind


class Streams(Protocol):
    """Residual streams of some text, read layer by layer as they are asked for."""

    @property
    def key(self) -> str:
        """Content hash of model and text."""

    def layer(self, layer: int) -> Float[Tensor, "windows tokens d"]:
        """resid_post of one layer."""


@dataclass(frozen=True)
class FeaturePair:
    """Two SAEs whose features are matched.

    Attributes:
        a, b: SAEs of layers t and t+1.
        folding: whether parameters are folded before they are compared (Eq. 4).
        excluded: features of either side that stay unmatched; None = none.
        layers: t and t+1.
        fit: residual streams of text that is not evaluated; None where none was prepared.
        fit_b: those of B where it reads another model's; None = as A.
        mapped: A carried into B's residual stream, where that is another model's: what weights are compared of.
        batch_windows: windows read at a time.
        sink_positions: positions at each window's start that are never counted.
        seed: seed of what is drawn.
    """

    a: SparseAutoencoder
    b: SparseAutoencoder
    folding: FoldingKind = FoldingKind.theta
    excluded: tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None] = (None, None)
    layers: tuple[int, int] = (0, 1)
    fit: Streams | None = None
    batch_windows: int = 8
    sink_positions: int = 1
    seed: int = 0
    fit_b: Streams | None = None
    mapped: SparseAutoencoder | None = None

    @property
    def weights(self) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """The SAEs whose weights are compared, in one residual stream."""
        return (self.a if self.mapped is None else self.mapped), self.b

    def fit_residuals(self) -> tuple[Float[Tensor, "windows tokens d_a"], Float[Tensor, "windows tokens d_b"]]:
        """Residual streams of either side on the text on which a similarity may be fitted.

        Raises:
            UserError: none was prepared.
        """
        return residuals(self.fit_streams, self.fit_b, self.layers)

    @property
    def fit_streams(self) -> Streams:
        """Residual streams of the text on which a similarity may be fitted.

        Raises:
            UserError: none was prepared.
        """
        return require_streams(self.fit, "similarity")

    def kept(self) -> tuple[Int[Tensor, " K_a"], Int[Tensor, " K_b"]]:
        """Features of either side that are matched, ascending.

        Raises:
            UserError: a mask of another type or shape than bool, one entry per feature.
        """
        sides = zip((self.a, self.b), self.excluded, ("exclude_a", "exclude_b"), strict=True)
        kept_a, kept_b = (_kept(sae.width, mask, name) for sae, mask, name in sides)
        return kept_a, kept_b

    def to_fold(self) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """Both SAEs of `weights` with threshold 1 for excluded features, which need none to be folded by."""
        a, b = (
            sae if mask is None or sae.foldable
            else sae.replace(threshold=sae.threshold.masked_fill(mask.to(sae.device), 1.0))
            for sae, mask in zip(self.weights, self.excluded, strict=True)
        )  # fmt: skip
        return a, b

    def facts(self) -> dict[str, object]:
        """Everything that a similarity of this pair could depend on, as plain data."""
        return {
            "layers": list(self.layers),
            "saes": [sae_facts(sae) for sae in (self.a, self.b)],
            "folding": self.folding.value,
            "streams": streams_key(self.fit, self.fit_b),
            "sink_positions": self.sink_positions,
            "seed": self.seed,
        } | ({} if self.mapped is None else {"mapped": self.mapped.content_hash})


def sae_facts(sae: SparseAutoencoder) -> dict[str, object]:
    """Content of an SAE, and its folding scale where that is not its threshold."""
    return {"content": sae.content_hash, "scale": None if sae.scale is None else tensor_digest(sae.scale)}


def residuals(fit: Streams, fit_b: Streams | None, layers: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Residual streams of either side of a pair, [windows, tokens, d] each.

    Args:
        fit_b: those of B where it reads another model's.
    """
    return fit.layer(layers[0]), (fit if fit_b is None else fit_b).layer(layers[1])


def streams_key(fit: Streams | None, fit_b: Streams | None) -> object:
    """Which residual streams something may be fitted on, as plain data."""
    return None if fit is None else fit.key if fit_b is None else [fit.key, fit_b.key]


def require_streams(fit: Streams | None, what: str) -> Streams:
    """The text that something is fitted on.

    Raises:
        UserError: none was prepared.
    """
    if fit is None:
        raise UserError(f"this {what} is fitted on text, and none was prepared: set `fitted = True` in its class")
    return fit


def _kept(width: int, excluded: Tensor | None, name: str) -> Int[Tensor, " K"]:
    if excluded is None:
        return torch.arange(width)
    if excluded.dtype != torch.bool or excluded.shape != (width,):
        raise UserError(f"{name} is a bool mask [{width}], got {excluded.dtype} {tuple(excluded.shape)}")
    return (~excluded).nonzero().flatten().cpu()
