"""Lightning module that trains one JumpReLU SAE on normalized residual streams."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_match.training.data import derived_generator
from sae_match.training.objective import Objective, batch_topk_threshold, jumprelu_objective
from sae_match.training.options import TrainingConfig


@dataclass
class SparsityController:
    """Steers the coefficient of the L0 penalty so that the running mean of L0 reaches its target.

    Each step multiplies the coefficient by `exp(gain * clip(2 * (running / target - 1), -1, 1))`: proportional
    near the target, at most `gain` per step far from it. `smoothing` is the weight of the past in the running mean.
    """

    target: float
    gain: float
    smoothing: float = 0.9
    coefficient: float = 0.0
    running_l0: float = 0.0

    def start(self, coefficient: float) -> None:
        """Begin steering from `coefficient` (squared activation units per active feature), at the target."""
        self.coefficient, self.running_l0 = coefficient, self.target

    def update(self, l0: float) -> None:
        """Take in the mean L0 of one batch."""
        self.running_l0 = self.smoothing * self.running_l0 + (1 - self.smoothing) * l0
        excess = 2.0 * (self.running_l0 / self.target - 1.0)
        self.coefficient *= math.exp(self.gain * min(1.0, max(-1.0, excess)))


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Multiplier of the learning rate at `step` (0-based): linear warm-up, plateau, linear decay to zero."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    decay_steps = decay_fraction * total_steps
    decay = min(1.0, (total_steps - step) / decay_steps) if decay_steps > 0 else 1.0
    return max(0.0, warmup * decay)


class JumpReluTraining(L.LightningModule):
    """One SAE in training units (see `Normalization`); `W_enc` is held as rows [F, d].

    The first `topk_steps` steps are BatchTopK and find a global threshold, with which JumpReLU training of all
    parameters starts. Decoder rows have unit norm throughout. The optimizer is stepped by hand because each step
    also projects the decoder, steers the sparsity coefficient and follows the learning-rate schedule.
    """

    def __init__(self, cfg: TrainingConfig, d_model: int, total_steps: int, seed: int, layer: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.cfg, self.total_steps = cfg, total_steps
        rows = torch.randn(cfg.width, d_model, generator=derived_generator(seed, layer, 0))
        rows = F.normalize(rows, dim=1)
        self.W_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.width))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_model))  # the mean, in centered units
        self.log_threshold = nn.Parameter(torch.zeros(cfg.width))
        self.register_buffer("silent_tokens", torch.zeros(cfg.width, dtype=torch.int64))
        self.controller = SparsityController(cfg.target_l0, cfg.controller_gain)
        self.topk_threshold = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        groups = [
            {"params": weights, "lr": self.cfg.lr, "peak_lr": self.cfg.lr},
            {"params": [self.log_threshold], "lr": self.cfg.lr_log_threshold, "peak_lr": self.cfg.lr_log_threshold},
        ]
        return torch.optim.Adam(groups, betas=(self.cfg.beta1, self.cfg.beta2), fused=True)

    def training_step(self, batch: Float[Tensor, "tokens d"], batch_idx: int) -> None:
        step = self.global_step
        searching = step < self.cfg.topk_steps
        if searching:
            self._search_threshold(batch, step)
        if step == self.cfg.topk_steps:
            self._start_jumprelu(batch)
        log_threshold = self.log_threshold.detach() if searching else self.log_threshold
        weights = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        result = jumprelu_objective(batch, *weights, log_threshold, self.cfg.bandwidth)
        loss = result.mse + self.controller.coefficient * result.l0
        dead = self._count_silence(result, len(batch))
        if dead is not None:
            loss = loss + self.cfg.aux_coefficient * self._auxiliary_loss(batch, result.error, dead)
        self._step_optimizer(loss, step)
        if not searching:
            self.controller.update(float(result.l0.detach()))
        if self.logger is not None and (step + 1) % self.cfg.log_every_steps == 0:
            self._log(batch, result, dead, step)

    @torch.no_grad()
    def _search_threshold(self, batch: Tensor, step: int) -> None:
        threshold = float(batch_topk_threshold(batch, self.W_enc, self.b_enc, self.cfg.target_l0))
        # a mean over about the last 50 batches: the first ones belong to an untrained dictionary
        weight = max(1.0 / (step + 1), 0.02)
        self.topk_threshold += weight * (threshold - self.topk_threshold)
        self.log_threshold.fill_(math.log(threshold))

    @torch.no_grad()
    def _start_jumprelu(self, batch: Tensor) -> None:
        if self.topk_threshold == 0.0:  # topk_steps = 0: the first batch decides
            self._search_threshold(batch, 0)
        self.log_threshold.fill_(math.log(self.topk_threshold))
        # removing a feature that fires just above theta raises the squared error by about theta^2
        self.controller.start(self.topk_threshold**2)

    @torch.no_grad()
    def _count_silence(self, result: Objective, tokens: int) -> Bool[Tensor, "features"] | None:
        """Which features are dead; None where none is, or where they get no auxiliary loss."""
        self.silent_tokens += tokens
        self.silent_tokens.masked_fill_(result.fired > 0, 0)
        if self.cfg.aux_coefficient == 0.0:
            return None
        dead = self.silent_tokens >= self.cfg.dead_tokens
        return dead if bool(dead.any()) else None

    def _auxiliary_loss(self, batch: Tensor, error: Tensor, dead: Bool[Tensor, "features"]) -> Float[Tensor, ""]:
        """Dead features, the strongest few per token, reconstruct the error (Gao et al. 2024, A.2)."""
        pre = F.linear(batch, self.W_enc[dead], self.b_enc[dead]).relu()
        top = pre.topk(min(pre.shape[1], round(self.cfg.target_l0)), dim=1)
        sparse = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        return (sparse @ self.W_dec[dead] + error).square().sum() / len(batch)

    def _step_optimizer(self, loss: Tensor, step: int) -> None:
        optimizer, cfg = self.optimizers(), self.cfg
        factor = learning_rate_factor(step, self.total_steps, cfg.warmup_steps, cfg.decay_fraction)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        with torch.no_grad():  # along its own direction a unit row has nothing to learn
            gradient = self.W_dec.grad
            gradient.addcmul_(self.W_dec, torch.linalg.vecdot(gradient, self.W_dec)[:, None], value=-1.0)
        optimizer.step()
        with torch.no_grad():
            self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))

    def _log(self, batch: Tensor, result: Objective, dead: Tensor | None, step: int) -> None:
        values = {
            "fvu": float(result.mse.detach()) / float(batch.square().sum() / len(batch)),
            "l0": float(result.l0.detach()),
            "l0_running": self.controller.running_l0,
            "sparsity_coefficient": self.controller.coefficient,
            "theta_mean": float(self.log_threshold.detach().exp().mean()),
            "dead_features": 0 if dead is None else int(dead.sum()),
            "lr": self.optimizers().param_groups[0]["lr"],
            "tokens": (step + 1) * self.cfg.batch_tokens,
        }
        self.logger.log_metrics({f"train/{name}": value for name, value in values.items()}, step=step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"controller": asdict(self.controller), "topk_threshold": self.topk_threshold}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.controller = SparsityController(**checkpoint["controller"])
        self.topk_threshold = checkpoint["topk_threshold"]
