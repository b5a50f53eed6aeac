"""What a job needs in memory, on disk and in time: pure functions of its shape, each a closed form.

The plan of a dry run prints these numbers, and a real run refuses to start on the same ones. They count the arrays that
are alive at once at the peak of each step, not every temporary; `base` memory (Python and its libraries) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from sae_match.language_model.facts import ModelSize
from sae_match.language_model.residual_streams import layer_bytes
from sae_match.matching.by_similarity import required_bytes

FLOAT = 4
"""Bytes of a float32: SAEs, residual streams and feature activations."""
LIVE_ACTIVATIONS = 6
"""[tokens, F] float32 arrays alive at the peak of a splice: two encodings with their masks, and three on the way
through the permutation."""
LIVE_DIRECTIONS = 4
"""[F, d] float32 arrays that comparing the weights of a pair holds beside the SAEs and their folded copies."""
LOGIT_ELEMENTS = 2**25
"""Logits held at once when losses are computed (`language_model.forward_pass`)."""
VARIANTS = 3
"""Permutation variants of a pair by default (matched, vanilla, random), and of a pair further apart."""
SAE_READS_WEIGHTS, SAE_READS_FULL = 2, 4
"""How often each SAE is read: checked, matched; then for activations, and for delta loss."""


@dataclass(frozen=True)
class JobShape:
    """The sizes that decide what one job needs.

    Attributes:
        d_model: dimensions of the residual stream.
        widths: number of features per layer of the span, in order.
        solver_bytes: peak memory of the solver on the widest pair.
        batch_windows, window_tokens: windows per forward pass, tokens per window.
        windows, splice_windows, documents: at most; windows with activations, those with token losses, documents.
        model: None for weights_only.
        permutations: matchings of each pair that are evaluated, controls included.
        splices: what stands in for each pair's second residual stream.
        decodings: how often a token is decoded by an SAE for all of them.
        similarities: matchings that need the similarity of every pair of features.
        fit_windows: windows on which controls are fitted, beside the evaluated ones.
        ceilings: widths of the layers of which there is a second seed.
        far_pairs: widths of the pairs further apart than neighbours that are matched and compared as well.
    """

    d_model: int
    widths: tuple[int, ...]
    solver_bytes: int
    batch_windows: int = 0
    window_tokens: int = 0
    windows: int = 0
    splice_windows: int = 0
    documents: int = 0
    model: ModelSize | None = None
    permutations: int = VARIANTS
    splices: int = 0
    decodings: int = 0
    similarities: int = 0
    fit_windows: int = 0
    far_pairs: tuple[tuple[int, int], ...] = ()
    ceilings: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """The widest SAE."""
        return max(self.widths)


@dataclass(frozen=True)
class Phase:
    """A step of a job with what it holds at its peak.

    Attributes:
        ram, gpu: bytes by what they hold, in main memory and on the accelerator (empty without one).
    """

    name: str
    ram: dict[str, int] = field(default_factory=dict)
    gpu: dict[str, int] = field(default_factory=dict)

    @property
    def ram_bytes(self) -> int:
        """Main memory in all."""
        return sum(self.ram.values())

    @property
    def gpu_bytes(self) -> int:
        """Accelerator memory in all."""
        return sum(self.gpu.values())


def sae_bytes(d_model: int, width: int) -> int:
    """Bytes of one SAE in float32: W_enc, W_dec, b_enc, threshold, b_dec."""
    return FLOAT * (2 * d_model * width + 2 * width + d_model)


def forward_bytes(model: ModelSize, batch_windows: int, window_tokens: int, losses: bool = True) -> int:
    """Peak of a forward pass beside the weights: hidden states, and the feed-forward layer, attention or logits.

    Args:
        losses: whether the head is computed.
    """
    tokens = batch_windows * window_tokens
    hidden = 4 * tokens * model.d_model * model.itemsize
    feed_forward = 3 * tokens * model.d_ff * model.itemsize
    # Scores in the model's dtype, once more soft-capped or masked, and their softmax in float32.
    scores = batch_windows * model.heads * window_tokens**2 * (2 * model.itemsize + FLOAT) if model.eager else 0
    logits = min(LOGIT_ELEMENTS, tokens * model.vocabulary) * (2 * model.itemsize + 2 * FLOAT) if losses else 0
    return hidden + max(feed_forward, scores, logits)


def activation_bytes(batch_windows: int, window_tokens: int, width: int) -> int:
    """Peak of encoding a batch with two SAEs and splicing it."""
    return LIVE_ACTIVATIONS * FLOAT * batch_windows * window_tokens * width


def count_bytes(documents: int, width: int, permutations: int = VARIANTS) -> int:
    """Activation counts of a pair per document: int64, two SAEs and one co-activation table per variant."""
    return 8 * documents * width * (2 + permutations)


def passes_bytes(shape: JobShape) -> int:
    """What all passes over the tokens of the job's pairs need on disk until it is done: the counts in the narrowest
    type that holds a document's tokens, and the sums of each splice in float64."""
    tokens = shape.windows * shape.window_tokens // max(1, shape.documents)
    itemsize = 1 if tokens < 2**8 else 2 if tokens < 2**16 else 4
    sums = 8 * shape.documents * (shape.d_model + 1)
    found = 0
    for a, b in pairs(shape.widths):
        found += itemsize * shape.documents * ((1 + shape.permutations) * a + b + 1) + sums * (shape.splices + 1)
    for a, b in shape.far_pairs:
        # Composed, exact and random, and beside their splices the reconstruction and the residual of the first layer.
        found += itemsize * shape.documents * ((1 + VARIANTS) * a + b + 1) + sums * (VARIANTS + 2 + 1)
    for width in shape.ceilings:
        found += itemsize * shape.documents * (3 * width + 1) + sums * 2
    return found


def phases(shape: JobShape, on_gpu: bool, spread: bool = False) -> list[Phase]:
    """The steps of a job and what each holds at its peak.

    Args:
        on_gpu: SAEs and model are on the accelerator.
        spread: accelerate places the model by itself (`model.device_map`), so its weights are counted nowhere.
    """
    pair = 2 * sae_bytes(shape.d_model, shape.width)
    one_sae = pair // 2
    weights = pair + LIVE_DIRECTIONS * FLOAT * shape.d_model * shape.width
    held = 0 if shape.model is None or spread else shape.model.bytes
    model = {"model": held} if held else {}
    steps = [_placed("check SAEs", {"one SAE being read": one_sae}, {}, on_gpu)]
    if shape.model is not None:
        sizes = shape.model, shape.batch_windows, shape.window_tokens
        capturing, forward = ({"forward pass": forward_bytes(*sizes, losses=losses)} for losses in (False, True))
        if on_gpu and held:
            steps.append(Phase("load the model", {"weights on their way": held}, dict(model)))
        steps.append(_placed("capture residual streams", {}, model | capturing, on_gpu))
    solving = {"solver, with SAEs and folded copies": shape.solver_bytes}
    steps.append(_placed("match a pair", solving, model | ({"two SAEs, folded": 2 * pair} if on_gpu else {}), on_gpu))
    steps.append(_placed("compare weights", {}, model | {"two SAEs, folded": 2 * pair, "rows": weights - pair}, on_gpu))
    if shape.model is not None:
        activations = activation_bytes(shape.batch_windows, shape.window_tokens, shape.width)
        loaded = model | {"two SAEs": pair, "activations": activations}
        counts = {"counts": count_bytes(shape.documents, shape.width, shape.permutations)}
        if shape.similarities:
            products = {"correlations, on the device": FLOAT * shape.width**2}
            solving = {"correlations and their assignment": required_bytes(shape.width, shape.width)}
            steps.append(_placed("match by correlation", solving, loaded | (products if on_gpu else {}), on_gpu))
        steps.append(_placed("activations of a pair", _subset(shape), loaded | counts, on_gpu))
        steps.append(_placed("splice and resume", _subset(shape), loaded | forward, on_gpu))
    return steps


def _subset(shape: JobShape) -> dict[str, int]:
    """Token losses on some windows only copy those out of the memory-mapped streams of both layers."""
    if shape.splice_windows == shape.windows:
        return {}
    return {"chosen windows": 2 * layer_bytes(shape.splice_windows, shape.window_tokens, shape.d_model)}


def _placed(name: str, ram: dict[str, int], device: dict[str, int], on_gpu: bool) -> Phase:
    return Phase(name, ram, device) if on_gpu else Phase(name, ram | device)


def capture_flops(model: ModelSize, windows: int, window_tokens: int, last: int) -> float:
    """Operations of one pass over all windows up to block `last`: 2 per weight and token, and attention."""
    per_token = (last + 1) * (2 * model.block_parameters + 4 * window_tokens * model.d_model)
    return float(windows * window_tokens * per_token)


def activation_flops(shape: JobShape) -> float:
    """Operations of encoding every pair's tokens with both SAEs and decoding every splice."""
    per_token = [2 * shape.d_model * (a + b + shape.decodings * b) for a, b in pairs(shape.widths)]
    # Three permutations and one reconstruction of the first layer.
    per_token += [2 * shape.d_model * (2 * a + b + VARIANTS * b) for a, b in shape.far_pairs]
    # Two seeds of a layer: both encode, one decodes.
    per_token += [2 * shape.d_model * (2 + 1) * width for width in shape.ceilings]
    found = float(shape.windows * shape.window_tokens * sum(per_token))
    if shape.similarities:  # two passes, the second with the products of all activations
        correlating = [4 * shape.d_model * (a + b) + 2 * a * b for a, b in pairs(shape.widths)]
        found += float(shape.similarities * shape.fit_windows * shape.window_tokens * sum(correlating))
    return found


def encoding_flops(shape: JobShape) -> float:
    """Operations of encoding every layer's tokens once."""
    return float(shape.windows * shape.window_tokens * sum(2 * shape.d_model * width for width in shape.widths))


def splice_flops(model: ModelSize, shape: JobShape, layers: list[int]) -> float:
    """Operations of resuming the model after layer t+1 of every pair, once per splice, and once without one.

    Args:
        layers: the span; blocks after a pair's second layer, and the head, are computed.
    """
    head = 2 * model.d_model * model.vocabulary
    block = 2 * model.block_parameters + 4 * shape.window_tokens * model.d_model
    resumed = [(model.n_layers - 1 - layer) * block + head for layer in layers[1:]]
    splices = shape.splices
    sae = [2 * shape.d_model * (a + b + splices * b) for a, b in pairs(shape.widths)]
    return float(shape.splice_windows * shape.window_tokens * (splices * sum(resumed) + resumed[-1] + sum(sae)))


def pairs(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Widths of each adjacent pair."""
    return list(pairwise(widths))
