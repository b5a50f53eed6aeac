"""The training objective of a JumpReLU SAE with its straight-through gradients, sparse wherever the features are.

Source: Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders" (arXiv 2407.14435), Eqs. 9-12. With the rectangle kernel `K(z) = 1 for |z| < 1/2`:

    d f / d pre     =  1[pre > theta]                       f  = pre * 1[pre > theta]
    d f / d theta   = -(theta / bandwidth) * K((pre - theta) / bandwidth)
    d L0 / d theta  = -(1 / bandwidth) * K((pre - theta) / bandwidth)
    d L0 / d pre    =  0

Only positions with `pre > theta - bandwidth / 2` matter, about 3 % of all, so the encoder's forward product is the only
dense one. The decoder and every gradient run over that list through `embedding_bag` (a gather that multiplies and sums,
one bag per token or per feature) and a sampled matrix product.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass
class Objective:
    """What one step computes; `mse` and `l0` are differentiable."""

    mse: Float[Tensor, ""]
    """Squared error summed over d, mean over tokens."""
    l0: Float[Tensor, ""]
    """Mean number of active features per token."""
    fired: Float[Tensor, "features"]
    """Activations per feature in the batch."""
    error: Float[Tensor, "tokens d"]
    """Reconstruction minus input."""


def _weighted_bags(
    table: Float[Tensor, "rows d"], rows: Int[Tensor, "n"], offsets: Int[Tensor, "bags+1"], weights: Float[Tensor, "n"]
) -> Float[Tensor, "bags d"]:
    """Sum of `weights[i] * table[rows[i]]` over each bag `offsets[b]:offsets[b + 1]`: a sparse times dense product."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _bag_offsets(members: Int[Tensor, "n"], bags: int) -> Int[Tensor, "bags+1"]:
    """Where each bag starts in a list that is sorted by bag; the last entry is the list's length."""
    offsets = torch.zeros(bags + 1, dtype=torch.int64, device=members.device)
    torch.cumsum(torch.bincount(members, minlength=bags), dim=0, out=offsets[1:])
    return offsets


def _sampled_products(
    left: Float[Tensor, "rows d"],
    right: Float[Tensor, "columns d"],
    offsets: Int[Tensor, "rows+1"],
    columns: Int[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Entries of `left @ right.T` at the positions of a compressed sparse row pattern only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # torch calls its CSR support beta
        values = torch.zeros(columns.shape[0], dtype=left.dtype, device=left.device)
        shape = (left.shape[0], right.shape[0])
        pattern = torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values()


class _JumpReluObjective(torch.autograd.Function):
    """Forward and pseudo-gradients; `W_enc` is held as rows [features, d], the layout of the bag products."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "tokens d"],
        W_enc: Float[Tensor, "features d"],
        b_enc: Float[Tensor, "features"],
        W_dec: Float[Tensor, "features d"],
        b_dec: Float[Tensor, "d"],
        log_threshold: Float[Tensor, "features"],
        bandwidth: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens, features = x.shape[0], W_enc.shape[0]
        threshold = log_threshold.exp()
        pre = F.linear(x, W_enc, b_enc)
        near = (pre > threshold - bandwidth / 2).view(-1).nonzero().squeeze(1)
        value = pre.view(-1)[near]
        token = torch.div(near, features, rounding_mode="floor")
        feature = near - token * features
        active = (value > threshold[feature]).to(value.dtype)
        offsets = _bag_offsets(token, tokens)
        error = _weighted_bags(W_dec, feature, offsets, value * active).add_(b_dec).sub_(x)
        flat = error.view(-1)
        fired = torch.bincount(feature, weights=active, minlength=features).to(value.dtype)
        ctx.save_for_backward(x, W_dec, threshold, value, token, feature, active, offsets, error)
        ctx.bandwidth = bandwidth
        ctx.mark_non_differentiable(fired, error)
        return torch.dot(flat, flat) / tokens, active.sum() / tokens, fired, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mse: Tensor, grad_l0: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, W_dec, threshold, value, token, feature, active, offsets, error = ctx.saved_tensors
        tokens, features = x.shape[0], W_dec.shape[0]
        scale = grad_mse * (2.0 / tokens)
        d_feature = _sampled_products(error, W_dec, offsets, feature) * scale
        d_pre = d_feature * active

        theta = threshold[feature]
        kernel = ((value - theta).abs() < ctx.bandwidth / 2).to(value.dtype) / ctx.bandwidth
        d_theta = -(d_feature * theta + grad_l0 / tokens) * kernel
        d_threshold = torch.bincount(feature, weights=d_theta, minlength=features).to(value.dtype)
        d_b_enc = torch.bincount(feature, weights=d_pre, minlength=features).to(value.dtype)

        # int16 keys make the stable sort several times cheaper
        key = feature.to(torch.int16) if features <= torch.iinfo(torch.int16).max else feature
        order = torch.sort(key, stable=True).indices
        by_feature, bags = token[order], _bag_offsets(feature, features)
        d_W_dec = _weighted_bags(error, by_feature, bags, (value * active)[order]) * scale
        d_W_enc = _weighted_bags(x, by_feature, bags, d_pre[order])
        d_b_dec = error.sum(0) * scale
        return None, d_W_enc, d_b_enc, d_W_dec, d_b_dec, d_threshold * threshold, None


def jumprelu_objective(
    x: Float[Tensor, "tokens d"],
    W_enc: Float[Tensor, "features d"],
    b_enc: Float[Tensor, "features"],
    W_dec: Float[Tensor, "features d"],
    b_dec: Float[Tensor, "d"],
    log_threshold: Float[Tensor, "features"],
    bandwidth: float,
) -> Objective:
    """Reconstruct `x` and count active features, differentiably in every parameter (not in `x`).

    Gradients are the module docstring's pseudo-derivatives.
    """
    return Objective(*_JumpReluObjective.apply(x, W_enc, b_enc, W_dec, b_dec, log_threshold, bandwidth))


def batch_topk_threshold(
    x: Float[Tensor, "tokens d"], W_enc: Float[Tensor, "features d"], b_enc: Float[Tensor, "features"], target_l0: float
) -> Float[Tensor, ""]:
    """The threshold that leaves `target_l0` active features per token on this batch (BatchTopK).

    Source: Bussmann et al. 2024, "BatchTopK Sparse Autoencoders" (arXiv 2412.06410). At least 1e-3, so that it
    can serve as a JumpReLU threshold.
    """
    with torch.no_grad():
        pre = F.linear(x, W_enc, b_enc).view(-1)
        rank = min(pre.numel(), max(1, round(target_l0 * x.shape[0])))
        return pre.kthvalue(pre.numel() - rank + 1).values.clamp_min(1e-3)
