"""What a similarity may compare: two SAEs, the text on which it may be fitted, and the features that are matched."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
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
class SAEPair:
    """Two SAEs, and the text on which something of the two may be fitted.

    Attributes:
        a, b: SAEs of layers t and t+1.
        layers: t and t+1.
        fit: residual streams of text that is not evaluated; None where none was prepared.
        fit_b: those of B where it reads another model's; None = as A.
        batch_windows: windows read at a time.
        sink_positions: positions at each window's start that are never counted, fitted on or replaced.
    """

    a: SparseAutoencoder
    b: SparseAutoencoder
    _: KW_ONLY
    layers: tuple[int, int] = (0, 1)
    fit: Streams | None = None
    fit_b: Streams | None = None
    batch_windows: int = 8
    sink_positions: int = 1

    def fit_residuals(self) -> tuple[Float[Tensor, "windows tokens d_a"], Float[Tensor, "windows tokens d_b"]]:
        """Residual streams of either side on the text of `fit_streams`."""
        fit = self.fit_streams
        return fit.layer(self.layers[0]), (fit if self.fit_b is None else self.fit_b).layer(self.layers[1])

    @property
    def fit_streams(self) -> Streams:
        """Residual streams of the text on which a similarity or a splice may be fitted.

        Raises:
            UserError: none was prepared.
        """
        if self.fit is None:
            raise UserError("what is fitted on text was given none: set `fitted = True` in its class")
        return self.fit

    def streams_key(self) -> object:
        """Which residual streams something may be fitted on, as plain data."""
        keys = [streams.key for streams in (self.fit, self.fit_b) if streams is not None]
        return keys if len(keys) > 1 else next(iter(keys), None)


@dataclass(frozen=True)
class FeaturePair(SAEPair):
    """Two SAEs whose features are matched.

    Attributes:
        folding: whether parameters are folded before they are compared (Eq. 4).
        excluded: features of either side that stay unmatched; None = none.
        mapped: A carried into B's residual stream, where that is another model's: what weights are compared of.
        seed: seed of what is drawn.
    """

    folding: FoldingKind = FoldingKind.theta
    excluded: tuple[Bool[Tensor, " F_a"] | None, Bool[Tensor, " F_b"] | None] = (None, None)
    mapped: SparseAutoencoder | None = None
    seed: int = 0

    @property
    def weights(self) -> tuple[SparseAutoencoder, SparseAutoencoder]:
        """The SAEs whose weights are compared, in one residual stream."""
        return (self.a if self.mapped is None else self.mapped), self.b

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
            "streams": self.streams_key(),
            "sink_positions": self.sink_positions,
            "seed": self.seed,
        } | ({} if self.mapped is None else {"mapped": self.mapped.content_hash})


def sae_facts(sae: SparseAutoencoder) -> dict[str, object]:
    """Content of an SAE, and its folding scale where that is not its threshold."""
    return {"content": sae.content_hash, "scale": None if sae.scale is None else tensor_digest(sae.scale)}


def _kept(width: int, excluded: Tensor | None, name: str) -> Int[Tensor, " K"]:
    if excluded is None:
        return torch.arange(width)
    if excluded.dtype != torch.bool or excluded.shape != (width,):
        raise UserError(f"{name} is a bool mask [{width}], got {excluded.dtype} {tuple(excluded.shape)}")
    return (~excluded).nonzero().flatten().cpu()
