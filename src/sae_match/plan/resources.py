"""What a job needs in memory, on disk and in operations: closed forms of the sizes of its SAEs, model and text.

They count the arrays that are alive at once at the peak of each step, not every temporary; Python and its libraries
come on top. What is not known is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from sae_match.language_model.loading import ModelSize
from sae_match.language_model.residual_streams import layer_bytes
from sae_match.matching.by_similarity import required_bytes

FLOAT = 4
"""Bytes of a float32: SAEs, residual streams and feature activations."""
LIVE_ACTIVATIONS = 6
"""[tokens, F] float32 arrays alive at the peak of a splice: two encodings with their masks, and three on the way
through the permutation."""
LIVE_DIRECTIONS = 4
"""[F, d] float32 arrays that comparing the weights of a pair holds beside the SAEs and their folded copies."""
ACTIVE_SHARE = 0.25
"""Of the features of an SAE, those active on at least one token of a context, as seen on the demo: an upper bound for
wider ones."""
LOGIT_ELEMENTS = 2**25
"""Logits held at once when losses are computed (`language_model.forward_pass`)."""
VARIANTS = 3
"""Permutation variants of a pair by default (matched, vanilla, random), and of a pair further apart."""


@dataclass(frozen=True)
class TextSize:
    """How much text a job reads, at most; None = not known before the text has been cut.

    Attributes:
        windows, splice_windows: those with activations, those with token losses.
        documents: of all windows.
        tokens, batch: tokens per window, windows per forward pass.
        fit_windows: on which controls are fitted, beside the evaluated ones.
        note: where the text comes from, in words.
    """

    windows: int | None
    splice_windows: int | None
    documents: int | None
    tokens: int
    batch: int
    fit_windows: int = 0
    note: str = ""


@dataclass(frozen=True)
class FunctionalShape:
    """How much the functional tests do.

    Attributes:
        pairs: layers and widths of both sides of every pair whose features are tested.
        features: of each pair; 0 = all.
        contexts, tokens: of each feature, and of each context.
        passes: forward passes from the later layer on per context.
        gradients: whether the gradient of every window's loss is computed.
    """

    pairs: tuple[tuple[int, int, int, int], ...]
    features: int
    contexts: int
    tokens: int
    passes: float
    gradients: bool


@dataclass(frozen=True)
class JobShape:
    """The sizes that decide what one job needs.

    Attributes:
        d_model: dimensions of the residual stream.
        widths: number of features of the SAEs of the job's own pairs, in order.
        solver_bytes: peak memory of the solver on the widest pair.
        model, text: None for weights_only, and where the model's size is not known.
        permutations: matchings of each pair that are evaluated, controls included.
        splices: what stands in for each pair's second residual stream.
        similarities: matchings that need the similarity of every pair of features.
        far_pairs: widths of the pairs further apart than neighbors that are matched and compared as well.
        ceilings: of the layers of which there is a second seed, the width of the wider one.
        tested: the functional tests; None where there are none.
        chain: whether the second SAE of each pair is the first one of the next; otherwise `widths` holds both of each.
        flow: whether the flow graph is found.
        steered: tokens of all contexts of flows and random flows, once per scale; 0 without interventions.
    """

    d_model: int
    widths: tuple[int, ...]
    solver_bytes: int
    model: ModelSize | None = None
    text: TextSize | None = None
    permutations: int = VARIANTS
    splices: int = 0
    similarities: int = 0
    far_pairs: tuple[tuple[int, int], ...] = ()
    ceilings: tuple[int, ...] = ()
    tested: FunctionalShape | None = None
    chain: bool = True
    flow: bool = False
    steered: int = 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Widths of each of the job's own pairs."""
        return list(pairwise(self.widths))[:: 1 if self.chain else 2]


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


# -- memory ----------------------------------------------------------------------------------------------


def sae_bytes(d_model: int, width: int) -> int:
    """Bytes of one SAE in float32: W_enc, W_dec, b_enc, threshold, b_dec."""
    return FLOAT * (2 * d_model * width + 2 * width + d_model)


def forward_bytes(model: ModelSize, text: TextSize, losses: bool) -> int:
    """Peak of a forward pass beside the weights: hidden states, and the feed-forward layer, attention or logits."""
    tokens = text.batch * text.tokens
    hidden = 4 * tokens * model.d_model * model.itemsize
    feed_forward = 3 * tokens * model.d_ff * model.itemsize
    # Scores in the model's dtype, once more soft-capped or masked, and their softmax in float32.
    scores = tokens * text.tokens * model.heads * (2 * model.itemsize + FLOAT) if model.eager else 0
    logits = min(LOGIT_ELEMENTS, tokens * model.vocabulary) * (2 * model.itemsize + 2 * FLOAT) if losses else 0
    return hidden + max(feed_forward, scores, logits)


def phases(shape: JobShape, on_gpu: bool, spread: bool = False) -> list[Phase]:
    """The steps of a job and what each holds at its peak.

    Args:
        on_gpu: SAEs and model are on the accelerator.
        spread: accelerate places the model by itself (`model.device_map`), so its weights are counted nowhere.
    """

    def placed(name: str, ram: dict[str, int], device: dict[str, int]) -> Phase:
        return Phase(name, ram, device) if on_gpu else Phase(name, ram | device)

    width = max((*shape.widths, *shape.ceilings))
    one = sae_bytes(shape.d_model, width)
    held = 0 if shape.model is None or spread else shape.model.bytes
    model = {"model": held} if held else {}
    folded = {"two SAEs, folded": 4 * one}
    solving = {"solver, with SAEs and folded copies": shape.solver_bytes}
    rows = {"rows": LIVE_DIRECTIONS * FLOAT * shape.d_model * width}
    checking = placed("check SAEs", {"one SAE being read": one}, {})
    matching = [
        placed("match a pair", solving, model | (folded if on_gpu else {})),
        placed("compare weights", {}, model | folded | rows),
    ]
    if shape.flow:
        from sae_match.flows.partners import required_bytes as flow_bytes  # few jobs need it

        dictionaries = {"SAEs, a second seed and a rotated one": 4 * one}
        matching.append(placed("find the flow graph", {"similarities": flow_bytes(width)}, model | dictionaries | rows))
    text = shape.text
    if shape.model is None or text is None:
        return [checking, *matching]
    loading = [Phase("load the model", {"weights on their way": held}, dict(model))] if on_gpu and held else []
    capturing, resuming = ({"forward pass": forward_bytes(shape.model, text, losses)} for losses in (False, True))
    activations = LIVE_ACTIVATIONS * FLOAT * text.batch * text.tokens * width
    loaded = model | {"two SAEs": 2 * one, "activations": activations}
    correlating = []
    if shape.similarities:
        products = {"correlations, on the device": FLOAT * width**2} if on_gpu else {}
        solving = {"correlations and their assignment": required_bytes(width, width)}
        correlating = [placed("match by correlation", solving, loaded | products)]
    # Counts per document are int64, of two SAEs and of one co-activation table per permutation.
    counts = {"counts": 8 * text.documents * width * (2 + shape.permutations)} if text.documents is not None else {}
    # Products of the effects on the loss, and their correlations.
    effects = {"effects": 2 * FLOAT * width * (width if shape.tested is None else shape.tested.features or width)}
    # Token losses on some windows only copy those out of the memory-mapped streams of both layers.
    chosen = text.splice_windows if text.splice_windows not in (None, text.windows) else 0
    subset = {"chosen windows": 2 * layer_bytes(chosen or 0, text.tokens, shape.d_model)} if chosen else {}
    return [
        checking,
        *loading,
        placed("capture residual streams", {}, model | capturing),
        *matching,
        *correlating,
        placed("activations of a pair", subset, loaded | counts),
        placed("splice and resume", subset, loaded | resuming),
        *([placed("functional tests", {}, loaded | resuming | effects)] if shape.tested is not None else []),
    ]


# -- disk ------------------------------------------------------------------------------------------------


def passes_bytes(shape: JobShape) -> int | None:
    """What all passes over the tokens of the job's pairs need on disk until it is done: the counts in the narrowest
    type that holds a document's tokens, and the sums of each splice in float64."""
    text = shape.text
    if text is None or text.windows is None or text.documents is None:
        return None
    tokens = text.windows * text.tokens // max(1, text.documents)
    itemsize = 1 if tokens < 2**8 else 2 if tokens < 2**16 else 4
    # Of each pass the numbers counted per document, and the splices.
    passes = [((1 + shape.permutations) * a + b + 1, shape.splices + 1) for a, b in shape.pairs]
    # Composed, exact and random, and beside their splices the reconstruction and the residual of the first layer.
    passes += [((1 + VARIANTS) * a + b + 1, VARIANTS + 2 + 1) for a, b in shape.far_pairs]
    passes += [(3 * width + 1, 2) for width in shape.ceilings]
    return text.documents * sum(itemsize * counted + 8 * (shape.d_model + 1) * sums for counted, sums in passes)


def effects_bytes(tested: FunctionalShape) -> int:
    """What the effects of tested features need in the store, where they stay: correlations with every feature of the
    later SAE, and in each context, with and without, the activations of the features that are active at all."""
    per_partner = FLOAT * tested.gradients + 2 * FLOAT * tested.contexts * ACTIVE_SHARE
    return int(sum((tested.features or a) * b * per_partner for _, _, a, b in tested.pairs))


# -- operations ------------------------------------------------------------------------------------------


def capture_flops(model: ModelSize, windows: int, window_tokens: int, last: int) -> float:
    """Operations of one pass over all windows up to block `last`."""
    return float(windows * window_tokens * (last + 1) * _block_flops(model, window_tokens))


def _block_flops(model: ModelSize, window_tokens: int) -> int:
    """Per token: 2 per weight, and attention."""
    return 2 * model.block_parameters + 4 * window_tokens * model.d_model


def activation_flops(shape: JobShape, text: TextSize, windows: int) -> float:
    """Operations of encoding every pair's tokens with both SAEs and decoding every splice once."""
    products = sum(a + (1 + shape.splices) * b for a, b in shape.pairs)
    products += sum(2 * a + (1 + VARIANTS) * b for a, b in shape.far_pairs)  # and one reconstruction of the first layer
    products += sum(3 * width for width in shape.ceilings)  # both seeds encode, one decodes
    # Correlations take two passes, the second with the products of all activations.
    correlating = sum(4 * shape.d_model * (a + b) + 2 * a * b for a, b in shape.pairs)
    fitting = shape.similarities * text.fit_windows * correlating
    return float(text.tokens * (windows * 2 * shape.d_model * products + fitting))


def splice_flops(model: ModelSize, shape: JobShape, windows: int, window_tokens: int, layers: list[int]) -> float:
    """Operations of resuming the model after layer t+1 of every pair, once per splice, and once without one.

    Args:
        windows: those with token losses.
        layers: the span; blocks after a pair's second layer, and the head, are computed.
    """
    head = 2 * model.d_model * model.vocabulary
    resumed = [(model.n_layers - 1 - layer) * _block_flops(model, window_tokens) + head for layer in layers[1:]]
    saes = sum(2 * shape.d_model * (a + b + shape.splices * b) for a, b in shape.pairs)
    return float(windows * window_tokens * (shape.splices * sum(resumed) + resumed[-1] + saes))


def steering_flops(model: ModelSize, shape: JobShape, window_tokens: int, layers: list[int]) -> float:
    """Operations of interventions along flows: what follows on each layer of the span, and on the first once more."""
    head = 2 * model.d_model * model.vocabulary
    after = [(model.n_layers - 1 - layer) * _block_flops(model, window_tokens) + head for layer in (*layers, layers[0])]
    return float(shape.steered * sum(after))


def functional_flops(model: ModelSize, shape: JobShape, text: TextSize, windows: int) -> float:
    """Operations of the functional tests: blocks between two layers, what follows on them, and gradients."""
    tested, total = shape.tested, 0.0
    if tested is None:
        return total
    for layer, layer_to, a, b in tested.pairs:
        tokens = (tested.features or a) * tested.contexts * tested.tokens
        block = _block_flops(model, tested.tokens)
        encoding = 2 * shape.d_model * (a + 2 * b + (a + b if tested.passes else 0))
        rest, head = (model.n_layers - 1 - layer_to) * block, 2 * model.d_model * model.vocabulary
        total += tokens * ((layer_to - layer) * block + encoding + tested.passes * (rest + head))
        if tested.gradients:  # forward and backward, without gradients of the weights
            after = (model.n_layers - 1 - layer) * _block_flops(model, text.tokens) + head
            total += windows * text.tokens * (2 * after + 4 * shape.d_model * (a + b))
    return total
