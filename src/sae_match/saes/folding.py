"""Folding a scale per feature into the weights (the paper's Eq. 4): its threshold, or what is taken in its place."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_match.arrays import Array, windows_of
from sae_match.errors import UserError
from sae_match.options import option, parse
from sae_match.saes.activation import ActivationKind
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

logger = logging.getLogger(__name__)


class FoldingKind(StrEnum):
    """Whether features are rescaled before matching (Eq. 4)."""

    theta = "theta"
    none = "none"


class FoldingScale(StrEnum):
    """What theta is when features are folded; weight metrics are always in these units.

    auto: the threshold where every feature has a positive one, and an error where not.
    The others are for SAEs without thresholds (ReLU, TopK), in order of closeness to one:
    stored: the scalar threshold that a checkpoint stores beside a TopK.
    estimated: the threshold that would let k features per token through on the evaluation text.
    mean_activation, max_activation: of each feature on that text.
    decoder_norm: the reciprocal of the decoder row's norm, which needs no data and carries no scale.
    """

    auto = "auto"
    threshold = "threshold"
    stored = "stored"
    estimated = "estimated"
    mean_activation = "mean_activation"
    max_activation = "max_activation"
    decoder_norm = "decoder_norm"


MEASURED_SCALES = (FoldingScale.estimated, FoldingScale.mean_activation, FoldingScale.max_activation)
"""Scales that need activations on text, and so evaluation=full."""


@option
class Folding:
    """Whether and how features are rescaled before matching."""

    name: FoldingKind
    """theta | none."""
    scale: FoldingScale = FoldingScale.auto
    """What theta is: auto | threshold | stored | estimated | mean_activation | max_activation | decoder_norm."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active features per token that scale=estimated aims at; null = the k of a TopK SAE."""

    @model_validator(mode="after")
    def _k_goes_with_estimated(self) -> Folding:
        if self.k is not None and self.scale is not FoldingScale.estimated:
            raise ValueError(f"folding.k={self.k}: goes with folding.scale=estimated only")
        return self

    @property
    def measured(self) -> bool:
        """Whether the scale needs activations on text."""
        return self.scale in MEASURED_SCALES


def fold(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Rescale every feature by its own theta, which then is 1.

        W_enc' = W_enc / theta    b_enc' = b_enc / theta    W_dec' = theta[:, None] * W_dec
        threshold' = threshold / theta (= 1 where theta is the threshold)

    theta is the threshold, or the SAE's `scale` (see `with_scale`). Reconstructions are unchanged, and so is the
    argument. Rescaling changes which features are the k largest, so the folded copy of a TopK SAE refuses to encode.

    Raises:
        UserError: a theta that is not positive (such a feature has no unit to be measured in).
    """
    theta = sae.theta
    ranked = sae.activation.kind is ActivationKind.topk
    return sae.replace(
        W_enc=sae.W_enc / theta,
        b_enc=sae.b_enc / theta,
        W_dec=theta[:, None] * sae.W_dec,
        threshold=sae.threshold / theta,
        scale=None if sae.scale is None else theta.new_ones(theta.shape),
        match_only="rescaling changes which features of a TopK SAE are the k largest" if ranked else sae.match_only,
        source=f"{sae.source} (folded)",
    )


def with_scale(sae: SparseAutoencoder, choice: FoldingScale | str, *, optional: bool = False) -> SparseAutoencoder:
    """The same SAE with the chosen `scale` in the place of theta, for scales that need no data.

    Args:
        choice: a `FoldingScale`; `auto` keeps the scale that the SAE has. Measured ones come from `measure_scale`.
        optional: an SAE without thresholds gets scale 1, so that its weight distances are in units of the stored
            weights.

    Raises:
        UserError: unknown or measured choice, or nothing there to be the scale.
    """
    choice = parse(FoldingScale, choice, "folding.scale")
    if choice in MEASURED_SCALES:
        raise UserError(f"folding.scale={choice.value}: is measured on activations; use measure_scale")
    if optional and not sae.foldable:
        return sae.replace(scale=torch.ones_like(sae.threshold))
    if choice is FoldingScale.decoder_norm:
        return sae.replace(scale=1 / _decoder_norms(sae))
    if choice is FoldingScale.stored:
        value = sae.activation.stored_threshold
        if value is None:
            raise UserError(
                f"{sae.source}: folding.scale=stored, but the checkpoint stores no threshold beside its "
                f"{sae.activation.kind.value} activation. Choose estimated, mean_activation, max_activation or "
                "decoder_norm"
            )
        return sae.replace(scale=sae.threshold.new_full((sae.width,), value))
    chosen = sae if choice is FoldingScale.auto or sae.scale is None else sae.replace(scale=None)
    _ = chosen.theta  # refuses thresholds that cannot be folded
    return chosen


def _decoder_norms(sae: SparseAutoencoder) -> Float[Tensor, " F"]:
    """Norm of each decoder row, to divide by; a row of zeros is refused."""
    norms = sae.W_dec.norm(dim=1)
    if bool((norms == 0).any()):
        raise UserError(
            f"{sae.source}: the decoder row is all zero at feature {first_indices(norms == 0)}, so its norm cannot "
            "scale it. Choose another folding.scale (threshold, mean_activation, max_activation) or folding=none"
        )
    return norms


def nth_largest(parts: Iterable[Float[Tensor, " any"]], n: int) -> float | None:
    """The n-th largest number (n >= 1) of a stream, exactly, in O(n) memory; None if there are fewer."""
    kept: list[Tensor] = []
    bound = -float("inf")
    for part in parts:
        kept.append(part[part > bound])  # what equals the n-th so far would only replace it
        if sum(map(len, kept)) > 2 * n:
            kept = [torch.cat(kept).topk(n, sorted=False).values]
            bound = float(kept[0].min())
    found = torch.cat(kept) if kept else torch.empty(0)
    return float(found.topk(n, sorted=False).values.min()) if len(found) >= n else None


@torch.no_grad()
def measure_scale(
    sae: SparseAutoencoder,
    choice: FoldingScale | str,
    x: Float[Array, "windows tokens d"] | Float[Array, "tokens d"],
    *,
    k: int | None = None,
    batch_windows: int = 8,
    sink_positions: int = 1,
) -> SparseAutoencoder:
    """The same SAE with a `scale` measured on `x`, in the place of theta.

    estimated: tau is the (k N)-th largest pre-activation times decoder norm over N tokens, and theta_i = tau / norm_i.
    mean_activation, max_activation: of each feature, where it is positive. One that never fires on `x` takes the median
        of the others, and how many did is logged.

    Args:
        x: the residual stream that the SAE reads; memory-mapped CPU tensors are fine. Tokens without windows,
            [tokens, d], have no sink positions.
        k: active features per token for `estimated`; the SAE's own k if None.
        sink_positions: positions at each window's start that are left out.

    Raises:
        UserError: another choice, no k, an SAE that does not encode, too few positive values, or nothing fires.
    """
    if choice not in MEASURED_SCALES:
        raise UserError(f"folding.scale={choice}: only {', '.join(MEASURED_SCALES)} are measured")
    x, sink_positions, batch_windows = windows_of(x, sink_positions, batch_windows)
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
    if silent := int((~fires).sum()):
        logger.warning("%s: %d features never fire and take the median scale of the others", sae.source, silent)
    return sae.replace(scale=torch.where(fires, values, values[fires].median()).to(torch.float32))


def _estimated(sae: SparseAutoencoder, batches: Iterable[Tensor], tokens: int, k: int | None) -> Float[Tensor, " F"]:
    check_measurable(sae, FoldingScale.estimated, k)
    norms = _decoder_norms(sae)
    scaled = ((batch.to(torch.float32) @ sae.W_enc + sae.b_enc) * norms for batch in batches)
    tau = nth_largest((pre[pre > 0] for pre in scaled), tokens * (k or 0))
    if tau is None:
        raise UserError(f"{sae.source}: fewer than k={k} pre-activations per token are positive; lower folding.k")
    return tau / norms


def check_measurable(sae: SparseAutoencoder, choice: FoldingScale, k: int | None) -> None:
    """Refuse, before any text is read, an SAE that does not encode, and `estimated` without a k.

    Raises:
        UserError: as said.
    """
    if sae.match_only is not None:
        raise UserError(f"{sae.source}: folding.scale={choice.value} needs activations, but {sae.match_only}")
    if choice is FoldingScale.estimated and (k or sae.activation.k) is None:
        raise UserError(f"{sae.source}: folding.scale=estimated needs folding.k, the active features per token")
