"""Dictionaries of three layers in which features persist, split, merge, begin and end at known places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_match import SparseAutoencoder

D = 256
Parents = Sequence[Sequence[int]]
"""Of each child the features that it is made of; none = it is new."""


def sae_of(decoder: Tensor, source: str = "planted") -> SparseAutoencoder:
    """Tied weights, thresholds of 0.5."""
    rows = torch.nn.functional.normalize(decoder, dim=1)
    width, d = rows.shape
    return SparseAutoencoder(
        W_enc=rows.T.contiguous(), b_enc=torch.zeros(width), W_dec=rows, b_dec=torch.zeros(d),
        threshold=torch.full((width,), 0.5), source=source,
    )  # fmt: skip


def directions(width: int, seed: int, d: int = D) -> Tensor:
    """Independent random directions."""
    return torch.randn(width, d, generator=torch.Generator().manual_seed(seed))


def next_layer(sae: SparseAutoencoder, parents: Parents, seed: int, noise: float = 0.3) -> SparseAutoencoder:
    """A child is the sum of its parents, and of noise of that norm; without parents a direction of its own."""
    own = torch.nn.functional.normalize(directions(len(parents), seed, sae.d_model), dim=1)
    rows = [
        sae.W_dec[list(of)].sum(dim=0) + noise * direction if of else direction
        for of, direction in zip(parents, own, strict=True)
    ]
    return sae_of(torch.stack(rows), f"planted seed {seed}")


def shuffled(width: int, seed: int) -> list[int]:
    """A random order."""
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed)).tolist()
