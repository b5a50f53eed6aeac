"""Does an SAE do on the text what it was trained to do? Warnings that name the likely cause where it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_match.saes import Activation, ActivationKind, SparseAutoencoder

SAMPLE_TOKENS, SAMPLE_WINDOWS, BATCH_TOKENS = 1024, 16, 128
LOW_R2, DOUBTFUL_R2 = 0.3, 0.6
"""An SAE that explains less of a residual stream than the first was not trained on it, or is read wrongly; one that
explains less than the second is read in other ways, too."""
BETTER = 0.02
"""By so much more R² another layer is the SAE's own. Those of SmolLM2-135M, with L0 from 16 to 128, explain their own
layer better than either neighbor by 0.02 to 0.12."""
CLEAR = 0.1
"""By so much more R² another reading of the weights is the likely cause."""
L0_FACTOR = 2.0
"""Another text does not explain an L0 beyond this factor of the stated one."""
DEAD_SHARE, FIRINGS = 0.5, 100.0
"""More than this share of the features never fires, though one fires so often on average."""
TOP_K = (16, 32, 64, 128, 256)
_L0 = re.compile(r"_l0_(\d+)(?=[/\\. ]|$)")
UNIT_NORM = 0.05
"""Decoder norms within this of 1 make no difference."""


Stream = Callable[[int], Float[Tensor, "windows tokens d"]]


class Fit(NamedTuple):
    """R² of an SAE's reconstruction (SAELens: `explained_variance`), and active features per token."""

    r2: float
    l0: float


def sample(x: Float[Tensor, "windows tokens d"], sink_positions: int = 1) -> Float[Tensor, "sampled d"]:
    """About `SAMPLE_TOKENS` tokens from all parts of the text and all positions but the sinks."""
    counted = max(1, x.shape[1] - sink_positions)
    n = min(len(x), max(SAMPLE_WINDOWS, math.ceil(SAMPLE_TOKENS / counted)))
    rows = torch.linspace(0, len(x) - 1, n).long()
    step = math.ceil(n * counted / SAMPLE_TOKENS)
    return x[rows, sink_positions::step].flatten(0, 1).to(torch.float32)


@torch.no_grad()
def check_encoding(
    sae: SparseAutoencoder, stream: Stream, layer: int, layers: Collection[int] = (), sink_positions: int = 1
) -> list[str]:
    """A warning where R² or L0 of an SAE on a sample of its layer's residual stream are not what they should be.

    It encodes 1,024 tokens of its layer and of either neighbor. Where something is wrong, further layers follow, and
    other readings of its weights, of which the one that explains the stream best is named.

    Args:
        stream: from a layer to resid_post on some text.
        layer: the layer that the SAE is taken for.
        layers: those whose residual streams there are.
    """

    def at(place: int) -> Fit:
        return measure(sae, sample(stream(place), sink_positions).to(sae.device))

    own, stated, wrong = at(layer), stated_l0(sae), list[str]()
    best, there = _best_layer(at, own, layer, layers)
    if best != layer:
        wrong.append(f"explains layer {best} (R² {there.r2:.2f}) better than its own (R² {own.r2:.2f})")
    elif own.r2 < DOUBTFUL_R2:
        wrong.append(f"has an R² of {own.r2:.2f} on its own layer")
    if stated is not None and not _near(own.l0, stated):
        wrong.append(f"has an L0 of {own.l0:.0f} where the checkpoint states {stated:g}")
    elif own.l0 > sae.width / 2:
        wrong.append(f"has an L0 of {own.l0:.0f}, above half of its {sae.width} features")
    if not wrong:
        return []
    causes: list[tuple[Fit, str, float]] = []
    if best != layer:
        reads = f"it reads the input of block {layer} (hook_resid_pre)" if best == layer - 1 else "another layer's SAE"
        causes.append((there, reads, BETTER))
    x = sample(stream(layer), sink_positions).to(sae.device)
    causes += [(measure(other, x, scale), cause, CLEAR) for cause, other, scale in _readings(sae, x, stated)]
    likely = _likely(causes, own, stated)
    if likely is None and len(wrong) == 1 and best == layer and LOW_R2 <= own.r2 < DOUBTFUL_R2:
        return []  # nothing but that R², which an SAE of few features may have
    return [f"layer {layer}: the SAE {' and '.join(wrong)}. {likely or _unlikely(own)}"]


def check_activity(layer: int, active: Int[Tensor, "documents F"], tokens: Int[Tensor, " documents"]) -> list[str]:
    """A warning where most features never fire, on a text on which each could have fired many times.

    Args:
        active: tokens on which each feature fires.
        tokens: counted tokens.
    """
    counts = active.sum(dim=0)
    dead, mean = float((counts == 0).float().mean()), float(counts.float().mean())
    if dead <= DEAD_SHARE or mean < FIRINGS:
        return []
    return [
        f"layer {layer}: {100 * dead:.0f} % of the features never fire on {int(tokens.sum())} tokens, and one fires "
        f"{mean:.0f} times on average. Likely cause: they died in training, or the text is of another kind"
    ]


def stated_l0(sae: SparseAutoencoder) -> float | None:
    """Active features per token that the checkpoint states: its k, or in its name (`average_l0_71`)."""
    named = _L0.search(sae.source)
    return sae.stated_l0 or sae.activation.k or (float(named[1]) if named else None)


def measure(sae: SparseAutoencoder, x: Float[Tensor, "tokens d"], scale: Tensor | float = 1.0) -> Fit:
    """How an SAE reconstructs inputs that are multiplied by `scale` before and divided by it afterwards."""
    scales = torch.as_tensor(scale, device=x.device).expand(len(x), 1)
    error = active = 0.0
    for part, by in zip(x.split(BATCH_TOKENS), scales.split(BATCH_TOKENS), strict=True):
        f = sae.encode(part * by)
        error += float((sae.decode(f) / by - part).square().sum(dtype=torch.float64))
        active += float((f > 0).sum())
    total = float((x - x.mean(dim=0)).square().sum(dtype=torch.float64))
    return Fit(1 - error / max(total, 1e-30), active / max(len(x), 1))


def _best_layer(at: Callable[[int], Fit], own: Fit, layer: int, layers: Collection[int]) -> tuple[int, Fit]:
    """The layer that the SAE explains best, found by going on in either direction while R² grows."""
    best, there = layer, own
    for step in (-1, 1):
        place, last = layer + step, own
        while place in layers and (found := at(place)).r2 > last.r2:
            if found.r2 > max(there.r2, own.r2 + BETTER, LOW_R2):
                best, there = place, found
            place, last = place + step, found
    return best, there


def _near(l0: float, stated: float) -> bool:
    return stated / L0_FACTOR <= l0 <= stated * L0_FACTOR


def _likely(causes: list[tuple[Fit, str, float]], own: Fit, stated: float | None) -> str | None:
    """The cause without which the SAE would fit best, if it then fits clearly better, or has the stated L0.

    Args:
        causes: how the SAE fits without it, the cause, and by how much the R² must be larger.
    """
    clear = [(fit, cause, more) for fit, cause, more in causes if fit.r2 > max(own.r2 + more, LOW_R2)]
    if stated is not None and not _near(own.l0, stated) and not clear:
        clear = [found for found in causes if _near(found[0].l0, stated) and found[0].r2 > max(own.r2 - CLEAR, LOW_R2)]
    if not clear:
        return None
    fit, cause, _ = max(clear)
    return f"Likely cause: {cause}; read so, its R² is {fit.r2:.2f} and its L0 {fit.l0:.0f}"


def _unlikely(own: Fit) -> str:
    if own.r2 >= LOW_R2:
        return f"Its R² is {own.r2:.2f}. Likely cause: an SAE of another L0, or text unlike that of its training"
    return (
        "Neither normalized inputs nor decoder norms, another activation or an input bias explain it. Likely cause: an "
        "SAE of another layer, hook point or model"
    )


def _readings(
    sae: SparseAutoencoder, x: Tensor, stated: float | None
) -> Iterator[tuple[str, SparseAutoencoder, Tensor | float]]:
    """What the weights could mean instead: cause, SAE, and what multiplies its inputs."""
    norms, shift = sae.W_dec.norm(dim=1).clamp(min=1e-8), sae.b_dec @ sae.W_enc
    lengths = x.norm(dim=1, keepdim=True)
    yield "missing normalization (expected_average_only_in)", sae, float(x.shape[1] ** 0.5 / lengths.mean())
    yield "missing normalization of each input (constant_norm_rescale, layer_norm)", sae, x.shape[1] ** 0.5 / lengths
    yield "b_dec is to be subtracted from the input", sae.replace(b_enc=sae.b_enc - shift), 1.0
    yield "b_dec is not to be subtracted from the input", sae.replace(b_enc=sae.b_enc + shift), 1.0
    ranked = sae.activation.kind is ActivationKind.topk
    if float((norms - 1).abs().max()) > UNIT_NORM:
        cause = "decoder norms that are not folded into "
        if ranked:
            scaled = sae.replace(W_enc=sae.W_enc * norms, b_enc=sae.b_enc * norms, W_dec=sae.W_dec / norms[:, None])
            yield cause + "the encoder, by which features are ranked", scaled, 1.0
        else:
            yield cause + "the thresholds", sae.replace(threshold=sae.threshold / norms), 1.0
            yield cause + "the encoder", sae.replace(W_enc=sae.W_enc * norms, b_enc=sae.b_enc * norms), 1.0
    if not ranked and not bool(sae.threshold.any()):
        for k in (k for k in ((int(stated),) if stated else TOP_K) if k < sae.width):
            top_k = Activation(ActivationKind.topk, k=k)
            yield f"a TopK SAE (k = {k}) read as ReLU", sae.replace(activation=top_k), 1.0
