"""Streaming top activations against a dense computation."""

from __future__ import annotations

import math

import pytest
import torch

from sae_match import UserError
from sae_match.evaluation.top_activations import NOWHERE, contexts, top_activations
from tests.builders import identity_sae, random_sae


def dense(f: torch.Tensor, feature: int, k: int, sink: int) -> list[tuple[float, int, int]]:
    """All windows' peaks of one feature by plain Python, largest first, then by window."""
    peaks = []
    for window in range(len(f)):
        values = f[window, :, feature].tolist()
        best = max(values[sink:])
        if best > 0:
            peaks.append((best, window, values.index(best, sink)))
    return sorted(peaks, key=lambda peak: (-peak[0], peak[1]))[:k]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize(("k", "sink"), [(1, 1), (4, 2), (30, 1)])
def test_streaming_equals_dense(batch: int, k: int, sink: int) -> None:
    sae = random_sae(seed=3)
    x = 2 * torch.randn(17, 9, 8)
    x[5] = x[2]  # ties between windows
    x[6, 5] = x[6, 4]  # and inside one
    f = torch.stack([sae.encode(window[None])[0] for window in x])
    top = top_activations(sae, x, k, batch, sink)
    assert top.value.shape == top.window.shape == top.position.shape == (24, k)
    for feature in range(sae.width):
        expected = dense(f, feature, k, sink)
        assert top.places(feature) == [(window, position) for _, window, position in expected]
        torch.testing.assert_close(top.value[feature, : len(expected)], torch.tensor([v for v, _, _ in expected]))
        assert (top.window[feature, len(expected) :] == NOWHERE).all()
        assert (top.value[feature, len(expected) :] == 0).all()


def test_ties_go_to_the_first_place_whatever_the_batch() -> None:
    x = torch.ones(5, 6, 4)
    for batch in (1, 2, 5):
        top = top_activations(identity_sae(4), x, 3, batch, sink_positions=2)
        assert top.places(0) == [(0, 2), (1, 2), (2, 2)]
        assert top.places(4) == []  # fires on negative values only


def test_the_sink_is_left_out() -> None:
    x = torch.zeros(1, 4, 4)
    x[0, 0] = 100.0
    assert top_activations(identity_sae(4), x, 2).places(0) == []


def test_wrong_widths_are_refused() -> None:
    with pytest.raises(UserError, match="d_model=8"):
        top_activations(random_sae(), torch.zeros(2, 4, 7), 2)
    with pytest.raises(UserError, match="sink positions"):
        top_activations(random_sae(), torch.zeros(2, 1, 8), 2)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_contexts_and_histograms_equal_dense_ones(batch: int) -> None:
    sae, around, bins, sink = random_sae(seed=3), 2, 5, 2
    x = 2 * torch.randn(7, 9, 8, generator=torch.Generator().manual_seed(0))
    top = top_activations(sae, x, 3, batch, sink)
    found = contexts(sae, x, top, around, bins, batch, sink)
    f = torch.stack([sae.encode(window[None])[0] for window in x])
    f[:, :sink] = 0
    for feature in range(sae.width):
        largest = float(f[..., feature].max())
        active = f[..., feature][f[..., feature] > 0]
        counts = torch.zeros(bins, dtype=torch.int64)
        for value in active.tolist():
            counts[max(1, math.ceil(torch.tensor(value) / largest * bins)) - 1] += 1
        assert found.histogram[feature].tolist() == counts.tolist()
        for rank, (window, position) in enumerate(top.places(feature)):
            for offset in range(-around, around + 1):
                at = position + offset
                share = float(f[window, at, feature]) / largest * 255 if 0 <= at < 9 else 0.0
                assert abs(int(found.share[feature, rank, offset + around]) - math.ceil(share)) <= 1
                assert (share > 0) == (found.share[feature, rank, offset + around] > 0)
        assert not found.share[feature, len(top.places(feature)) :].any()
