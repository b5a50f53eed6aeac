"""Rules across fields, checked before anything is loaded or downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sae_match.config.control_rules import control_rules
from sae_match.config.evaluation_rules import capture_rules, composition_rules
from sae_match.config.sae_rules import sae_rules
from sae_match.config.schema import (
    Config,
    LayersConfig,
)
from sae_match.config.training_schema import TrainConfig
from sae_match.errors import UserError

if TYPE_CHECKING:
    from sae_match.language_model.sources import ModelSource
    from sae_match.text.source import TextSource

DEVICES = ("auto", "cpu", "cuda")


def check_config(cfg: Config) -> None:
    """Refuse a `sae-match` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    problems = list(_layer_rules(cfg.layers, need_pair=True))
    problems += sae_rules(cfg)
    if cfg.seed < 0:
        problems.append(f"seed={cfg.seed}: must be 0 or more")
    problems += _partial_rules(cfg)
    problems += _description_rule(cfg)
    problems += control_rules(cfg)
    problems += composition_rules(cfg.composition, cfg.layers)
    if cfg.evaluation.full:
        problems += capture_rules(cfg)
        problems += _model_rule(cfg.model, cfg.layers)
        problems += _text_rule(cfg.dataset, "dataset", cfg.model.sink_positions)
    problems += _device_rule(cfg.device)
    _raise(problems)


def check_train_config(cfg: TrainConfig) -> None:
    """Refuse a `sae-match-train` configuration that cannot work.

    Raises:
        UserError: every broken rule, one per line.
    """
    problems = list(_layer_rules(cfg.layers, need_pair=False))
    problems += _model_rule(cfg.model, cfg.layers)
    for name, dataset in cfg.datasets.items():
        problems += _text_rule(dataset, f"datasets.{name}", cfg.model.sink_positions)
    for name, dataset in cfg.held_out.items():
        problems += _text_rule(dataset, f"held_out.{name}", cfg.model.sink_positions)
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


def _partial_rules(cfg: Config) -> Iterator[str]:
    matching = cfg.matching
    for name in ("rejection_cost", "n_pairs"):
        if getattr(matching, name) is not None and not cfg.solver.limits_pairs:
            yield f"matching.{name} is set, and solver={cfg.solver.name} knows no such limit; use solver=certified"
    if matching.dead_features == "exclude" and not cfg.evaluation.full:
        yield (
            "matching.dead_features=exclude needs activations to know which features are dead, and "
            f"evaluation={cfg.evaluation.level} computes none; use evaluation=full or matching.dead_features=keep"
        )


def _description_rule(cfg: Config) -> Iterator[str]:
    if cfg.judging.enabled and cfg.judging.neuronpedia is None and not cfg.evaluation.full:
        yield (
            f"judging={cfg.judging.name}: without judging.neuronpedia features are described by the text they fire on, "
            f"which evaluation={cfg.evaluation.level} does not read; use evaluation=full or give explanation files"
        )


def _model_rule(model: ModelSource, layers: LayersConfig) -> Iterator[str]:
    if model.n_layers is not None and layers.last >= model.n_layers:
        yield f"layers.last={layers.last}: {model.name} has blocks 0..{model.n_layers - 1}"


def _text_rule(text: TextSource, where: str, sink_positions: int) -> Iterator[str]:
    # One counted prediction needs the sink positions, one more position and its target.
    if text.window_tokens < sink_positions + 2:
        yield f"{where}.window_tokens={text.window_tokens}: must be at least {sink_positions + 2}"


def _disjoint_rule(cfg: TrainConfig) -> Iterator[str]:
    """Training and held-out parts of one text must not share documents."""
    for name, held_out in cfg.held_out.items():
        for other, text in cfg.datasets.items():
            if held_out.overlaps(text):
                yield (
                    f"held_out.{name}.part={held_out.part}, datasets.{other}.part={text.part}: "
                    "one must be train and the other evaluation, else the report is not on held-out text"
                )


def _device_rule(device: str) -> Iterator[str]:
    if device not in DEVICES:
        yield f"device={device}: must be one of {', '.join(DEVICES)}"
