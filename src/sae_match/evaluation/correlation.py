"""Pearson correlation of two SAEs' feature activations over tokens, streamed: a data-driven measure of sameness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Similarity
from sae_match.options import option
from sae_match.saes import SparseAutoencoder

Batches = Iterator[tuple[Float[Tensor, "tokens F_a"], Float[Tensor, "tokens F_b"]]]


@torch.no_grad()
def activation_correlations(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    x_a: Float[Tensor, "windows tokens d_a"],
    x_b: Float[Tensor, "windows tokens d_b"],
    batch_windows: int = 8,
    sink_positions: int = 1,
    kept_a: Int[Tensor, " K_a"] | None = None,
    kept_b: Int[Tensor, " K_b"] | None = None,
) -> Float[Tensor, "K_a K_b"]:
    """Correlation of every feature of A with every feature of B, float32.

    Two passes over the tokens: means and standard deviations in float64, then products of standardized activations.
    A feature that never changes (a dead one) correlates with nothing: 0. Memory beyond one batch: 4 K_a K_b bytes.

    Args:
        x_a, x_b: resid_post of both layers on the same tokens; memory-mapped CPU tensors are fine.
        sink_positions: positions at each window's start that are left out.
        kept_a, kept_b: features of each side that are wanted, in this order; None = all.
    """

    def activations() -> Batches:
        for part_a, part_b in zip(x_a.split(batch_windows), x_b.split(batch_windows), strict=True):
            f_a, f_b = (
                sae.encode(x[:, sink_positions:].to(sae.device)).flatten(0, 1) for sae, x in ((a, part_a), (b, part_b))
            )
            yield (
                f_a if kept_a is None else f_a[:, kept_a.to(f_a.device)],
                f_b if kept_b is None else f_b[:, kept_b.to(f_b.device)],
            )

    n = x_a.shape[0] * (x_a.shape[1] - sink_positions)
    widths = [sae.width if kept is None else len(kept) for sae, kept in ((a, kept_a), (b, kept_b))]
    sums = [
        torch.zeros(2, width, dtype=torch.float64, device=sae.device) for width, sae in zip(widths, (a, b), strict=True)
    ]
    for both in activations():
        for total, f in zip(sums, both, strict=True):
            total[0] += f.sum(dim=0, dtype=torch.float64)
            total[1] += f.to(torch.float64).square().sum(dim=0)
    (mean_a, scale_a), (mean_b, scale_b) = (
        (mean.float(), scale.float()) for mean, scale in (mean_and_scale(total / n) for total in sums)
    )
    products = torch.zeros(widths[0], widths[1], device=a.device)
    for f_a, f_b in activations():
        products.addmm_(((f_a - mean_a) * scale_a).T, (f_b - mean_b) * scale_b, alpha=1 / n)
    return products.clamp_(-1.0, 1.0)


def mean_and_scale(moments: Float[Tensor, "2 F"]) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
    """Mean and one over the standard deviation, 0 where nothing varies, from means of values and squares, float64."""
    mean, square = moments
    variance = square - mean.square()
    return mean, torch.where(variance > 1e-12 * square, variance.clamp(min=1e-300).rsqrt(), 0.0)


@option
class ActivationCorrelation(Similarity):
    """Pearson correlation of the features' activations over the counted tokens of text that is not evaluated."""

    fitted: ClassVar[bool] = True
    reads_folding: ClassVar[bool] = False
    mean_name: ClassVar[str] = "fit_correlation"
    name: str = "correlation"

    def matrix(self, pair: FeaturePair) -> Float[Tensor, "K_a K_b"]:
        """Correlations of the features that are matched."""
        (x_a, x_b), kept = pair.fit_residuals(), pair.kept()
        wanted = (
            None if len(features) == sae.width else features
            for sae, features in zip((pair.a, pair.b), kept, strict=True)
        )
        return activation_correlations(
            pair.a, pair.b, x_a, x_b, pair.batch_windows, pair.sink_positions, *wanted
        ).cpu()  # fmt: skip

    def reads(self, pair: FeaturePair) -> dict[str, object]:
        """What the SAEs do on the text; neither folding nor a folding scale, nor a seed."""
        facts = pair.facts()
        saes = [sae.content_hash for sae in (pair.a, pair.b)]
        return {name: facts[name] for name in ("layers", "streams", "sink_positions")} | {"saes": saes}
