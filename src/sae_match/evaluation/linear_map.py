"""The best affine map from one residual stream to another: what a splice without features could do."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.evaluation.splices import BoundSplice, PairActivations, Splice, SplicePair
from sae_match.options import option

logger = logging.getLogger(__name__)

CONDITION = 1e12
"""Above this ratio of the largest to the smallest eigenvalue of the covariance, its inverse is mostly rounding."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """x_b ~ x_a @ weight + bias.

    Attributes:
        ridge: what was added to the diagonal of x_a's covariance; 0 = plain least squares.
        tokens: on how many tokens it was fitted.
    """

    weight: Float[Tensor, "d_a d_b"]
    bias: Float[Tensor, " d_b"]
    ridge: float
    tokens: int

    def __call__(self, pair: PairActivations) -> Float[Tensor, "*batch d_b"]:
        """The residual that replaces x_b."""
        x = pair.x_a
        return x @ self.weight.to(x.device, x.dtype) + self.bias.to(x.device, x.dtype)


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances of two residual streams over the same tokens, float64."""

    mean_a: Float[Tensor, " d_a"]
    mean_b: Float[Tensor, " d_b"]
    covariance: Float[Tensor, "d_a d_a"]
    cross: Float[Tensor, "d_a d_b"]
    tokens: int


def fit_linear_map(
    x_a: Float[Tensor, "windows tokens d_a"],
    x_b: Float[Tensor, "windows tokens d_b"],
    batch_windows: int = 8,
    sink_positions: int = 1,
    device: str | torch.device = "cpu",
) -> LinearMap:
    """Least squares with an intercept, from covariances accumulated in float64 in one pass.

    Where the covariance of x_a is singular or nearly so (condition above 1e12, as with fewer tokens than dimensions),
    its largest eigenvalue over that condition is added to its diagonal (ridge), which keeps the solution small in the
    directions that the tokens do not show.

    Raises:
        UserError: residuals of different shapes, no tokens after the sink positions, or no variance.
    """
    found = moments(x_a, x_b, batch_windows, sink_positions, device)
    values = torch.linalg.eigvalsh(found.covariance)
    smallest, largest = float(values[0]), float(values[-1])
    if not largest > 0:
        raise UserError("the residual stream does not vary over the text that the linear map is fitted on")
    ridge = 0.0 if smallest * CONDITION > largest else largest / CONDITION
    regular = found.covariance + ridge * torch.eye(len(values), dtype=values.dtype, device=values.device)
    weight = torch.linalg.solve(regular, found.cross)
    bias = found.mean_b - found.mean_a @ weight
    return LinearMap(weight.float(), bias.float(), ridge, found.tokens)


@torch.no_grad()
def moments(
    x_a: Float[Tensor, "windows tokens d_a"],
    x_b: Float[Tensor, "windows tokens d_b"],
    batch_windows: int = 8,
    sink_positions: int = 1,
    device: str | torch.device = "cpu",
) -> Moments:
    """Means and covariances in one pass over the counted tokens.

    Raises:
        UserError: residuals of different tokens, or no tokens after the sink positions.
    """
    if x_a.shape[:2] != x_b.shape[:2] or x_a.ndim != 3 or len(x_a) == 0 or x_a.shape[1] <= sink_positions:
        raise UserError(f"a linear map needs residuals of the same tokens: {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    d_a, d_b = x_a.shape[2], x_b.shape[2]
    n = x_a.shape[0] * (x_a.shape[1] - sink_positions)
    # Subtracted before products are formed: a mean far from zero would cost their last digits.
    origin = [x[0, sink_positions:].to(device, torch.float64).mean(dim=0) for x in (x_a, x_b)]
    total_a, total_b = (torch.zeros(d, dtype=torch.float64, device=device) for d in (d_a, d_b))
    squares, products = (torch.zeros(d_a, d, dtype=torch.float64, device=device) for d in (d_a, d_b))
    for parts in zip(x_a.split(batch_windows), x_b.split(batch_windows), strict=True):
        a, b = (
            x[:, sink_positions:].to(device, torch.float64).flatten(0, 1) - start
            for x, start in zip(parts, origin, strict=True)
        )
        total_a += a.sum(dim=0)
        total_b += b.sum(dim=0)
        squares.addmm_(a.T, a)
        products.addmm_(a.T, b)
    mean_a, mean_b = total_a / n, total_b / n
    return Moments(
        mean_a + origin[0], mean_b + origin[1],
        squares / n - torch.outer(mean_a, mean_a), products / n - torch.outer(mean_a, mean_b), n,
    )  # fmt: skip


@option
class LinearMapSplice(Splice):
    """x_a @ W + c: the least-squares map of the residual stream, fitted on text that is not evaluated."""

    fitted: ClassVar[bool] = True
    name: str = "linear_map"

    def bind(self, pair: SplicePair) -> dict[str, BoundSplice]:
        """Fitted when it is first called, which it may never be: what it gives may be known. Not kept beyond the pair:
        for a whole span, the maps would outgrow the SAEs."""
        fitted, fit = cache(lambda: self.fitted_map(pair)), pair.streams_key()

        def mapped(activations: PairActivations) -> Tensor:
            return fitted()(activations)

        def reads() -> dict[str, object]:
            return {"layers": list(pair.layers), "fit": fit, "sink_positions": pair.sink_positions}

        return {self.name: self.bound(pair, mapped, reads=reads)}

    def decodings(self, permutations: int) -> int:
        """No SAE takes part."""
        return 0

    def fitted_map(self, pair: SplicePair) -> LinearMap:
        """The map from A's residual stream to B's."""
        x_a, x_b = pair.fit_residuals()
        fitted = fit_linear_map(x_a, x_b, pair.batch_windows, pair.sink_positions, pair.b.device)
        if fitted.ridge > 0:
            logger.warning(
                "layers %d -> %d: the linear map is regularized (ridge %.2g): %d tokens do not determine it",
                *pair.layers, fitted.ridge, fitted.tokens,
            )  # fmt: skip
        return fitted
