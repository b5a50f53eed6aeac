"""Batches and normalization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match.errors import UserError
from sae_match.training.data import TokenBatches, drop_sink_positions, normalize_


def test_sink_positions_never_reach_training() -> None:
    activations = torch.zeros(3, 5, 2)
    activations[:, 0] = 1e6
    activations[:, 1:, 0] = torch.arange(12).float().view(3, 4)
    tokens = drop_sink_positions(activations)
    assert tokens[:, 0].tolist() == list(range(12))
    tokens += 1
    assert activations[0, 1, 0] == 0.0, "the memory-mapped source must stay as it is"


@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 1, 2), (3, 4)])
def test_unusable_activations_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="activations"):
        drop_sink_positions(torch.zeros(shape))


def test_normalized_tokens_have_mean_zero_and_mean_square_d() -> None:
    raw = 50 * torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) + 30
    tokens = raw.clone()
    normalization = normalize_(tokens, clip_norm_factor=100.0)
    torch.testing.assert_close(tokens, (raw - normalization.mean) * normalization.scale, rtol=1e-4, atol=1e-5)
    assert tokens.mean(0).abs().max() < 1e-4
    assert float(tokens.square().sum(1).mean()) == pytest.approx(8.0, rel=1e-4)


def test_outliers_are_clipped_to_a_multiple_of_the_median_norm() -> None:
    raw = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    raw[7] *= 1000
    tokens = raw.clone()
    normalization = normalize_(tokens, clip_norm_factor=4.0)
    back = tokens / normalization.scale + normalization.mean
    limit = 4 * float(raw.norm(dim=1).median())
    assert float(back[7].norm()) == pytest.approx(limit, rel=1e-3)
    assert float(torch.cosine_similarity(back[7], raw[7], dim=0)) == pytest.approx(1.0, abs=1e-5)
    untouched = raw.norm(dim=1) < limit
    torch.testing.assert_close(back[untouched], raw[untouched], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_are_refused(bad: float) -> None:
    tokens = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    tokens[4, 1] = bad
    with pytest.raises(UserError, match="NaN or Inf"):
        normalize_(tokens, 4.0)


def test_constant_activations_are_refused() -> None:
    with pytest.raises(UserError, match="all equal"):
        normalize_(torch.ones(20, 3), 4.0)


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 99))
def test_every_epoch_visits_every_token_once(n: int, batch: int, seed: int) -> None:
    epochs = 3
    steps = -(-epochs * n // batch)
    batches = TokenBatches(torch.arange(n).float()[:, None], batch, steps, seed, layer=0)
    seen = torch.cat(list(batches))[: epochs * n, 0].view(epochs, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in seen)


def test_batches_depend_on_seed_and_layer_and_continue_where_they_stopped() -> None:
    tokens = torch.arange(50).float()[:, None]
    orders = {
        (seed, layer): tuple(torch.cat(list(TokenBatches(tokens, 7, 12, seed, layer)))[:, 0].tolist())
        for seed in (0, 1)
        for layer in (3, 4)
    }
    assert len(set(orders.values())) == 4

    first = TokenBatches(tokens, 7, 12, 0, 3)
    iterator = iter(first)
    head = [next(iterator) for _ in range(5)]
    second = TokenBatches(tokens, 7, 12, 0, 3)
    second.load_state_dict(first.state_dict())
    assert tuple(torch.cat(head + list(second))[:, 0].tolist()) == orders[0, 3]
