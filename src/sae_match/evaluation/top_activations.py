"""The places in the text where each feature is most active, and what it does around them; a pass each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes import SparseAutoencoder
from sae_match.saes.site import refuse_encoding

NOWHERE = -1
"""Marks a feature that fires in fewer windows than were asked for."""


@dataclass(frozen=True)
class TopActivations:
    """Per feature its largest activations, at most one per window, largest first; on the CPU.

    Attributes:
        value: activations, 0 where there is no further place.
        window, position: where, `NOWHERE` where there is none. Position 0 is the window's first token.
    """

    value: Float[Tensor, "F k"]
    window: Int[Tensor, "F k"]
    position: Int[Tensor, "F k"]

    def places(self, feature: int) -> list[tuple[int, int]]:
        """(window, position) of one feature's top activations, largest first."""
        found = zip(self.window[feature].tolist(), self.position[feature].tolist(), strict=True)
        return [place for place in found if place[0] != NOWHERE]


@dataclass(frozen=True)
class Contexts:
    """The tokens around each feature's top activations, and how its activations are distributed; on the CPU.

    Attributes:
        top: the places that the contexts surround.
        share: activations at the tokens of each context in 255ths of the feature's largest one, rounded up; 0 where it
            is silent and beyond the ends of the window. The place itself is in the middle.
        histogram: on how many tokens the activation is in each of equally wide bins from 0 to the largest one.
    """

    top: TopActivations
    share: UInt8[Tensor, "F k context"]
    histogram: Int[Tensor, "F bins"]


@torch.no_grad()
def contexts(
    sae: SparseAutoencoder,
    x: Float[Tensor, "windows tokens d"],
    top: TopActivations,
    around: int,
    bins: int,
    batch_windows: int = 8,
    sink_positions: int = 1,
) -> Contexts:
    """What every feature does around its top activations, and everywhere; one more pass over the tokens.

    Args:
        x, batch_windows, sink_positions: those that `top` was found in.
        around: tokens on either side.
        bins: of the histogram.
    """
    share = torch.zeros(*top.window.shape, 2 * around + 1, dtype=torch.uint8)
    histogram = torch.zeros(sae.width * bins, dtype=torch.int64)
    scale = top.value[:, 0].clamp(min=torch.finfo(torch.float32).tiny).to(sae.device)
    for start in range(0, len(x), batch_windows):
        f = sae.encode(x[start : start + batch_windows].to(sae.device)).float()
        f[:, :sink_positions] = 0
        window, position, feature = f.nonzero(as_tuple=True)
        level = f[window, position, feature] / scale[feature]
        place = feature * bins + (level * bins).ceil().long().clamp(1, bins) - 1
        histogram += torch.bincount(place, minlength=len(histogram)).cpu()
        feature, rank = ((top.window >= start) & (top.window < start + len(f))).nonzero(as_tuple=True)
        tokens = top.position[feature, rank, None] + torch.arange(-around, around + 1)
        inside = (tokens >= 0) & (tokens < f.shape[1])
        at = [index.to(f.device) for index in (top.window[feature, rank, None] - start, tokens, feature[:, None])]
        found = f[at[0], at[1].clamp(0, f.shape[1] - 1), at[2]] / scale[at[2]]
        share[feature, rank] = (found.cpu() * 255).ceil().clamp(0, 255).mul(inside).to(torch.uint8)
    return Contexts(top, share, histogram.view(sae.width, bins))


@torch.no_grad()
def top_activations(
    sae: SparseAutoencoder,
    x: Float[Tensor, "windows tokens d"],
    k: int,
    batch_windows: int = 8,
    sink_positions: int = 1,
) -> TopActivations:
    """The k windows in which each feature reaches its largest activations, and the first token that reaches it there.

    One pass over the tokens; memory is one batch of activations and F x (k + batch_windows) candidates. Equal
    activations are ordered by window, so the result does not depend on `batch_windows`.

    Args:
        x: resid_post of the SAE's layer; a memory-mapped CPU tensor is fine.
        k: places per feature.
        sink_positions: positions at each window's start that are left out.

    Raises:
        UserError: the SAE cannot encode, or reads another width.
    """
    refuse_encoding(sae.source, sae.site, sae.match_only)
    if x.ndim != 3 or x.shape[2] != sae.d_model or x.shape[1] <= sink_positions:
        raise UserError(
            f"{sae.source} reads d_model={sae.d_model} after {sink_positions} sink positions, but the residual "
            f"stream is {tuple(x.shape)} [windows, tokens, d]"
        )
    value = torch.zeros(sae.width, k, device=sae.device)
    window = torch.full((sae.width, k), NOWHERE, device=sae.device)
    position = torch.full((sae.width, k), NOWHERE, device=sae.device)
    for start in range(0, len(x), batch_windows):
        batch = x[start : start + batch_windows, sink_positions:].to(sae.device)
        peak, at = _peaks(sae.encode(batch))
        number = torch.arange(start, start + len(batch), device=sae.device).expand_as(at)
        value, order = torch.cat([value, peak], dim=1).sort(dim=1, descending=True, stable=True)
        value, order = value[:, :k], order[:, :k]
        window = torch.cat([window, number], dim=1).gather(1, order)
        position = torch.cat([position, at + sink_positions], dim=1).gather(1, order)
    silent = value <= 0
    return TopActivations(
        value.masked_fill(silent, 0.0).cpu(),
        window.masked_fill(silent, NOWHERE).cpu(),
        position.masked_fill(silent, NOWHERE).cpu(),
    )


def _peaks(f: Float[Tensor, "windows tokens F"]) -> tuple[Float[Tensor, "F windows"], Int[Tensor, "F windows"]]:
    """Each window's largest activation of each feature, and the first position that has it.

    `max` promises no particular index among equal ones.
    """
    peak = f.amax(dim=1)
    tokens = f.shape[1]
    index = torch.arange(tokens, device=f.device).view(1, tokens, 1)
    first = torch.where(f == peak[:, None], index, tokens).amin(dim=1)
    return peak.T.float(), first.T
