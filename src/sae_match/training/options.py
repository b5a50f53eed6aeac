"""The resolved configuration of one `sae-match-train` job."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sae_match.errors import UserError
from sae_match.study import Layers, Paths

if TYPE_CHECKING:
    from sae_match.language_model.sources import ModelSource
    from sae_match.text.source import TextSource
    from sae_match.tracking import Tracking


@dataclass
class TrainingConfig:
    """Recipe of one JumpReLU SAE (Rajamanoharan et al. 2024, with a steered sparsity coefficient).

    Raises:
        UserError: fields out of their range; every one is named.
    """

    width: int = 1152
    """Number of features F."""
    target_l0: float = 32.0
    """Mean number of active features per token that the controller steers to."""
    tokens: int = 10_000_000
    """Training tokens in all (epochs over the captured tokens)."""
    batch_tokens: int = 2048
    """Tokens per step."""
    lr: float = 6e-3
    """Adam learning rate of the weights."""
    beta1: float = 0.9
    """Adam's decay of the gradient mean."""
    beta2: float = 0.999
    """Adam's decay of the squared gradient."""
    lr_log_threshold: float = 1e-2
    """Adam learning rate of log theta."""
    bandwidth: float = 0.1
    """Kernel bandwidth of the straight-through estimator, in scaled activation units."""
    topk_steps: int = 150
    """BatchTopK steps that find the first threshold."""
    warmup_steps: int = 200
    """Linear learning-rate warm-up."""
    decay_fraction: float = 0.5
    """Share of the run, at its end, over which the learning rate decays to zero."""
    clip_norm_factor: float = 4.0
    """Training tokens with a norm above this multiple of the median are rescaled to it."""
    controller_gain: float = 0.02
    """Largest relative change of the sparsity coefficient per step."""
    dead_tokens: int = 500_000
    """A feature that fired on none of this many last tokens counts as dead and gets the auxiliary loss."""
    aux_coefficient: float = 0.03125
    """Weight of the auxiliary loss: dead features reconstruct what the others left over. 0 = none."""
    fast_matmul: bool = True
    """Let oneDNN choose the kernels of float32 products: exact float32 and twice MKL's speed on AMD processors;
    processors with AMX multiply in bfloat16."""
    storage: str = "bfloat16"
    """bfloat16 | int8: number format of the weights in the file; int8 has one scale a feature and is half as large."""
    checkpoint_seconds: int = 120
    """Seconds between checkpoints."""
    log_every_steps: int = 100
    """Steps between logged points."""

    def __post_init__(self) -> None:
        floats = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        rules = [(name, math.isfinite(value), "a finite number") for name, value in floats.items()]
        least = {"topk_steps": 0, "warmup_steps": 0, "dead_tokens": 0, "aux_coefficient": 0, "controller_gain": 0,
                 "width": 1, "batch_tokens": 1, "tokens": self.batch_tokens, "lr_log_threshold": 0, "decay_fraction": 0,
                 "checkpoint_seconds": 1, "log_every_steps": 1}  # fmt: skip
        rules += [(name, getattr(self, name) >= bound, f"at least {bound}") for name, bound in least.items()]
        rules += [(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1") for name in ("beta1", "beta2")]
        for name in ("target_l0", "lr", "bandwidth", "clip_norm_factor"):
            rules.append((name, getattr(self, name) > 0, "above 0"))
        rules.append(("target_l0", self.target_l0 <= self.width, "at most the width"))
        rules.append(("decay_fraction", self.decay_fraction <= 1, "at most 1"))
        rules.append(("storage", self.storage in ("bfloat16", "int8"), "bfloat16 or int8"))
        broken = [f"training.{name}={getattr(self, name)}: must be {rule}" for name, ok, rule in rules if not ok]
        if broken:
            raise UserError("; ".join(broken))

    def recipe(self) -> dict[str, Any]:
        """The fields that the trained SAE depends on; the others may change when a training is continued."""
        free = ("checkpoint_seconds", "log_every_steps", "fast_matmul", "storage")
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass(kw_only=True)
class TrainConfig:
    """The whole configuration of one `sae-match-train` job."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    model: ModelSource
    tracking: Tracking
    datasets: dict[str, TextSource]
    """Training texts by name."""
    held_out: dict[str, TextSource]
    """Texts for the held-out report, by name; an embedded text must name a part that is not trained on."""
    layers: Layers
    """One SAE per layer of the span."""
    paths: Paths
    seed: int = 0
    """Seed of initialization and data order; each layer derives its own from it."""
    device: str = "auto"
    """auto | cpu | cuda."""
    progress: bool | None = None
    """Progress bars; null = only when standard error is a terminal."""
    trusted_packages: list[str] = field(default_factory=list)
    """Packages other than sae_match whose classes a `_target_` may name."""

    config: dict[str, Any] = field(default_factory=dict)
    """What the objects were built from, as nested plain values."""
