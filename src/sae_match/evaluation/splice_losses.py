"""Token losses of the language model with one layer's residual replaced by each splice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.evaluation.splices import BoundSplice, PairActivations
from sae_match.saes import SparseAutoencoder


class ResumableModel(Protocol):
    """The part of a language model that splicing needs."""

    def token_losses_from(
        self, layer: int, residual: Float[Tensor, "windows tokens d"], ids: Int[Tensor, "windows tokens"]
    ) -> Float[Tensor, "windows predictions"]:
        """Next-token losses in nats when block `layer`'s output is `residual`."""


@torch.no_grad()
def original_losses(
    model: ResumableModel,
    layer: int,
    residual: Float[Tensor, "windows tokens d"],
    ids: Int[Tensor, "windows tokens"],
    batch_windows: int,
    tick: Callable[[int], object] = lambda n: None,
) -> Float[Tensor, "windows predictions"]:
    """Losses of the unchanged model, resumed from its own residual after block `layer`."""
    parts: list[Tensor] = []
    for start in range(0, len(ids), batch_windows):
        rows = slice(start, start + batch_windows)
        parts.append(model.token_losses_from(layer, residual[rows], ids[rows]).cpu())
        tick(len(ids[rows]))
    return torch.cat(parts)


@torch.no_grad()
def splice_losses(
    model: ResumableModel,
    layer: int,
    saes: tuple[SparseAutoencoder, SparseAutoencoder],
    residuals: tuple[Float[Tensor, "windows tokens d_a"], Float[Tensor, "windows tokens d_b"]],
    ids: Int[Tensor, "windows tokens"],
    splices: Mapping[str, BoundSplice],
    batch_windows: int,
    sink_positions: int = 1,
    tick: Callable[[int], object] = lambda n: None,
) -> dict[str, Float[Tensor, "windows predictions"]]:
    """Losses with block `layer`'s output replaced by each splice; sink positions keep their residual.

    Args:
        layer: t+1, the block whose output is replaced; blocks up to it are not computed.
        saes: SAEs of layers t and t+1.
        residuals: resid_post of layers t and t+1.
        sink_positions: positions at each window's start that are not replaced.
        tick: called with the number of windows done, once per batch and splice.
    """
    (a, b), (x_a, x_b) = saes, residuals
    losses: dict[str, list[Tensor]] = {name: [] for name in splices}
    for start in range(0, len(ids), batch_windows):
        rows = slice(start, start + batch_windows)
        batch_a, batch_b = x_a[rows].to(a.device), x_b[rows].to(b.device)
        pair = PairActivations(x_a=batch_a, x_b=batch_b, f_a=a.encode(batch_a), f_b=b.encode(batch_b))
        for name, splice in splices.items():
            replaced = batch_b.clone()
            replaced[:, sink_positions:] = splice(pair)[:, sink_positions:]
            losses[name].append(model.token_losses_from(layer, replaced, ids[rows]).cpu())
            tick(len(ids[rows]))
    return {name: torch.cat(parts) for name, parts in losses.items()}
