"""A planted sparse dictionary: activations whose features are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_match.training.options import TrainingConfig


@dataclass
class Planted:
    """Raw activations [windows, tokens, d], a held-out set and the dictionary rows [features, d] that made them."""

    train: Tensor
    held_out: Tensor
    dictionary: Tensor


def _activations(windows: int, dictionary: Tensor, mean: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens, features = 33, dictionary.shape[0]
    fires = torch.rand(windows, tokens, features, generator=generator) < 3 / features
    strength = 1 + torch.rand(windows, tokens, features, generator=generator)
    noise = torch.randn(windows, tokens, dictionary.shape[1], generator=generator)
    x = 7.0 * ((fires * strength) @ dictionary + 0.02 * noise) + mean
    x[:, 0] = 5000.0  # the attention sink
    return x


@pytest.fixture(scope="session")
def planted() -> Planted:
    """24 planted features in 32 dimensions, 3 active per token, raw units far from unit scale and from zero mean."""
    generator = torch.Generator().manual_seed(0)
    dictionary = F.normalize(torch.randn(24, 32, generator=generator), dim=1)
    mean = 20 * torch.randn(32, generator=generator)
    return Planted(_activations(256, dictionary, mean, 1), _activations(32, dictionary, mean, 2), dictionary)


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., TrainingConfig]:
    """A recipe for the planted dictionary; keyword arguments override its fields."""

    def build(**overrides: float) -> TrainingConfig:
        fields: dict[str, float] = {
            "width": 40,
            "target_l0": 3.0,
            "tokens": 256 * 800,
            "batch_tokens": 256,
            "lr": 5e-3,
            "topk_steps": 50,
            "warmup_steps": 20,
            "dead_tokens": 20_000,
        }
        return TrainingConfig(**{**fields, **overrides})

    return build
