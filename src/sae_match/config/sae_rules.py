"""Rules for the `sae` and `folding` groups: fields of one dialect, sites, scales, and SAEs against the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sae_match.config.sae_schema import Dialect, SaeConfig, Site
from sae_match.config.schema import Config, EvaluationLevel

GEMMA_SCOPE_2_L0 = ("small", "medium", "big")
FOLDERS = (Dialect.llama_scope, Dialect.saelens, Dialect.sparsify, Dialect.dictionary_learning)
"""Dialects with one folder per layer, named by `sae.folder`."""


def sae_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the SAEs and the folding scale, one message each."""
    yield from _dialect_rules(cfg.sae)
    yield from _l0_rules(cfg.sae)
    yield from _l0_number_rules(cfg)
    yield from _scale_rules(cfg)
    if cfg.evaluation.level is EvaluationLevel.full:
        yield from _model_rules(cfg)


def _dialect_rules(sae: SaeConfig) -> Iterator[str]:
    """Fields that mean something in another dialect only would be ignored in silence: refuse them."""
    where = f"sae.dialect={sae.dialect.value}"
    foreign = {
        "folder": (sae.folder is not None, FOLDERS),
        "width": (sae.width is not None, (Dialect.gemma_scope, Dialect.gemma_scope_2)),
        "l0": (sae.l0 is not None, (Dialect.gemma_scope, Dialect.gemma_scope_2, Dialect.native)),
        "l0_near": (sae.l0_near is not None, (Dialect.gemma_scope,)),
        "affine": (sae.affine, (Dialect.gemma_scope_2,)),
        "norm_scaling_factors": (bool(sae.norm_scaling_factors), (Dialect.saelens,)),
        "ceiling_filename": (sae.ceiling_filename is not None, (Dialect.native,)),
        "l0_filename": (sae.l0_filename is not None, (Dialect.native,)),
        "default_l0": (sae.default_l0 is not None, (Dialect.native,)),
    }
    for name, (given, dialects) in foreign.items():
        if given and sae.dialect not in dialects:
            yield f"sae.{name}: {where} has no such choice; it is for {', '.join(d.value for d in dialects)}"
    if sae.folder is None and sae.dialect in FOLDERS:
        yield f"sae.folder is not set: {where} needs the folder of a layer, such as sae.folder='layer_{{layer}}'"
    for layer, factor in sae.norm_scaling_factors.items():
        if not (math.isfinite(factor) and factor > 0):
            yield f"sae.norm_scaling_factors.{layer}={factor}: must be a positive number"


def _l0_rules(sae: SaeConfig) -> Iterator[str]:
    if sae.l0_near is not None and (sae.l0 != "similar" or sae.l0_near < 1):
        yield f"sae.l0_near={sae.l0_near}: must be a positive number, and goes with sae.l0=similar only"
    if sae.dialect is not Dialect.gemma_scope_2:
        return
    if (sae.l0 or "").split("_")[0] not in GEMMA_SCOPE_2_L0:
        yield f"sae.l0={sae.l0}: Gemma Scope 2 has {', '.join(GEMMA_SCOPE_2_L0)}"
    if sae.every_layer and (sae.l0 or "").startswith("medium"):
        yield f"sae.l0={sae.l0}: Gemma Scope 2 has it only for four layers (sae.every_layer=false); choose small or big"
    if sae.affine and sae.site is not Site.transcoder:
        yield "sae.affine=true: only transcoders have an affine skip connection (sae.site=transcoder)"


def _l0_number_rules(cfg: Config) -> Iterator[str]:
    """`sae.l0` as one number, or as one per layer, in the dialects that have files of several L0s."""
    sae, numbers = cfg.sae, (cfg.sae.l0 or "").split("/")
    n_layers = cfg.layers.last - cfg.layers.first + 1
    if len(numbers) > 1 and sae.dialect in (Dialect.gemma_scope, Dialect.native):
        if not all(number.isdigit() for number in numbers):
            yield f"sae.l0={sae.l0}: must be whole numbers, joined by /"
        if len(numbers) != n_layers:
            yield (
                f"sae.l0={sae.l0}: names {len(numbers)} L0s, but layers.first={cfg.layers.first}, "
                f"layers.last={cfg.layers.last} are {n_layers} layers; give one number, or one per layer"
            )
    if sae.dialect is not Dialect.native:
        return
    if sae.l0_filename is not None and "{l0}" not in sae.l0_filename:
        yield f"sae.l0_filename={sae.l0_filename}: must contain {{l0}}, or every sae.l0 would name one file"
    if sae.l0 is None:
        return
    if len(numbers) == 1 and not sae.l0.isdigit():
        yield f"sae.l0={sae.l0}: native SAEs are told apart by whole numbers, such as sae.l0=64"
    elif sae.l0_filename is None and set(numbers) != {str(sae.default_l0)}:
        yield f"sae.l0={sae.l0}: needs sae.l0_filename, such as 'layer_{{layer:02d}}_l0_{{l0}}.safetensors'"


def _scale_rules(cfg: Config) -> Iterator[str]:
    if cfg.folding.measured and cfg.evaluation.level is EvaluationLevel.weights_only:
        yield (
            f"folding.scale={cfg.folding.scale.value}: is measured on text, which evaluation=weights_only does not "
            "read. Choose evaluation=full, or a scale that needs no data: threshold, stored or decoder_norm"
        )


def _model_rules(cfg: Config) -> Iterator[str]:
    sae, model = cfg.sae, cfg.model
    if sae.site not in (None, Site.resid_post):
        yield (
            f"sae.site={sae.site.value}: activations are compared on resid_post only; these SAEs can be matched by "
            "their weights (evaluation=weights_only)"
        )
    for name in ("d_model", "n_layers"):
        theirs, ours = getattr(sae, name), getattr(model, name)
        if theirs is not None and ours is not None and theirs != ours:
            yield (
                f"sae.{name}={theirs}, model.{name}={ours}: {model.name} is not the model that the SAEs "
                f"{sae.name} were trained on. Choose it with model=..., or evaluation=weights_only"
            )
