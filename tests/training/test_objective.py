"""The objective's pseudo-derivatives against hand-computed numbers and against a dense autograd version."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_match.training.objective import batch_topk_threshold, jumprelu_objective


def _leaf(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).clone().requires_grad_()


def test_hand_computed_gradients() -> None:
    """One token, two dimensions, four features: well above theta, just above, just below, far below."""
    pre = torch.tensor([3.0, 1.02, 0.99, -1.0])
    x = torch.tensor([[1.0, 2.0]])
    W_enc, b_enc = _leaf(torch.zeros(4, 2)), _leaf(pre)
    W_dec = _leaf([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    b_dec, log_threshold = _leaf([0.5, -0.5]), _leaf(torch.zeros(4))
    result = jumprelu_objective(x, W_enc, b_enc, W_dec, b_dec, log_threshold, bandwidth=0.1)

    error = torch.tensor([3.0 + 0.5 - 1.0, 1.02 - 0.5 - 2.0])
    assert float(result.mse.detach()) == pytest.approx(float(error.square().sum()), rel=1e-6)
    assert float(result.l0.detach()) == 2.0
    assert result.fired.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(result.error, error[None])

    coefficient = 0.7
    (result.mse + coefficient * result.l0).backward()
    d_feature = 2 * W_dec.detach() @ error
    active = torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(b_enc.grad, d_feature * active)
    torch.testing.assert_close(W_enc.grad, (d_feature * active)[:, None] * x)
    torch.testing.assert_close(W_dec.grad, 2 * (pre * active)[:, None] * error)
    torch.testing.assert_close(b_dec.grad, 2 * error)
    within_kernel = torch.tensor([0.0, 1.0, 1.0, 0.0])
    # theta = 1: the chain rule to log theta multiplies by 1
    expected = -(d_feature * 1.0 + coefficient) * within_kernel / 0.1
    torch.testing.assert_close(log_threshold.grad, expected, rtol=1e-4, atol=1e-4)


class _DenseStep(torch.autograd.Function):
    """1[pre > theta] with the rectangle pseudo-derivative, written densely and separately."""

    @staticmethod
    def forward(ctx, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        pre, theta = ctx.saved_tensors
        kernel = ((pre - theta).abs() < ctx.bandwidth / 2).to(pre.dtype)
        return None, (-kernel / ctx.bandwidth * gradient).sum(0), None


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 9),
    d=st.integers(1, 6),
    features=st.integers(1, 12),
    bandwidth=st.sampled_from([0.05, 0.5, 3.0]),
    seed=st.integers(0, 10_000),
)
def test_sparse_gradients_equal_dense_autograd(tokens: int, d: int, features: int, bandwidth: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, d, generator=generator)
    shapes = [(features, d), (features,), (features, d), (d,), (features,)]
    parameters = [torch.randn(shape, generator=generator) for shape in shapes]
    sparse, dense = ([p.clone().requires_grad_() for p in parameters] for _ in range(2))

    result = jumprelu_objective(x, *sparse, bandwidth)
    (1.3 * result.mse + 0.7 * result.l0).backward()

    W_enc, b_enc, W_dec, b_dec, log_threshold = dense
    pre, theta = x @ W_enc.t() + b_enc, log_threshold.exp()
    # d JumpReLU / d theta = -(theta / eps) K: the step function's pseudo-derivative at height theta
    step = _DenseStep.apply(pre, theta, bandwidth)
    feature = step.detach() * pre + theta.detach() * (step - step.detach())
    error = feature @ W_dec + b_dec - x
    l0 = step.sum() / tokens
    (1.3 * error.square().sum() / tokens + 0.7 * l0).backward()

    for ours, reference in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, rtol=2e-4, atol=2e-4)


def test_no_active_feature_is_a_valid_batch() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    parameters = [_leaf(torch.zeros(shape)) for shape in ((4, 3), (4,), (4, 3), (3,))]
    result = jumprelu_objective(x, *parameters, _leaf(torch.full((4,), 3.0)), 0.1)
    result.mse.backward()
    assert float(result.l0.detach()) == 0.0
    torch.testing.assert_close(result.mse.detach(), x.square().sum() / 5)
    assert all(float(p.grad.abs().sum()) == 0.0 for p in parameters[:3])


def test_batch_topk_threshold_leaves_the_target() -> None:
    generator = torch.Generator().manual_seed(3)
    x, W_enc = torch.randn(64, 8, generator=generator), torch.randn(40, 8, generator=generator)
    threshold = batch_topk_threshold(x, W_enc, torch.zeros(40), target_l0=4.0)
    assert int((x @ W_enc.t() >= threshold).sum()) == 4 * 64


def test_batch_topk_threshold_is_usable_when_nothing_is_positive() -> None:
    threshold = batch_topk_threshold(torch.zeros(4, 2), torch.zeros(3, 2), torch.full((3,), -1.0), target_l0=1.0)
    assert float(threshold) > 0 and math.isfinite(math.log(float(threshold)))
