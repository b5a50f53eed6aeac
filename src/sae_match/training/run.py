"""The `sae-match-train` job: text -> residual streams -> one SAE per layer on disk, with a report."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from sae_match.content import content_key
from sae_match.errors import UserError
from sae_match.files import check_writable, write_json
from sae_match.language_model import LanguageModel, ResidualStreams, capture, load_language_model
from sae_match.options import arguments
from sae_match.saes import SparseAutoencoder, save_native
from sae_match.store import Store
from sae_match.text import TokenWindows, load_windows
from sae_match.text.source import TextSource
from sae_match.training.options import TrainConfig
from sae_match.training.tracking import tracked
from sae_match.training.train import FREE_FIELDS, TrainedSae, check_config, train_sae

log = logging.getLogger(__name__)

REPORT_NAME = "training_report.json"


def run_training(cfg: TrainConfig) -> list[dict[str, Any]]:
    """Train one SAE per layer of `cfg.layers` and write them to `cfg.paths.output_dir`.

    Writes `layer_{L:02d}.safetensors` (bfloat16) and `training_report.json`, one entry per layer, replaced after
    every layer. Layers whose file and entry are there already are skipped, an interrupted one continues from
    its checkpoint. Returns the entries of the span. Raises UserError for a bad recipe, span or text before any
    long work begins.
    """
    check_config(cfg.training)
    layers = _span(cfg)
    output = Path(cfg.paths.output_dir)
    check_writable(output, "paths.output_dir")
    store = Store(cfg.paths.cache_dir)
    check_writable(store.root, "paths.cache_dir")
    entries = read_report(output / REPORT_NAME)
    missing = [layer for layer in layers if not _is_finished(output, entries, layer, cfg)]
    if missing:
        progress = sys.stderr.isatty() if cfg.progress is None else cfg.progress
        model = load_language_model(cfg.model, cfg.device, store)
        train, held_out = _streams(cfg, model, missing, store, progress)
        device = model.device.type
        del model  # its memory is better used for activations
        for layer in missing:
            with tracked(cfg, layer, store) as tracking:
                sae = _train_layer(cfg, layer, train, held_out, output, device, progress, tracking.logger)
                entries[layer] = save_layer(sae, output, layer, cfg)
                tracking.summary(entries[layer])
            _write_report(output / REPORT_NAME, entries)
    return [entries[layer] for layer in layers]


def save_layer(sae: TrainedSae, output: Path, layer: int, cfg: TrainConfig) -> dict[str, Any]:
    """Write one SAE as bfloat16 safetensors with its report as metadata; returns the report's entry."""
    entry: dict[str, Any] = {
        **sae.report,
        "width": cfg.training.width,
        "model": cfg.model.name,
        "recipe": recipe_key(cfg),
    }
    metadata = {name: str(value) for name, value in entry.items()}
    weights: dict[str, Any] = dict(sae.weights)
    save_native(
        SparseAutoencoder(**weights, source=f"trained layer {layer}"),
        sae_path(output, layer),
        metadata,
        torch.bfloat16,
    )
    return entry


def sae_path(output: Path, layer: int) -> Path:
    """File of one layer's SAE."""
    return output / f"layer_{layer:02d}.safetensors"


def read_report(path: Path) -> dict[int, dict[str, Any]]:
    """Entries of a training report by layer; empty where there is none. Raises UserError if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return {int(entry["layer"]): entry for entry in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}): delete it to train its layers again") from error


def _write_report(path: Path, entries: dict[int, dict[str, Any]]) -> None:
    write_json(path, [entries[layer] for layer in sorted(entries)])


def recipe_key(cfg: TrainConfig) -> str:
    """Hash of everything that a trained SAE depends on: recipe, seed, model and texts."""
    recipe = {name: value for name, value in asdict(cfg.training).items() if name not in FREE_FIELDS}
    texts = {name: arguments(text) for name, text in cfg.datasets.items()}
    return content_key({"recipe": recipe, "seed": cfg.seed, "model": arguments(cfg.model), "texts": texts})


def _is_finished(output: Path, entries: dict[int, dict[str, Any]], layer: int, cfg: TrainConfig) -> bool:
    if layer not in entries or not sae_path(output, layer).is_file():
        return False
    if entries[layer].get("recipe") != recipe_key(cfg):
        raise UserError(
            f"{sae_path(output, layer)} was trained with another seed, recipe, model or text. "
            "Choose another paths.output_dir, or delete that file to train it again."
        )
    return True


def _span(cfg: TrainConfig) -> list[int]:
    first, last = cfg.layers.first, cfg.layers.last
    if not 0 <= first <= last:
        raise UserError(f"layers.first={first} and layers.last={last} do not name a span: need 0 <= first <= last")
    if cfg.model.n_layers is not None and last >= cfg.model.n_layers:
        raise UserError(f"layers.last={last}, but {cfg.model.name} has blocks 0..{cfg.model.n_layers - 1}")
    return list(range(first, last + 1))


def _windows(texts: dict[str, TextSource], cfg: TrainConfig, model: LanguageModel, store: Store) -> TokenWindows:
    """The texts in the order in which the configuration names them."""
    return TokenWindows.concatenate(
        [load_windows(text, model.tokenizer, store, cfg.model.bos) for text in texts.values()]
    )


def _streams(
    cfg: TrainConfig, model: LanguageModel, layers: list[int], store: Store, progress: bool
) -> tuple[ResidualStreams, ResidualStreams]:
    if layers[-1] >= model.n_layers:
        raise UserError(f"layers.last={layers[-1]}, but {model.name} has blocks 0..{model.n_layers - 1}")
    # both texts are read before the first capture, so that a mistake in either costs no time
    windows = [_windows(texts, cfg, model, store) for texts in (cfg.held_out, cfg.datasets)]
    held_out, train = (capture(model, part, layers, store, progress=progress) for part in windows)
    return train, held_out


def _train_layer(
    cfg: TrainConfig,
    layer: int,
    train: ResidualStreams,
    held_out: ResidualStreams,
    output: Path,
    device: str,
    progress: bool,
    logger: Logger | None,
) -> TrainedSae:
    log.info("training layer %d on %s", layer, device)
    directory = output / "checkpoints" / f"layer_{layer:02d}"
    directory.mkdir(parents=True, exist_ok=True)
    return train_sae(
        train.layer(layer),
        held_out.layer(layer),
        cfg.training,
        cfg.seed,
        layer,
        directory,
        device,
        progress,
        logger,
        cfg.model.sink_positions,
    )
