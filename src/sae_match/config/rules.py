"""Rules across fields, checked before anything is loaded or downloaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from sae_match.config.controls import control_rules
from sae_match.config.evaluation_rules import capture_rules, composition_rules, quantile_rules
from sae_match.config.judging_rules import judging_rules
from sae_match.config.sae_rules import sae_rules
from sae_match.config.schema import (
    Config,
    DatasetConfig,
    DatasetSource,
    DeadFeatures,
    EvaluationConfig,
    EvaluationLevel,
    LayersConfig,
    Metric,
    ModelConfig,
    ModelSource,
    Part,
)
from sae_match.config.training_schema import TrainConfig
from sae_match.errors import UserError

DEVICES = ("auto", "cpu", "cuda")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
EVALUATION_MINIMA = {
    "splice_documents": 0,
    "splice_windows_per_document": 0,
    "batch_windows": 1,
    "min_count": 1,
    "bootstrap_samples": 1,
}


def check_config(cfg: Config) -> None:
    """Refuse a `sae-match` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    problems = list(_layer_rules(cfg.layers, need_pair=True))
    problems += _range_rule(cfg)
    problems += sae_rules(cfg)
    problems += _matching_rules(cfg)
    problems += _partial_rules(cfg)
    problems += _evaluation_rules(cfg.evaluation)
    problems += judging_rules(cfg)
    # Controls are asked together with the splices, which cannot be built from wrong quantiles.
    problems += list(quantile_rules(cfg.evaluation)) or list(control_rules(cfg))
    problems += composition_rules(cfg.composition, cfg.layers)
    if cfg.evaluation.level is EvaluationLevel.full:
        problems += capture_rules(cfg)
        problems += _model_rules(cfg.model, cfg.layers)
        problems += _dataset_rules(cfg.dataset, "dataset", cfg.model.sink_positions)
    problems += _device_rule(cfg.device)
    _raise(problems)


def check_train_config(cfg: TrainConfig) -> None:
    """Refuse a `sae-match-train` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    problems = list(_layer_rules(cfg.layers, need_pair=False))
    problems += _model_rules(cfg.model, cfg.layers)
    for name, dataset in cfg.datasets.items():
        problems += _dataset_rules(dataset, f"datasets.{name}", cfg.model.sink_positions)
    for name, dataset in cfg.held_out.items():
        problems += _dataset_rules(dataset, f"held_out.{name}", cfg.model.sink_positions)
    for group in ("datasets", "held_out"):
        if not getattr(cfg, group):
            problems.append(f"{group}: name at least one text")
    problems += _disjoint_rule(cfg)
    for name in ("width", "tokens", "batch_tokens", "target_l0", "lr", "lr_log_threshold", "bandwidth"):
        if getattr(cfg.training, name) <= 0:
            problems.append(f"training.{name}={getattr(cfg.training, name)}: must be positive")
    problems += _device_rule(cfg.device)
    _raise(problems)


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def _layer_rules(layers: LayersConfig, need_pair: bool) -> Iterator[str]:
    if layers.pair is not None:
        yield f"layers.pair={layers.pair} is short for first and last on the command line; set those two here"
    if layers.first < 0:
        yield f"layers.first={layers.first}: must be 0 or more (0-based blocks)"
    if need_pair and layers.last <= layers.first:
        yield f"layers.first={layers.first}, layers.last={layers.last}: a span needs at least two layers"
    if layers.last < layers.first and not need_pair:
        yield f"layers.first={layers.first}, layers.last={layers.last}: the span is empty"


def _range_rule(cfg: Config) -> Iterator[str]:
    if cfg.layers.first < cfg.sae.first_layer or cfg.layers.last > cfg.sae.last_layer:
        yield (
            f"layers.first={cfg.layers.first}, layers.last={cfg.layers.last}: the SAEs {cfg.sae.name} cover layers "
            f"{cfg.sae.first_layer}..{cfg.sae.last_layer}"
        )


def _matching_rules(cfg: Config) -> Iterator[str]:
    weights = {name: getattr(cfg.matching.weights, name) for name in ("W_enc", "b_enc", "W_dec")}
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            yield f"matching.weights.{name}={value}: must be a finite number >= 0"
    used = {Metric.decoder: ["W_dec"], Metric.encoder: ["W_enc", "b_enc"]}.get(cfg.matching.metric, list(weights))
    if not cfg.matching.include_bias:
        used = [name for name in used if name != "b_enc"]
    if all(weights[name] == 0 for name in used):
        yield f"matching.weights: {', '.join(used)} are all 0, so nothing would be compared"
    if cfg.seed < 0:
        yield f"seed={cfg.seed}: must be 0 or more"


def _partial_rules(cfg: Config) -> Iterator[str]:
    matching = cfg.matching
    for name in ("rejection_cost", "n_pairs"):
        if getattr(matching, name) is not None and not cfg.solver.limits_pairs:
            yield f"matching.{name} is set, and solver={cfg.solver.name} knows no such limit; use solver=certified"
    if matching.rejection_cost is not None and matching.n_pairs is not None:
        yield "matching.rejection_cost and matching.n_pairs both limit the pairs: give one of them"
    cost = matching.rejection_cost
    if cost is not None and not (math.isfinite(cost) and cost >= 0):
        yield f"matching.rejection_cost={cost}: must be a finite number >= 0"
    if matching.n_pairs is not None and matching.n_pairs < 1:
        yield f"matching.n_pairs={matching.n_pairs}: must be at least 1"
    if matching.dead_features is DeadFeatures.aside and cfg.evaluation.level is not EvaluationLevel.full:
        yield (
            "matching.dead_features=aside needs activations to know which features are dead, and "
            f"evaluation={cfg.evaluation.level} computes none; use evaluation=full or matching.dead_features=keep"
        )


def _evaluation_rules(evaluation: EvaluationConfig) -> Iterator[str]:
    for name, least in EVALUATION_MINIMA.items():
        value = getattr(evaluation, name)
        if value < least:
            yield f"evaluation.{name}={value}: must be at least {least}"


def _model_rules(model: ModelConfig, layers: LayersConfig) -> Iterator[str]:
    if model.n_layers is not None and layers.last >= model.n_layers:
        yield f"layers.last={layers.last}: {model.name} has blocks 0..{model.n_layers - 1}"
    if model.dtype not in ("float32", "bfloat16", "float16"):
        yield f"model.dtype={model.dtype}: must be float32, bfloat16 or float16"
    yield from _placement_rules(model)
    if model.sink_positions < 1:
        yield f"model.sink_positions={model.sink_positions}: must be at least 1 (position 0 is never counted)"
    if model.source is ModelSource.hub and not model.repo_id:
        yield "model.repo_id is not set, and model.source=hub needs one"
    if model.source is ModelSource.local and not model.path:
        yield "model.path is not set, and model.source=local needs one"


def _placement_rules(model: ModelConfig) -> Iterator[str]:
    if model.device_map is not None and model.device_map not in DEVICE_MAPS:
        yield f"model.device_map={model.device_map}: must be null or one of {', '.join(DEVICE_MAPS)}"
    if model.max_memory and model.device_map is None:
        yield "model.max_memory is set, but it needs model.device_map (such as auto)"
    for place, most in model.max_memory.items():
        if not (place.isdigit() or place == "cpu"):
            yield f"model.max_memory: {place} is neither cpu nor the number of a GPU"
        if not re.fullmatch(r"\d+(\.\d+)?([KMG]i?B)", most):
            yield f"model.max_memory.{place}={most}: must be a size such as 20GiB"


def _dataset_rules(dataset: DatasetConfig, where: str, sink_positions: int) -> Iterator[str]:
    # One counted prediction needs the sink positions, one more position and its target.
    for name, least in (("documents", 0), ("window_tokens", sink_positions + 2), ("windows_per_document", 0)):
        value = getattr(dataset, name)
        if value < least:
            yield f"{where}.{name}={value}: must be at least {least}"
    if dataset.source is DatasetSource.hub:
        if not dataset.repo_id:
            yield f"{where}.repo_id is not set, and {where}.source=hub needs one"
        if dataset.pool is not None and dataset.pool < dataset.documents:
            yield f"{where}.pool={dataset.pool}: must hold at least the {dataset.documents} documents of the sample"
        if dataset.fallback_files and not dataset.fallback_files.startswith("hf://"):
            yield f"{where}.fallback_files={dataset.fallback_files}: must be hf:// URLs of parquet files"
    if dataset.source is DatasetSource.local and not dataset.path:
        yield f"{where}.path is not set, and {where}.source=local needs one"


def _disjoint_rule(cfg: TrainConfig) -> Iterator[str]:
    """Training and held-out parts of one text must not share documents."""
    for name, held_out in cfg.held_out.items():
        for other, dataset in cfg.datasets.items():
            same = _identity(held_out) == _identity(dataset)
            if same and {held_out.part, dataset.part} != {Part.train, Part.evaluation}:
                yield (
                    f"held_out.{name}.part={held_out.part.value}, datasets.{other}.part={dataset.part.value}: "
                    "one must be train and the other evaluation, else the report is not on held-out text"
                )


def _identity(dataset: DatasetConfig) -> tuple[object, ...]:
    return dataset.source, dataset.repo_id, dataset.config_name, dataset.split, dataset.path


def _device_rule(device: str) -> Iterator[str]:
    if device not in DEVICES:
        yield f"device={device}: must be one of {', '.join(DEVICES)}"
