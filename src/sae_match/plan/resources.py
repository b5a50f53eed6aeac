"""What a job needs in memory, on disk and in time: closed forms of the sizes of its SAEs, model and text.

A dry run prints these numbers, and a real run refuses to start on the same ones. They count the arrays that are alive
at once at the peak of each step, not every temporary; Python and its libraries come on top. What is not known is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from sae_match.errors import UserError
from sae_match.files import GIB
from sae_match.language_model.loading import ModelSize
from sae_match.language_model.residual_streams import layer_bytes
from sae_match.matching.by_similarity import required_bytes
from sae_match.plan.machine import Machine, free_disk, matmul_flops

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
FEATURE_ROW_BYTES = 96
"""A feature's row in features.parquet and its entry in a permutation, uncompressed."""
RECORD_BYTES = 20 * 2**20
"""Figures, tables and the W&B mirror of a job, generously."""
EFFICIENCY = {"cpu": 0.8, "cuda": 0.4}
"""Share of a plain matrix product's rate that whole steps reach."""
DOWNLOAD_RATE = 25e6
"""Bytes per second, assumed."""
READ_RATE = 400e6
"""Bytes per second of reading, checking and hashing an SAE, as seen on one core."""


@dataclass(frozen=True)
class TextSize:
    """How much text a job reads, at most; None = not known before the text has been cut.

    Attributes:
        windows, splice_windows: those with activations, those with token losses.
        documents: of all windows.
        fit_windows: on which controls are fitted, beside the evaluated ones.
        tokens, batch: tokens per window, windows per forward pass.
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
class JobShape:
    """The sizes that decide what one job needs.

    Attributes:
        d_model: dimensions of the residual stream.
        widths: number of features per layer of the span, in order.
        solver_bytes: peak memory of the solver on the widest pair.
        model, text: None for weights_only, and where the model's size is not known.
        permutations: matchings of each pair that are evaluated, controls included.
        splices: what stands in for each pair's second residual stream.
        similarities: matchings that need the similarity of every pair of features.
        far_pairs: widths of the pairs further apart than neighbours that are matched and compared as well.
        ceilings: widths of the layers of which there is a second seed.
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

    @property
    def width(self) -> int:
        """The widest SAE."""
        return max(self.widths)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Widths of each adjacent pair."""
        return list(pairwise(self.widths))


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


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a job adds below one directory, None where they are not known; `key` is what chooses the directory."""

    what: str
    path: Path
    bytes: int | None
    key: str


@dataclass(frozen=True)
class Duration:
    """One step's time, with the numbers behind it; None where nothing is known about it."""

    step: str
    seconds: float | None
    because: str


# -- memory ----------------------------------------------------------------------------------------------


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


def count_bytes(documents: int, width: int, permutations: int = VARIANTS) -> int:
    """Activation counts of a pair per document: int64, two SAEs and one co-activation table per variant."""
    return 8 * documents * width * (2 + permutations)


def phases(shape: JobShape, on_gpu: bool, spread: bool = False) -> list[Phase]:
    """The steps of a job and what each holds at its peak.

    Args:
        on_gpu: SAEs and model are on the accelerator.
        spread: accelerate places the model by itself (`model.device_map`), so its weights are counted nowhere.
    """
    one = sae_bytes(shape.d_model, shape.width)
    held = 0 if shape.model is None or spread else shape.model.bytes
    model = {"model": held} if held else {}
    folded = {"two SAEs, folded": 4 * one}
    rows = LIVE_DIRECTIONS * FLOAT * shape.d_model * shape.width
    solving = {"solver, with SAEs and folded copies": shape.solver_bytes}
    matching = [
        _placed("match a pair", solving, model | (folded if on_gpu else {}), on_gpu),
        _placed("compare weights", {}, model | folded | {"rows": rows}, on_gpu),
    ]
    checking = _placed("check SAEs", {"one SAE being read": one}, {}, on_gpu)
    if shape.model is None or shape.text is None:
        return [checking, *matching]
    text, size = shape.text, (shape.model, shape.text.batch, shape.text.tokens)
    capturing, forward = ({"forward pass": forward_bytes(*size, losses=losses)} for losses in (False, True))
    loading = [Phase("load the model", {"weights on their way": held}, dict(model))] if on_gpu and held else []
    activations = LIVE_ACTIVATIONS * FLOAT * text.batch * text.tokens * shape.width
    loaded = model | {"two SAEs": 2 * one, "activations": activations}
    counts = {} if text.documents is None else {"counts": count_bytes(text.documents, shape.width, shape.permutations)}
    correlating = []
    if shape.similarities:
        products = {"correlations, on the device": FLOAT * shape.width**2}
        solving = {"correlations and their assignment": required_bytes(shape.width, shape.width)}
        correlating = [_placed("match by correlation", solving, loaded | (products if on_gpu else {}), on_gpu)]
    # Token losses on some windows only copy those out of the memory-mapped streams of both layers.
    chosen = text.splice_windows if text.splice_windows not in (None, text.windows) else 0
    subset = {"chosen windows": 2 * layer_bytes(chosen or 0, text.tokens, shape.d_model)} if chosen else {}
    return [
        checking,
        *loading,
        _placed("capture residual streams", {}, model | capturing, on_gpu),
        *matching,
        *correlating,
        _placed("activations of a pair", subset, loaded | counts, on_gpu),
        _placed("splice and resume", subset, loaded | forward, on_gpu),
    ]


def _placed(name: str, ram: dict[str, int], device: dict[str, int], on_gpu: bool) -> Phase:
    return Phase(name, ram, device) if on_gpu else Phase(name, ram | device)


def check_memory(steps: list[Phase], machine: Machine, limit_gib: float | None) -> None:
    """Refuse a job one of whose steps needs more memory than there is.

    Args:
        limit_gib: main memory that the user allows a solver, where that is more than is available now.

    Raises:
        UserError: naming the step that needs most.
    """
    found = []
    for kind, what, limit in (
        ("ram", "main memory", max(machine.ram_free, int((limit_gib or 0) * GIB))),
        ("gpu", f"memory of {machine.gpu}", machine.gpu_free),
    ):
        worst = max(steps, key=lambda step: sum(getattr(step, kind).values()), default=Phase("none"))
        held: dict[str, int] = getattr(worst, kind)
        if sum(held.values()) > limit:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items())
            found.append(
                f"the step '{worst.name}' needs {sum(held.values()) / GIB:.1f} GiB of {what} ({parts}), but "
                f"{limit / GIB:.1f} GiB are free. Lower evaluation.batch_windows, use model.dtype=bfloat16 or "
                "model.device_map=auto, evaluation=weights_only, or a machine with more memory."
            )
    if found:
        raise UserError("\n".join(found))


# -- disk ------------------------------------------------------------------------------------------------


def passes_bytes(shape: JobShape) -> int | None:
    """What all passes over the tokens of the job's pairs need on disk until it is done: the counts in the narrowest
    type that holds a document's tokens, and the sums of each splice in float64."""
    text = shape.text
    if text is None or text.windows is None or text.documents is None:
        return None
    tokens = text.windows * text.tokens // max(1, text.documents)
    itemsize = 1 if tokens < 2**8 else 2 if tokens < 2**16 else 4
    sums = 8 * (shape.d_model + 1)
    each = 0
    for a, b in shape.pairs:
        each += itemsize * ((1 + shape.permutations) * a + b + 1) + sums * (shape.splices + 1)
    for a, b in shape.far_pairs:
        # Composed, exact and random, and beside their splices the reconstruction and the residual of the first layer.
        each += itemsize * ((1 + VARIANTS) * a + b + 1) + sums * (VARIANTS + 2 + 1)
    for width in shape.ceilings:
        each += itemsize * (3 * width + 1) + sums * 2
    return text.documents * each


def check_disk(needs: Iterable[DiskNeed]) -> None:
    """Refuse a job that one of the disks has no room for, as far as the needs are known.

    Raises:
        UserError: every file system that is too full, with what would go there.
    """
    by_disk: dict[int, list[DiskNeed]] = defaultdict(list)
    free: dict[int, int | None] = {}
    for need in needs:
        device, free_bytes = free_disk(need.path)
        if need.bytes:
            by_disk[device].append(need)
        free[device] = free_bytes
    found = []
    for device, group in by_disk.items():
        total, room = sum(need.bytes or 0 for need in group), free[device]
        if room is not None and total > room:  # one without size is refused as not writable
            parts = ", ".join(f"{need.what} {(need.bytes or 0) / GIB:.1f} in {need.path}" for need in group)
            keys = " or ".join(need.key for need in group)
            found.append(
                f"the disk needs {total / GIB:.1f} GiB ({parts}), but {room / GIB:.1f} GiB are free. Use fewer "
                f"documents or layers, or another disk for {keys}."
            )
    if found:
        raise UserError("\n".join(found))


# -- time ------------------------------------------------------------------------------------------------


def capture_flops(model: ModelSize, windows: int, window_tokens: int, last: int) -> float:
    """Operations of one pass over all windows up to block `last`: 2 per weight and token, and attention."""
    per_token = (last + 1) * (2 * model.block_parameters + 4 * window_tokens * model.d_model)
    return float(windows * window_tokens * per_token)


def activation_flops(shape: JobShape, text: TextSize, windows: int) -> float:
    """Operations of encoding every pair's tokens with both SAEs and decoding every splice once."""
    per_token = [2 * shape.d_model * (a + b + shape.splices * b) for a, b in shape.pairs]
    # Three permutations and one reconstruction of the first layer.
    per_token += [2 * shape.d_model * (2 * a + b + VARIANTS * b) for a, b in shape.far_pairs]
    # Two seeds of a layer: both encode, one decodes.
    per_token += [2 * shape.d_model * (2 + 1) * width for width in shape.ceilings]
    # Correlations take two passes, the second with the products of all activations.
    correlating = [4 * shape.d_model * (a + b) + 2 * a * b for a, b in shape.pairs]
    fitting = shape.similarities * text.fit_windows * sum(correlating)
    return float(text.tokens * (windows * sum(per_token) + fitting))


def splice_flops(model: ModelSize, shape: JobShape, windows: int, window_tokens: int, layers: list[int]) -> float:
    """Operations of resuming the model after layer t+1 of every pair, once per splice, and once without one.

    Args:
        windows: those with token losses.
        layers: the span; blocks after a pair's second layer, and the head, are computed.
    """
    head = 2 * model.d_model * model.vocabulary
    block = 2 * model.block_parameters + 4 * window_tokens * model.d_model
    resumed = [(model.n_layers - 1 - layer) * block + head for layer in layers[1:]]
    splices = shape.splices
    sae = [2 * shape.d_model * (a + b + splices * b) for a, b in shape.pairs]
    return float(windows * window_tokens * (splices * sum(resumed) + resumed[-1] + sum(sae)))


def durations(
    shape: JobShape | None, downloads: int | None, device: torch.device, dtype: str, layers: list[int]
) -> Iterator[Duration]:
    """Time of the steps whose work can be counted, at a rate measured on this machine in about a second.

    Good enough to tell minutes from days. An assignment takes as long as its costs make it; it is not predicted.

    Args:
        downloads: bytes.
        dtype: the model's.
    """
    rate = f"at {DOWNLOAD_RATE / 1e6:.0f} MB/s"
    if downloads is None:
        yield Duration("download", None, "sizes not known")
    else:
        yield Duration("download", downloads / DOWNLOAD_RATE, f"{downloads / 1e9:.2f} GB {rate}")
    if shape is None:
        return
    reads = SAE_READS_WEIGHTS if shape.model is None else SAE_READS_FULL
    read = reads * sum(sae_bytes(shape.d_model, width) for width in shape.widths)
    read += sum(sae_bytes(shape.d_model, b) for _, b in shape.far_pairs)
    because = f"{read / 1e9:.1f} GB, {reads} times each, at {READ_RATE / 1e6:.0f} MB/s"
    yield Duration("read SAEs", read / READ_RATE, because)
    yield Duration("match all pairs", None, "depends on the SAEs")
    model, text = shape.model, shape.text
    if model is None or text is None:
        return
    if text.windows is None or text.splice_windows is None:
        yield Duration("capture, activations and splices", None, "number of windows not known")
        return
    read_windows = text.windows + text.fit_windows
    precise = matmul_flops(device, torch.float32)
    rates = {"float32": precise, dtype: precise if dtype == "float32" else matmul_flops(device, getattr(torch, dtype))}
    for step, flops, kind in (
        (
            "capture residual streams",
            capture_flops(model, read_windows, text.tokens, layers[-1]),
            dtype,
        ),
        ("activations of all pairs", activation_flops(shape, text, text.windows), "float32"),
        ("splice and resume", splice_flops(model, shape, text.splice_windows, text.tokens, layers), dtype),
    ):
        rate_here = rates[kind] * EFFICIENCY[device.type]
        because = f"{flops / 1e12:.3g} TFLOP at {rate_here / 1e9:.3g} GFLOP/s ({kind} products measured here)"
        yield Duration(step, flops / rate_here, because)
