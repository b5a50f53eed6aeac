"""Interventions along flows: what it does to the model to scale features at one layer, or all along their flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_match.evaluation.functional.contexts import CONTEXT_TOKENS
from sae_match.language_model.interventions import Change, Intervention, prediction_changes
from sae_match.language_model.model import LanguageModel
from sae_match.saes import SparseAutoencoder

FlowFeatures = Sequence[tuple[int, Sequence[int]]]
"""The layers that a flow passes, ascending, and its features in each; at least one, usually one."""
See = Callable[[int, Float[Tensor, "C T F"]], object]
"""What is called with a layer and its activations."""
CANDIDATES = 5
"""Features of nearest activity, among which that of a random flow is drawn."""


def chains(
    features: Sequence[int], layers: Sequence[int], partners: Sequence[npt.NDArray[np.int64]]
) -> list[FlowFeatures]:
    """Each feature of the first layer with its partner in the next one, that one's partner, and so on.

    Args:
        layers: n of them, ascending.
        partners: n - 1 of them, from each layer's features to those of the next; -1 = none, where a chain ends.
    """
    found: list[FlowFeatures] = []
    for feature in features:
        chain = [(layers[0], (int(feature),))]
        for layer, step in zip(layers[1:], partners, strict=True):
            if (feature := int(step[feature])) < 0:
                break
            chain.append((layer, (feature,)))
        found.append(chain)
    return found


@dataclass(frozen=True)
class Steered:
    """The model, the SAEs and the text of interventions.

    Attributes:
        saes: by layer. They need no other features than those of the flows, but for TopK.
        streams: from a layer to its resid_post; memory-mapped CPU tensors are fine.
        ids: token ids of the same windows.
        context_tokens: leading tokens of a window that make a context.
        sink_positions: positions at each window's start that are never changed or counted.
    """

    model: LanguageModel
    saes: Mapping[int, SparseAutoencoder]
    streams: Callable[[int], Float[Tensor, "windows tokens d"]]
    ids: Int[Tensor, "windows tokens"]
    context_tokens: int = CONTEXT_TOKENS
    sink_positions: int = 1

    def changes(
        self, flow: FlowFeatures, scale: float, layers: Sequence[int], see: See = lambda layer, f: None
    ) -> dict[int, Change]:
        """Scaling a flow's features at some of its layers: x - (1 - s) sum_i f_i(x) d_i, of the x that arrives there,
        which changes at earlier layers have changed. What the SAE does not reconstruct stays as it is.

        Args:
            see: called with a layer and its activations, as they arrive there, at the first of the layers and all that
                the flow passes after it.
        """
        return {
            layer: partial(self._changed, layer, list(features), scale if layer in layers else 1.0, see)
            for layer, features in flow
            if layer >= layers[0]
        }

    def activations(self, layer: int, x: Float[Tensor, "*C T d"]) -> Float[Tensor, "*C T F"]:
        """Activations, 0 at the sink positions."""
        sae = self.saes[layer]
        f = sae.encode(x.to(sae.device, torch.float32))
        f[..., : self.sink_positions, :] = 0
        return f

    def _changed(self, layer: int, features: list[int], scale: float, see: See, x: Tensor) -> Float[Tensor, "C T d"]:
        f = self.activations(layer, x)
        see(layer, f)
        if scale == 1:
            return x
        removed = (1 - scale) * (f[..., features] @ self.saes[layer].W_dec[features])
        return (x - removed.to(x.device)).to(x.dtype)


def equally_active(
    features: Sequence[int], activity: Float[np.ndarray, "2 F"], rng: np.random.Generator
) -> tuple[int, ...]:
    """For each of a flow's features in a layer another one that is about as active in the same contexts.

    It is drawn among those `CANDIDATES` that are nearest in the logarithms of both rows of `activity`.

    Args:
        activity: on how many tokens of the contexts each feature fires, and what it writes (`activity_in`).
    """
    # What is silent is as far from what hardly fires as that is from what does three times as much.
    floor = [[row[row > 0].min() / 2 if row.any() else 1.0] for row in activity]
    logs, free = np.log(activity + floor), np.ones(activity.shape[1], bool)
    free[list(features)] = False
    drawn: list[int] = []
    for feature in features:
        others = np.flatnonzero(free)
        distance = np.linalg.norm(logs[:, others] - logs[:, [feature]], axis=0)
        drawn.append(int(rng.choice(others[np.argsort(distance, kind="stable")[:CANDIDATES]])))
        free[drawn[-1]] = False
    return tuple(drawn)


def activity_in(sae: SparseAutoencoder, x: Float[Tensor, "C T d"], sink_positions: int = 1) -> Float[np.ndarray, "2 F"]:
    """On how many tokens each feature fires, and what it writes, f |d| added up over them; without sink positions."""
    f = sae.encode(x[:, sink_positions:].to(sae.device, torch.float32))
    found = torch.stack([(f > 0).sum(dim=(0, 1)).double(), f.sum(dim=(0, 1)).double() * sae.W_dec.norm(dim=1)])
    return np.asarray(found.cpu().numpy())


@torch.no_grad()
def steer(
    subject: Steered,
    flow: FlowFeatures,
    windows: npt.NDArray[np.int64],
    scales: Sequence[float],
    tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Scale a flow's features at each of its layers by itself, and at all of them.

    Args:
        flow: through at least two layers.
        windows: [C] contexts; all are in memory at once.
        tokens: divisor of `kl` and `loss`; None = the number of positions from the first on which a feature of the
            flow fires, added up over the contexts.

    Returns:
        A row per scale and layer, `layer` None for all layers at once. `kl`: KL divergence of the next-token
        distribution from the clean one, and `loss`: change of the next-token loss, nats per token; `later`, `others`:
        relative change of what the flow's later features write, sums of f |d|, and of what all other features of their
        SAEs write, over the tokens on which the flow fires in the clean model (NaN where that is nothing); `window`,
        `position`: where the divergence is largest; `tokens`; `firing`, `written`: share of the counted tokens on
        which the flow's features of a layer fire, and what they write per token, means over its layers.
    """
    layers, at = [layer for layer, _ in flow], torch.as_tensor(windows)
    own = {layer: list(features) for layer, features in flow}
    x = {layer: subject.streams(layer)[at][:, : subject.context_tokens] for layer in layers}
    clean = {layer: subject.activations(layer, x[layer]) for layer in layers}
    active = torch.stack([(clean[layer][..., own[layer]] > 0).any(dim=2) for layer in layers])
    fires: Bool[Tensor, "C T"] = active.any(dim=0)
    length = fires.shape[1]
    first = torch.where(fires.any(dim=1), fires.to(torch.uint8).argmax(dim=1), length).cpu()
    tokens = tokens or max(1, int((length - first).sum()))

    def written(layer: int, f: Float[Tensor, "C T F"]) -> Float[np.ndarray, " 2"]:
        """What the flow's features of a layer write, and all others."""
        found = f[fires].sum(dim=0).double() * subject.saes[layer].W_dec.norm(dim=1)
        mine = found[own[layer]].sum()
        return torch.stack([mine, found.sum() - mine]).cpu().numpy()

    before = {layer: written(layer, clean[layer]) for layer in layers}
    rows, passes, after = list[dict[str, Any]](), list[Intervention](), list[dict[int, npt.NDArray[np.float64]]]()
    for scale in scales:
        for places in (*([layer] for layer in layers), layers):
            after.append({})

            def see(layer: int, f: Tensor, found: dict[int, npt.NDArray[np.float64]] = after[-1]) -> None:
                found[layer] = written(layer, f)

            rows.append({"scale": scale, "layer": places[0] if places is not layers else None})
            passes.append(Intervention(places[0], x[places[0]], subject.changes(flow, scale, places, see)))
    ids = subject.ids[at][:, :length]
    divergence, loss = prediction_changes(subject.model, Intervention(layers[0], x[layers[0]], {}), ids, passes, first)
    counted = len(windows) * (length - subject.sink_positions)
    of_flow = {
        "tokens": tokens,
        "firing": float(active.sum()) / counted / len(layers),
        "written": sum(float(mine) for mine, _ in before.values()) / counted / len(layers),
    }
    for row, one, changed, kl, worse in zip(rows, passes, after, divergence, loss, strict=True):
        later = [layer for layer in layers if layer > one.layer]
        sums = [np.sum([each[layer] for layer in later], axis=0) * np.ones(2) for each in (before, changed)]
        relative = np.divide(sums[1], sums[0], out=np.full(2, np.nan), where=sums[0] > 0) - 1
        window, position = divmod(int(kl.argmax()), length)
        row |= {"kl": max(0.0, float(kl.sum())) / tokens, "loss": float(worse.sum()) / tokens}
        row |= {"later": float(relative[0]), "others": float(relative[1])}
        row |= {"window": int(windows[window]), "position": position, **of_flow}
    return rows
