"""Train one sparse autoencoder on one layer's residual stream: a plain function, Lightning inside."""

from __future__ import annotations

import logging
import time
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
from sae_match.saes import SparseAutoencoder
from sae_match.training.data import Normalization, TokenBatches, drop_sink_positions, normalize_
from sae_match.training.module import JumpReluTraining
from sae_match.training.options import TrainingConfig

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "last.ckpt"
MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
"""Its `fp32_precision` routes float32 products to oneDNN (see `TrainingConfig.fast_matmul`)."""

Report = dict[str, float | int]


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
) -> tuple[SparseAutoencoder, Report]:
    """An SAE of the residual stream in its own units, and a report with `held_out_report` in it.

    Checkpoints go to `directory/last.ckpt`; if one is there, training continues from it. The same seed gives the same
    SAE, interrupted or not. The first `sink_positions` tokens of every window are dropped. Raises UserError for
    unusable activations, and for a checkpoint of another recipe.
    """
    tokens = drop_sink_positions(activations, sink_positions)
    normalization = normalize_(tokens, cfg.clip_norm_factor)
    steps = cfg.tokens // cfg.batch_tokens
    data = {"distinct_tokens": tokens.shape[0], "d_model": tokens.shape[1], "scale": normalization.scale}
    recipe = {**cfg.recipe(), **data, "seed": seed, "layer": layer}
    checkpoint = _existing_checkpoint(directory / CHECKPOINT_NAME, recipe)
    module = JumpReluTraining(cfg, tokens.shape[1], steps, seed, layer)
    bar = tqdm(total=steps, desc=f"layer {layer}", unit="step", mininterval=1.0, disable=not progress)
    checkpoints = _Checkpoints(directory / CHECKPOINT_NAME, recipe, cfg.checkpoint_seconds, bar)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_steps=steps,
        max_epochs=1,
        logger=logger if logger is not None else False,
        callbacks=[checkpoints],
        enable_checkpointing=False,  # Lightning's own never saves by the clock under manual optimization
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
    )
    batches = TokenBatches(tokens, cfg.batch_tokens, steps, seed, layer)
    precision = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = "bf16" if cfg.fast_matmul else precision
        with bar:
            trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    finally:
        MATMUL.fp32_precision = precision
    if trainer.interrupted or trainer.global_step < steps:
        raise KeyboardInterrupt(f"training of layer {layer} stopped at step {trainer.global_step} of {steps}")
    sae = _raw_sae(module, normalization, f"trained layer {layer}")
    report = {
        "layer": layer,
        "seed": seed,
        "tokens": steps * cfg.batch_tokens,
        "distinct_tokens": tokens.shape[0],
        "seconds": checkpoints.seconds,
        **held_out_report(sae, drop_sink_positions(held_out, sink_positions), cfg.clip_norm_factor),
    }
    log.info("layer %d trained: %s", layer, report)
    return sae, report


def _raw_sae(module: JumpReluTraining, normalization: Normalization, source: str) -> SparseAutoencoder:
    """Fold `z = (x - mean) * scale` into the weights; decoder rows stay unit-norm, activations are in raw units."""
    mean, scale = normalization.mean, normalization.scale
    weights = {name: value.detach().cpu() for name, value in module.named_parameters()}
    return SparseAutoencoder(
        W_enc=weights["W_enc"].t(),
        b_enc=weights["b_enc"] / scale - weights["W_enc"] @ mean,
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"] / scale + mean,
        threshold=weights["log_threshold"].exp() / scale,
        source=source,
    )


@torch.no_grad()
def held_out_report(
    sae: SparseAutoencoder, held_out: Float[Tensor, "n d"], clip_norm_factor: float, chunk_tokens: int = 4096
) -> Report:
    """Sparsity and reconstruction on raw residuals that were not trained on (sink positions already dropped).

    Tokens with a norm above `clip_norm_factor` times the median are left out and counted: now and then a window has a
    second attention sink, and ten such tokens in 75,000 were measured to hold 82 % of the total variance, so that any
    FVU with them is theirs alone; `held_out_fvu_all` is that number. Also returned: features that never fire, theta's
    spread, the range of decoder row norms.
    """
    norms = torch.linalg.vector_norm(held_out, dim=1)
    usual = norms <= clip_norm_factor * norms.median()
    errors, active = torch.empty(len(held_out)), torch.empty(len(held_out))
    fired = torch.zeros(sae.width, dtype=torch.int64)
    for start in range(0, len(held_out), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        features = sae.encode(held_out[part])
        errors[part] = (sae.decode(features) - held_out[part]).square().sum(1)
        active[part] = (features > 0).sum(1).to(torch.float32)
        fired += (features > 0)[usual[part]].sum(0)
    theta, rows, dead = sae.threshold, torch.linalg.vector_norm(sae.W_dec, dim=1), int((fired == 0).sum())
    return {
        "held_out_tokens": int(usual.sum()),
        "held_out_outliers": int((~usual).sum()),
        "held_out_l0": float(active[usual].mean(dtype=torch.float64)),
        "held_out_fvu": float(errors[usual].sum(dtype=torch.float64)) / _spread(held_out[usual]),
        "held_out_fvu_all": float(errors.sum(dtype=torch.float64)) / _spread(held_out),
        "dead_features": dead,
        "dead_fraction": dead / sae.width,
        "theta_mean": float(theta.mean()),
        "theta_min": float(theta.min()),
        "theta_max": float(theta.max()),
        "theta_std": float(theta.std(correction=0)),
        "decoder_norm_min": float(rows.min()),
        "decoder_norm_max": float(rows.max()),
    }


def _spread(tokens: Float[Tensor, "n d"]) -> float:
    """Sum of squared distances from the mean."""
    centered = tokens - tokens.mean(0, dtype=torch.float64).to(tokens.dtype)
    return float(torch.linalg.vector_norm(centered, dim=1).square().sum(dtype=torch.float64))


def _existing_checkpoint(path: Path, recipe: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from, or None. Raises UserError if it belongs to another recipe or cannot be read."""
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


class _Checkpoints(Callback):
    """Checkpoints by the clock, with the recipe and the seconds spent in them; moves the progress bar."""

    def __init__(self, path: Path, recipe: dict[str, Any], every_seconds: float, bar: tqdm[Any]) -> None:
        self.path, self.recipe, self.every_seconds, self.bar = path, recipe, every_seconds, bar
        self.earlier_seconds = 0.0
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, runs before an interruption included."""
        return self.earlier_seconds + time.monotonic() - self.started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.saved = time.monotonic()
        self.bar.initial = self.bar.n = trainer.global_step
        self.bar.unpause()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.bar.update()
        if time.monotonic() - self.saved >= self.every_seconds:
            with atomic_path(self.path) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"], checkpoint["seconds"] = self.recipe, self.seconds

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.earlier_seconds = checkpoint["seconds"]
