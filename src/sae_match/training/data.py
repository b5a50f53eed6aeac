"""Residual streams as shuffled training batches, in the units the trainer works in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError


def derived_generator(seed: int, layer: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each (seed, layer, purpose): layers and seeds never share an initialization."""
    state = np.random.SeedSequence(seed, spawn_key=(layer, purpose)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(state[0]) << 31) ^ int(state[1]))


@dataclass
class Normalization:
    """Affine map between raw residuals and training units: `z = (x - mean) * scale`, E||z||^2 = d."""

    mean: Float[Tensor, "d"]
    scale: float


def drop_sink_positions(
    activations: Float[Tensor, "windows tokens d"], sink_positions: int = 1
) -> Float[Tensor, "n d"]:
    """All tokens but the first `sink_positions` of each window, attention sinks, as one writable matrix (a copy).

    Raises UserError when no token is left.
    """
    if activations.ndim != 3 or activations.shape[0] == 0 or activations.shape[1] <= sink_positions:
        raise UserError(
            f"training needs activations [windows, tokens, d] with at least 1 window of {sink_positions + 1} tokens, "
            f"got shape {tuple(activations.shape)}"
        )
    # One copy, straight from the memory-mapped file: a layer is gigabytes.
    return activations[:, sink_positions:].clone(memory_format=torch.contiguous_format).flatten(0, 1)


def normalize_(tokens: Float[Tensor, "n d"], clip_norm_factor: float) -> Normalization:
    """Clip outliers, center and scale in place.

    Tokens whose norm exceeds `clip_norm_factor` times the median are rescaled to that norm first, so that a few
    of them neither set the scale nor dominate the loss. Raises UserError on NaN or Inf.
    """
    norms = torch.linalg.vector_norm(tokens, dim=1)
    if not bool(torch.isfinite(norms).all()):
        raise UserError("training activations hold NaN or Inf: capture the residual streams again")
    limit = clip_norm_factor * float(norms.median())
    outliers = (norms > limit).nonzero().squeeze(1)
    tokens[outliers] *= (limit / norms[outliers])[:, None]
    mean = tokens.mean(0, dtype=torch.float64).to(torch.float32)
    tokens -= mean
    mean_square = float(torch.linalg.vector_norm(tokens, dim=1).double().square().mean())
    if mean_square == 0.0:
        raise UserError("training activations are all equal: there is nothing to train on")
    scale = (tokens.shape[1] / mean_square) ** 0.5
    tokens *= scale
    return Normalization(mean, scale)


class TokenBatches:
    """The whole run as one pass over `n_steps` batches; every epoch is a fresh permutation of all tokens.

    The permutation of epoch e depends on (seed, layer, e) alone, so a resumed run sees the batches that an
    uninterrupted one would have seen. Batches run across epoch boundaries: none is short.
    """

    def __init__(self, tokens: Float[Tensor, "n d"], batch_tokens: int, n_steps: int, seed: int, layer: int) -> None:
        self.tokens, self.batch_tokens, self.n_steps = tokens, batch_tokens, n_steps
        self.seed, self.layer = seed, layer
        self.step = 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[Float[Tensor, "batch d"]]:
        while self.step < self.n_steps:
            batch = self._batch(self.step)
            self.step += 1
            yield batch
        self.step = 0

    def _batch(self, step: int) -> Float[Tensor, "batch d"]:
        n, start, stop = len(self.tokens), step * self.batch_tokens, (step + 1) * self.batch_tokens
        epochs = range(start // n, (stop - 1) // n + 1)
        rows = [self._permutation(epoch)[max(0, start - epoch * n) : stop - epoch * n] for epoch in epochs]
        return self.tokens[torch.cat(rows)]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = derived_generator(self.seed, self.layer, 1 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.tokens), generator=generator)
        return self._order

    def state_dict(self) -> dict[str, int]:
        """Position in the run, for Lightning's mid-epoch checkpoints."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]
