"""How long a job takes, step by step, with the numbers behind each: operations over a rate measured on this machine.

These are estimates to tell minutes from days, not promises. Rates that cannot be measured here are stated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sae_match.evaluation.controls import Matcher
from sae_match.experiment import estimates
from sae_match.experiment.machine import matmul_flops
from sae_match.experiment.plan import Plan

EFFICIENCY = {"cpu": 0.8, "cuda": 0.4}
"""Share of a plain matrix product's rate that whole steps reach."""
DOWNLOAD_RATE = 25e6
"""Bytes per second, assumed."""
READ_RATE = 400e6
"""Bytes per second of reading, checking and hashing an SAE, as seen on one core."""
SOLVER_REFERENCE = {
    "dense": (2.8, 4096, 2.45),
    "certified": (20.0, 16_384, 2.05),
    "correlation": (4.8, 16_384, 2.05),
    "greedy": (1.9, 4096, 2.0),
    "nearest": (1.4, 4096, 2.0),
    "mutual": (2.7, 4096, 2.0),
    "cosine": (1.8, 4096, 2.05),
}
"""Seconds of a pair at a width, and the exponent with which they grow with it. Measured: dense on one core; the others
on two, metric both at d = 2,304, the similarity product included; correlation without the products of the activations,
which are counted among those of the activations."""


@dataclass(frozen=True)
class Duration:
    """One step's time; None where nothing is known about it."""

    step: str
    seconds: float | None
    because: str


def durations(plan: Plan) -> list[Duration]:
    """Time of every step of a planned job; measures this machine for about a second."""
    found = [_download(plan)]
    shape = plan.shape
    if shape is None or plan.machine is None:
        return found
    dtype = getattr(torch, plan.cfg.model.dtype)
    share = EFFICIENCY[plan.device.type]
    single = matmul_flops(plan.device, torch.float32) * share
    own = single if dtype == torch.float32 else matmul_flops(plan.device, dtype) * share
    found.append(_reading(shape))
    if shape.model is not None:
        flops = estimates.capture_flops(
            shape.model, shape.windows + shape.fit_windows, shape.window_tokens, plan.layers[-1]
        )
        found.append(_computing("capture residual streams", flops, own, f"{plan.cfg.model.dtype}"))
    found.append(_solving("match all pairs", plan.cfg.solver.name, [*estimates.pairs(shape.widths), *shape.far_pairs]))
    for control in plan.cfg.evaluation.matchers:
        if isinstance(control, Matcher):
            reference = "correlation" if control.all_pairs else control.solver.name
            found.append(_solving(f"control {control.name}", reference, estimates.pairs(shape.widths)))
    if shape.model is not None:
        flops = estimates.activation_flops(shape)
        found.append(_computing("activations of all pairs", flops, single, "float32"))
        flops = estimates.splice_flops(shape.model, shape, plan.layers)
        found.append(_computing("splice and resume", flops, own, plan.cfg.model.dtype))
        if plan.cfg.composition.paths:
            flops = estimates.encoding_flops(shape)
            found.append(_computing("top tokens of every feature", flops, single, "float32"))
    return found


def _download(plan: Plan) -> Duration:
    missing = next((need.bytes for need in plan.disk if need.what == "downloads"), 0)
    return Duration("download", missing / DOWNLOAD_RATE, f"{missing / 1e9:.2f} GB at {DOWNLOAD_RATE / 1e6:.0f} MB/s")


def _reading(shape: estimates.JobShape) -> Duration:
    reads = estimates.SAE_READS_FULL if shape.model is not None else estimates.SAE_READS_WEIGHTS
    total = reads * sum(estimates.sae_bytes(shape.d_model, width) for width in shape.widths)
    total += sum(estimates.sae_bytes(shape.d_model, b) for _, b in shape.far_pairs)
    return Duration(
        "read SAEs", total / READ_RATE, f"{total / 1e9:.1f} GB, {reads} times each, at {READ_RATE / 1e6:.0f} MB/s"
    )


def _solving(step: str, solver: str, pairs: list[tuple[int, int]]) -> Duration:
    reference = SOLVER_REFERENCE.get(solver)
    if reference is None:
        return Duration(step, None, f"solver={solver} has no measured reference")
    seconds, width, exponent = reference
    total = sum(seconds * (max(pair) / width) ** exponent for pair in pairs)
    return Duration(step, total, f"{len(pairs)} pairs; {seconds} s at width {width}, power {exponent}")


def _computing(step: str, flops: float, rate: float, dtype: str) -> Duration:
    because = f"{flops / 1e12:.3g} TFLOP at {rate / 1e9:.3g} GFLOP/s ({dtype} products measured here, less a share)"
    return Duration(step, flops / rate, because)
