"""The `sae-match-train` job: text -> residual streams -> one SAE per layer on disk, with a report."""

from __future__ import annotations

import gc
import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger

from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.files import check_writable, write_json
from sae_match.language_model import capture, load_language_model
from sae_match.options import arguments
from sae_match.record.configuration import run_id
from sae_match.saes import save_native
from sae_match.store import Store
from sae_match.study import span_of
from sae_match.terminal import wants_bars
from sae_match.text import TokenWindows, load_windows
from sae_match.tracking import TrackingMode
from sae_match.tracking.wandb_mirror import WandbMirror, open_mirror
from sae_match.training.options import TrainConfig
from sae_match.training.train import train_sae

log = logging.getLogger(__name__)

REPORT_NAME = "training_report.json"

Entries = dict[int, dict[str, Any]]
"""Entries of a training report, by layer."""


def run_training(cfg: TrainConfig) -> list[dict[str, Any]]:
    """Train one SAE per layer of `cfg.layers` and write them to `cfg.paths.output_dir`.

    Writes `layer_{L:02d}.safetensors` and `training_report.json`, one entry per layer, replaced after
    every layer. Layers whose file and entry are there already are skipped, an interrupted one continues from
    its checkpoint. Returns the entries of the span. Raises UserError for a bad text, folder or report before any long
    work begins; the configuration has passed `rules.check_train_config`.
    """
    layers = span_of(cfg.layers)
    output = Path(cfg.paths.output_dir)
    check_writable(output, "paths.output_dir")
    store = Store(cfg.paths.cache_dir)
    check_writable(store.root, "paths.cache_dir")
    entries = _read_report(output / REPORT_NAME)
    missing = [layer for layer in layers if not _is_finished(output, entries, layer, cfg)]
    if missing:
        _train(cfg, missing, output, store, entries)
    return [entries[layer] for layer in layers]


def _train(cfg: TrainConfig, layers: list[int], output: Path, store: Store, entries: Entries) -> None:
    """Train some layers; each is written and added to the report before the next begins."""
    progress = wants_bars(cfg.progress)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it would tell of devices and loaders
    model = load_language_model(cfg.model, cfg.device, store)
    model.check_layers(layers)
    # both texts are read before the first capture, so that a mistake in either costs no time
    windows = [
        TokenWindows.concatenate([load_windows(text, model.tokenizer, store, cfg.model.bos) for text in texts.values()])
        for texts in (cfg.held_out, cfg.datasets)
    ]
    held_out, train = (capture(model, part, layers, store, progress=progress) for part in windows)
    device = model.device.type
    del model  # its memory is better used for activations
    for layer in layers:
        log.info("training layer %d on %s", layer, device)
        with _open_mirror(cfg, layer, store) as mirror:
            sae, report = train_sae(
                train.layer(layer),
                held_out.layer(layer),
                cfg.training,
                cfg.seed,
                layer,
                output / "checkpoints" / f"layer_{layer:02d}",
                device,
                progress,
                None if mirror is None else WandbLogger(experiment=mirror.run),
                cfg.model.sink_positions,
            )
            facts = {"width": cfg.training.width, "model": cfg.model.name, "recipe": recipe_key(cfg)}
            entries[layer] = {**report, **facts}
            metadata = {name: str(value) for name, value in entries[layer].items()}
            save_native(sae, _sae_path(output, layer), metadata, getattr(torch, cfg.training.storage))
            if mirror is not None:
                mirror.summary({**report, "width": cfg.training.width})
        write_json(output / REPORT_NAME, [entries[known] for known in sorted(entries)])
        gc.collect()  # the trainer and its batches, gigabytes of tokens, refer to each other


def recipe_key(cfg: TrainConfig) -> str:
    """Hash of everything that a trained SAE depends on: recipe, seed, model and texts."""
    texts = {name: arguments(text) for name, text in cfg.datasets.items()}
    return content_key(
        {"recipe": cfg.training.recipe(), "seed": cfg.seed, "model": arguments(cfg.model), "texts": texts}
    )


def _sae_path(output: Path, layer: int) -> Path:
    return output / f"layer_{layer:02d}.safetensors"


def _read_report(path: Path) -> Entries:
    if not path.is_file():
        return {}
    try:
        return {int(entry["layer"]): entry for entry in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}): delete it to train its layers again") from error


def _is_finished(output: Path, entries: Entries, layer: int, cfg: TrainConfig) -> bool:
    path = _sae_path(output, layer)
    if layer not in entries or not path.is_file():
        return False
    if entries[layer].get("recipe") != recipe_key(cfg):
        raise UserError(
            f"{path} was trained with another seed, recipe, model or text. "
            "Choose another paths.output_dir, or delete that file to train it again."
        )
    return True


def _open_mirror(cfg: TrainConfig, layer: int, store: Store) -> AbstractContextManager[WandbMirror | None]:
    """The W&B run of one layer: its loss curves while it trains, its held-out report as the summary."""
    output, config = Path(cfg.paths.output_dir), {**cfg.config, "layer": layer}
    return open_mirror(
        output,
        cfg.tracking,
        store,
        config=config,
        job_type="train",
        # A training goes on where it stopped, so its curves do. Offline each attempt is a run of its own: of two with
        # one id `wandb sync` would keep the later one's curves only.
        run_id=run_id(config, output) if cfg.tracking.mode is TrackingMode.online else None,
        appends=True,
        name=f"train-{cfg.model.name}-layer-{layer}-seed-{cfg.seed}",
    )
