"""Streaming top activations against a dense computation."""

from __future__ import annotations

import pytest
import torch

from sae_match import UserError
from sae_match.evaluation.top_activations import NOWHERE, top_activations
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
