"""Maps between the residual streams of two models, and an SAE carried over by one, so that weights can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.arrays import Array, windows_of
from sae_match.errors import UserError
from sae_match.evaluation.linear_map import LinearMap, LinearMapSplice, fit_linear_map, moments
from sae_match.evaluation.splices import SplicePair
from sae_match.options import option
from sae_match.saes import SparseAutoencoder


class MapKind(StrEnum):
    """How one residual stream is carried to another."""

    none = "none"
    orthogonal = "orthogonal"
    affine = "affine"


@dataclass(frozen=True, eq=False)
class StreamMap:
    """There and back between two residual streams.

    Attributes:
        there: x_b ~ x_a @ weight + bias.
        back: x_a ~ x_b @ weight + bias.
    """

    there: LinearMap
    back: LinearMap

    def carry(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """An SAE of A's stream as one of B's: it encodes what `back` makes of x_b, and decodes through `there`.

        Per-feature numbers (threshold, folding scale) stay; its features are those of the SAE, in the same order.
        """
        (w, c), (v, e) = (
            (one.weight.to(sae.device), one.bias.to(sae.device)) for one in (self.there, self.back)
        )  # fmt: skip
        return sae.replace(
            W_enc=v @ sae.W_enc, b_enc=sae.b_enc + e @ sae.W_enc, W_dec=sae.W_dec @ w, b_dec=sae.b_dec @ w + c,
            source=f"{sae.source}, mapped",
        )  # fmt: skip


def fit_stream_map(
    x_a: Float[Tensor, "windows tokens d_a"],
    x_b: Float[Tensor, "windows tokens d_b"],
    kind: MapKind,
    batch_windows: int = 8,
    sink_positions: int = 1,
    device: str | torch.device = "cpu",
) -> StreamMap:
    """The map between two residual streams on the same tokens.

    affine: least squares in either direction (`fit_linear_map`). orthogonal: x_b - mean_b ~ s (x_a - mean_a) Q with
    Q Q^T = I (Q^T Q = I where d_a > d_b) that maximizes the trace of Q^T times the cross-covariance (Procrustes;
    Schoenemann, 1966, "A generalized solution of the orthogonal Procrustes problem"), s by least squares; back by
    Q^T / s.

    Raises:
        UserError: residuals of different tokens, no tokens after the sink positions, or streams that do not vary
            (together).
    """
    how = (batch_windows, sink_positions, device)
    if kind is MapKind.affine:
        return StreamMap(fit_linear_map(x_a, x_b, *how), fit_linear_map(x_b, x_a, *how))
    found = moments(x_a, x_b, *how)
    left, values, right = torch.linalg.svd(found.cross, full_matrices=False)
    q = left @ right
    total = float((q.T @ found.covariance @ q).trace())  # of what Q keeps of x_a
    if not (total > 0 and float(values.sum()) > 0):
        raise UserError("the residual streams do not vary together over the text that their map is fitted on")
    scale = float(values.sum()) / total
    there, back = scale * q, q.T / scale
    return StreamMap(
        LinearMap(there.float(), (found.mean_b - found.mean_a @ there).float(), 0.0, found.tokens),
        LinearMap(back.float(), (found.mean_a - found.mean_b @ back).float(), 0.0, found.tokens),
    )


def map_sae(
    sae: SparseAutoencoder,
    x_a: Float[Array, "windows tokens d_a"] | Float[Array, "tokens d_a"],
    x_b: Float[Array, "windows tokens d_b"] | Float[Array, "tokens d_b"],
    kind: MapKind | str = MapKind.orthogonal,
    sink_positions: int = 1,
) -> SparseAutoencoder:
    """An SAE of one model as an SAE of another model's residual stream, so that `match` can compare their weights:

        mapped = map_sae(sae_a, x_a, x_b)  # residual streams of both models on the same tokens
        matching = match(mapped, sae_b)

    Fit it on text that is not evaluated: an affine map of d_a x d_b numbers fits few tokens perfectly.

    Args:
        x_a, x_b: resid_post that the SAE reads, and that of the other model; the widths may differ.
        kind: orthogonal (a rotation with a scale) or affine (least squares in either direction).
        sink_positions: positions at each window's start that are left out; of tokens without windows none are.

    Raises:
        UserError: an unknown kind, or as in `fit_stream_map`.
    """
    if kind not in (MapKind.orthogonal, MapKind.affine):
        raise UserError(f"kind={kind}: must be orthogonal or affine")
    x_b, *_ = windows_of(x_b, sink_positions, 8)
    x_a, sinks, batch = windows_of(x_a, sink_positions, 8)
    return fit_stream_map(x_a, x_b, MapKind(kind), batch, sinks, sae.device).carry(sae)


@option
class StreamMapSplice(LinearMapSplice):
    """The map by which an SAE is carried to the other model's stream, as a splice: how well it fits."""

    name: str = "stream_map"
    kind: MapKind

    def fitted_map(self, pair: SplicePair) -> LinearMap:
        """The map from A's residual stream to B's."""
        return fit_stream_map(
            *pair.fit_residuals(), self.kind, pair.batch_windows, pair.sink_positions, pair.b.device
        ).there
