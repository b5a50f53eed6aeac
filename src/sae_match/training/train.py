"""Train one sparse autoencoder on one layer's residual stream: a plain function, Lightning inside."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from tqdm.auto import tqdm

from sae_match.errors import UserError
from sae_match.files import atomic_path
from sae_match.training.data import ActivationData, Normalisation, drop_sink_positions, normalise_
from sae_match.training.evaluate import held_out_report
from sae_match.training.module import JumpReluTraining
from sae_match.training.options import TrainingConfig

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.ckpt"
MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
# fields that may change between an interrupted run and its continuation: they do not touch the result
FREE_FIELDS = ("checkpoint_seconds", "log_every_steps", "fast_matmul")


@dataclass
class TrainedSae:
    """A trained SAE in the residual stream's own units and method.md's shapes, with what is worth knowing about it."""

    W_enc: Float[Tensor, "d features"]
    b_enc: Float[Tensor, "features"]
    W_dec: Float[Tensor, "features d"]
    b_dec: Float[Tensor, "d"]
    threshold: Float[Tensor, "features"]
    report: dict[str, float | int]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The five tensors by name."""
        return {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


def train_sae(
    activations: Float[Tensor, "windows tokens d"],
    held_out: Float[Tensor, "windows tokens d"],
    cfg: TrainingConfig,
    seed: int,
    layer: int,
    directory: Path,
    device: str = "cpu",
    progress: bool = False,
    logger: Logger | None = None,
    sink_positions: int = 1,
) -> TrainedSae:
    """Train, evaluate on held-out activations and fold the normalisation back.

    Checkpoints go to `directory/last.ckpt`; if one is there, training continues from it. The same seed gives the same
    SAE, interrupted or not. The first `sink_positions` tokens of every window are dropped. Raises UserError for
    unusable activations or settings, and for a checkpoint of another recipe.
    """
    check_config(cfg)
    tokens = drop_sink_positions(activations, sink_positions)
    normalisation = normalise_(tokens, cfg.clip_norm_factor)
    steps = max(1, cfg.tokens // cfg.batch_tokens)
    recipe = _recipe(cfg, seed, layer, tokens, normalisation)
    checkpoint = existing_checkpoint(directory, recipe)
    module = JumpReluTraining(cfg, tokens.shape[1], steps, seed, layer)
    data = ActivationData(tokens, cfg.batch_tokens, steps, seed, layer)
    companion = _RunCompanion(recipe, directory / CHECKPOINT_NAME, cfg.checkpoint_seconds, layer, steps, progress)
    trainer = _trainer(cfg, steps, directory, device, companion, logger)
    with _quiet_lightning(), _fast_matmul(cfg.fast_matmul):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted or trainer.global_step < steps:
        raise KeyboardInterrupt(f"training of layer {layer} stopped at step {trainer.global_step} of {steps}")
    weights = raw_weights(module, normalisation)
    report = {
        "layer": layer,
        "seed": seed,
        "tokens": steps * cfg.batch_tokens,
        "distinct_tokens": tokens.shape[0],
        "seconds": companion.seconds,
        **held_out_report(weights, drop_sink_positions(held_out, sink_positions), cfg.clip_norm_factor),
    }
    log.info("layer %d trained: %s", layer, report)
    return TrainedSae(**weights, report=report)


@torch.no_grad()
def raw_weights(module: JumpReluTraining, normalisation: Normalisation) -> dict[str, Tensor]:
    """Fold `z = (x - mean) * scale` into the weights; decoder rows stay unit-norm, activations are in raw units."""
    mean, scale = normalisation.mean, normalisation.scale
    W_enc, W_dec = module.W_enc.detach().cpu(), module.W_dec.detach().cpu()
    return {
        "W_enc": W_enc.t().contiguous(),
        "b_enc": module.b_enc.detach().cpu() / scale - W_enc @ mean,
        "W_dec": W_dec.clone(),
        "b_dec": module.b_dec.detach().cpu() / scale + mean,
        "threshold": module.log_threshold.detach().cpu().exp() / scale,
    }


def check_config(cfg: TrainingConfig) -> None:
    """Raise UserError, naming every field at once, where the recipe makes no sense."""
    problems = [
        f"training.{name} must be {rule}, got {getattr(cfg, name)}"
        for name, ok, rule in (
            ("width", cfg.width >= 1, "at least 1"),
            ("target_l0", 0 < cfg.target_l0 <= cfg.width, "above 0 and at most the width"),
            ("tokens", cfg.tokens >= cfg.batch_tokens, "at least batch_tokens"),
            ("batch_tokens", cfg.batch_tokens >= 1, "at least 1"),
            ("lr", cfg.lr > 0, "positive"),
            ("lr_log_threshold", cfg.lr_log_threshold >= 0, "not negative"),
            ("bandwidth", cfg.bandwidth > 0, "positive"),
            ("decay_fraction", 0 <= cfg.decay_fraction <= 1, "between 0 and 1"),
            ("clip_norm_factor", cfg.clip_norm_factor > 0, "positive"),
            ("checkpoint_seconds", cfg.checkpoint_seconds >= 1, "at least 1"),
            ("log_every_steps", cfg.log_every_steps >= 1, "at least 1"),
        )
        if not ok
    ]
    if problems:
        raise UserError("; ".join(problems))


def existing_checkpoint(directory: Path, recipe: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from, or None. Raises UserError if it belongs to another recipe or cannot be read."""
    path = directory / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)["recipe"]
    except Exception as error:
        raise UserError(f"cannot read the training checkpoint {path} ({error}): delete it to start over") from error
    changed = sorted(name for name in recipe.keys() | stored.keys() if recipe.get(name) != stored.get(name))
    if changed:
        details = ", ".join(f"{name}: {stored.get(name)} -> {recipe.get(name)}" for name in changed)
        raise UserError(f"{path} was written with other settings ({details}): delete it to start over, or restore them")
    log.info("continuing from %s", path)
    return path


def _recipe(
    cfg: TrainingConfig, seed: int, layer: int, tokens: Tensor, normalisation: Normalisation
) -> dict[str, float | int | bool]:
    fields = {name: value for name, value in asdict(cfg).items() if name not in FREE_FIELDS}
    data = {"distinct_tokens": tokens.shape[0], "d_model": tokens.shape[1], "scale": normalisation.scale}
    return {**fields, **data, "seed": seed, "layer": layer}


def _trainer(
    cfg: TrainingConfig, steps: int, directory: Path, device: str, companion: Callback, logger: Logger | None
) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_steps=steps,
        max_epochs=1,
        logger=logger if logger is not None else False,
        callbacks=[companion],
        enable_checkpointing=False,  # Lightning's own never saves by the clock under manual optimisation
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
    )


class _RunCompanion(Callback):
    """Clock, checkpoints by the clock, and a progress bar.

    A checkpoint holds Lightning's state, the module's own (controller), the recipe and the seconds spent.
    """

    def __init__(
        self, recipe: dict[str, Any], path: Path, checkpoint_seconds: float, layer: int, steps: int, progress: bool
    ) -> None:
        self.recipe, self.path, self.checkpoint_seconds = recipe, path, checkpoint_seconds
        self.earlier_seconds = 0.0
        self.started = self.saved = time.monotonic()
        self.bar: tqdm[Any] = tqdm(
            total=steps, desc=f"layer {layer}", unit="step", mininterval=1.0, disable=not progress
        )

    @property
    def seconds(self) -> float:
        """Training time so far, runs before an interruption included."""
        return self.earlier_seconds + time.monotonic() - self.started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.saved = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bar.initial = self.bar.n = trainer.global_step
        self.bar.unpause()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.bar.update()
        if time.monotonic() - self.saved >= self.checkpoint_seconds:
            with atomic_path(self.path) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved = time.monotonic()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.close()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"], checkpoint["seconds"] = self.recipe, self.seconds

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.earlier_seconds = checkpoint["seconds"]


@contextmanager
def _fast_matmul(enabled: bool) -> Iterator[None]:
    """Route float32 products to oneDNN for the duration (see `TrainingConfig.fast_matmul`)."""
    before = MATMUL.fp32_precision
    try:
        if enabled:
            MATMUL.fp32_precision = "bf16"
        yield
    finally:
        MATMUL.fp32_precision = before


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notices about devices and loaders out of the user's terminal."""
    noisy = logging.getLogger("lightning.pytorch")
    before = noisy.level
    noisy.setLevel(logging.WARNING)
    try:
        yield
    finally:
        noisy.setLevel(before)
