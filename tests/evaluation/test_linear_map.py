"""The linear map against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_match import UserError
from sae_match.evaluation.linear_map import LinearMap, fit_linear_map
from sae_match.evaluation.splices import PairActivations


def streams(windows: int = 6, tokens: int = 11, d: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals with a mean far from zero, and a noisy affine image of them."""
    generator = torch.Generator().manual_seed(seed)
    x = 30 + torch.randn(windows, tokens, d, generator=generator) * torch.arange(1, d + 1)
    turn = torch.randn(d, d, generator=generator)
    return x, x @ turn - 7 + 0.5 * torch.randn(x.shape, generator=generator)


def applied(found: LinearMap, x: torch.Tensor) -> torch.Tensor:
    return found(PairActivations(x_a=x, x_b=x, f_a=x, f_b=x))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_it_is_numpys_least_squares(batch: int) -> None:
    x, y = streams()
    found = fit_linear_map(x, y, batch_windows=batch, sink_positions=2)
    rows = x[:, 2:].reshape(-1, 5).double().numpy()
    design = np.hstack([rows, np.ones((len(rows), 1))])
    solution, *_ = np.linalg.lstsq(design, y[:, 2:].reshape(-1, 5).double().numpy(), rcond=None)
    assert found.weight.numpy() == pytest.approx(solution[:-1], abs=1e-4)
    assert found.bias.numpy() == pytest.approx(solution[-1], abs=1e-3)
    assert (found.ridge, found.tokens) == (0.0, 6 * 9)
    assert applied(found, x).numpy() == pytest.approx((x.numpy() @ solution[:-1] + solution[-1]), abs=1e-3)


def test_fewer_tokens_than_dimensions_are_fitted_with_a_ridge() -> None:
    x, y = streams(windows=1, tokens=4, d=8)
    found = fit_linear_map(x, y, sink_positions=1)
    assert found.ridge > 0
    assert torch.isfinite(found.weight).all()
    # Three tokens lie on a plane: the map of smallest norm goes through all of them.
    assert applied(found, x)[:, 1:].numpy() == pytest.approx(y[:, 1:].numpy(), abs=0.05)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = streams()
    with pytest.raises(UserError, match="same tokens"):
        fit_linear_map(x, y[:3])
    with pytest.raises(UserError, match="does not vary"):
        fit_linear_map(torch.ones_like(x), y)
