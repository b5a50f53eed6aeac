"""What plays theta where an SAE has no thresholds, measured on residual streams in one streaming pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.config.schema import MEASURED_SCALES, FoldingScale
from sae_match.errors import UserError
from sae_match.saes.folding import decoder_norms
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

logger = logging.getLogger(__name__)


class LargestValues:
    """The n largest of a stream of numbers, kept in O(n) memory, exactly.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: list[Tensor] = []
        self._bound = -float("inf")

    def update(self, values: Float[Tensor, "*any"]) -> None:
        """Add numbers."""
        self._kept.append(values[values > self._bound].flatten())
        if sum(len(part) for part in self._kept) > 2 * self.n:
            self._compact()

    def smallest(self) -> float | None:
        """The n-th largest number seen, None if fewer were seen."""
        self._compact()
        kept = self._kept[0]
        return float(kept.min()) if len(kept) == self.n else None

    def _compact(self) -> None:
        kept = torch.cat(self._kept) if self._kept else torch.empty(0)
        if len(kept) > self.n:
            kept = kept.topk(self.n, sorted=False).values
        if len(kept) == self.n:
            # Equal numbers that come later would only replace this one.
            self._bound = float(kept.min())
        self._kept = [kept]


@torch.no_grad()
def measure_scale(
    sae: SparseAutoencoder,
    choice: FoldingScale | str,
    x: Float[Tensor, "windows tokens d"],
    *,
    k: int | None = None,
    batch_windows: int = 8,
    sink_positions: int = 1,
) -> SparseAutoencoder:
    """The same SAE with a `scale` measured on `x`, in the place of theta (formats: "Folding without a threshold").

    estimated: the threshold that lets k features per token through, decoder norm included: tau is the (k N)-th largest
        pre-activation times decoder norm over N tokens, and theta_i = tau / norm_i.
    mean_activation, max_activation: of each feature, where it is positive. A feature that never fires on `x` has
        neither; it takes the median of the others, and how many did is logged.

    Args:
        x: the residual stream that the SAE reads; memory-mapped CPU tensors are fine.
        k: active features per token for `estimated`; the SAE's own k if None.
        sink_positions: positions at each window's start that are left out.

    Raises:
        UserError: another choice, no k, an SAE that does not encode, too few positive values, or nothing fires.
    """
    if choice not in MEASURED_SCALES:
        raise UserError(f"folding.scale={choice}: only {', '.join(MEASURED_SCALES)} are measured")
    x = x[:, sink_positions:]
    batches = (x[start : start + batch_windows].to(sae.device) for start in range(0, len(x), batch_windows))
    if choice == FoldingScale.estimated:
        return sae.replace(scale=_estimated(sae, batches, x.shape[0] * x.shape[1], k or sae.activation.k))
    total, count, largest = (torch.zeros(sae.width, dtype=torch.float64, device=sae.device) for _ in range(3))
    for batch in batches:
        f = sae.encode(batch).flatten(0, 1)
        total += f.sum(dim=0, dtype=torch.float64)
        count += (f > 0).sum(dim=0)
        largest = torch.maximum(largest, f.amax(dim=0).to(torch.float64))
    fires = count > 0
    if not bool(fires.any()):
        raise UserError(
            f"{sae.source}: no feature fires on the evaluation text, so folding.scale={choice} is undefined"
        )
    values = largest if choice == FoldingScale.max_activation else total / count.clamp(min=1)
    silent = int((~fires).sum())
    if silent:
        logger.warning("%s: %d features never fire and take the median scale of the others", sae.source, silent)
    return sae.replace(scale=torch.where(fires, values, values[fires].median()).to(torch.float32))


def check_measurable(sae: SparseAutoencoder, choice: FoldingScale, k: int | None) -> None:
    """Refuse what `measure_scale` would refuse before any text is read.

    Raises:
        UserError: `estimated` without a k, or an SAE that does not encode.
    """
    if sae.match_only is not None:
        raise UserError(f"{sae.source}: folding.scale={choice.value} needs activations, but {sae.match_only}")
    if choice is FoldingScale.estimated and (k or sae.activation.k) is None:
        raise UserError(f"{sae.source}: folding.scale=estimated needs folding.k, the active features per token")


def _estimated(sae: SparseAutoencoder, batches: Iterable[Tensor], tokens: int, k: int | None) -> Float[Tensor, " F"]:
    check_measurable(sae, FoldingScale.estimated, k)
    norms = decoder_norms(sae)
    largest = LargestValues(tokens * (k or 0))
    for batch in batches:
        pre = (batch.to(torch.float32) @ sae.W_enc + sae.b_enc) * norms
        largest.update(pre[pre > 0])
    tau = largest.smallest()
    if tau is None:
        raise UserError(f"{sae.source}: fewer than k={k} pre-activations per token are positive; lower folding.k")
    return tau / norms
