"""The `cfg.json` of a SAELens SAE, in its flat form (before v6) and its present one, read into one shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.config.sae_schema import Site
from sae_match.errors import UserError
from sae_match.saes.loader import site_of_hook
from sae_match.saes.tensor_files import number, read_json

logger = logging.getLogger(__name__)

STANDARD, JUMPRELU, TOPK, GATED = "standard", "jumprelu", "topk", "gated"
_TRANSCODERS = {
    "transcoder": STANDARD,
    "skip_transcoder": STANDARD,
    "jumprelu_transcoder": JUMPRELU,
    "jumprelu_skip_transcoder": JUMPRELU,
}
_TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
"""Training classes; SAELens itself saves their inference form as jumprelu."""
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
SCALED = "expected_average_only_in"
_CENTERED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
REGISTRY: Mapping[str, Mapping[str, Any]] = {
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTERED,
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTERED,
    "tommmcgrath/gpt2-small-mlp-out-saes": _CENTERED,
}
"""Settings of hub repositories that change what an SAE computes and that only SAELens' registry of pretrained SAEs
(`pretrained_saes.yaml`) knows."""
_REGISTERED_MODELS = (None, "gpt2-small", "gpt2", "mistral-7b", "mistralai/Mistral-7B-v0.1")


@dataclass(frozen=True)
class SaelensConfig:
    """Attributes named as in `cfg.json`.

    Attributes:
        architecture: standard | jumprelu | topk | gated.
        normalize_activations: none, or the normalisation of the inputs.
        site, layer: from the hook name; `transcoder` for transcoder classes.
        obstacle: why its activations on a plain model's residual stream would mean nothing, or None.
    """

    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool
    normalize_activations: str
    k: int | None
    rescale_acts_by_decoder_norm: bool
    site: Site
    layer: int | None
    obstacle: str | None


def read_saelens_config(path: Path, repo_id: str | None = None) -> SaelensConfig:
    """Read `cfg.json`, with the settings of its repository that only SAELens' registry knows.

    Args:
        repo_id: hub repository that the file is from; a path that names it says it, too.

    Raises:
        UserError: unreadable, without dimensions, or of an architecture that is not supported.
    """
    cfg: dict[str, Any] = {_RENAMED.get(key, key): value for key, value in read_json(path).items()}
    metadata = cfg.get("metadata")
    cfg = {**(metadata if isinstance(metadata, Mapping) else {}), **cfg}
    registered = _registered(path, repo_id)
    if registered is None and metadata is None and repo_id is None and cfg.get("model_name") in _REGISTERED_MODELS:
        logger.warning(
            "%s is of SAELens before version 6. If the SAE is from %s, its inputs are normalized or centered in a way "
            "that the file does not say: give the repository as sae.repo_id or in the folder's name",
            path, ", ".join(REGISTRY),
        )  # fmt: skip
    cfg |= registered or {}
    named = _architecture(path, cfg)
    transcoder = named in _TRANSCODERS
    site, layer = site_of_hook(cfg.get("hook_name") or None)
    if cfg.get("hook_head_index") is not None:
        raise UserError(f"{path}: reads a single attention head (hook_head_index), which is not supported")
    architecture = _TRANSCODERS.get(named, named)
    return SaelensConfig(
        architecture=architecture,
        d_in=number(path, cfg, "d_in"),
        d_sae=number(path, cfg, "d_sae"),
        # The library's own default differs: SAEs true, transcoders false.
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", not transcoder)),
        normalize_activations=_normalization(cfg.get("normalize_activations")),
        k=_k(path, cfg) if architecture == TOPK else None,
        rescale_acts_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        site=Site.transcoder if transcoder else site,
        layer=layer,
        obstacle=_obstacle(named, cfg.get("model_from_pretrained_kwargs")),
    )


def _registered(path: Path, repo_id: str | None) -> Mapping[str, Any] | None:
    for repository, settings in REGISTRY.items():
        name = repository.rsplit("/", 1)[-1]
        if repository == repo_id or {name, f"models--{repository.replace('/', '--')}"} & set(path.parts):
            return settings
    return None


def _architecture(path: Path, cfg: Mapping[str, Any]) -> str:
    activation, named = cfg.get("activation_fn") or "relu", cfg.get("architecture") or STANDARD
    if activation == "topk" and named == STANDARD:
        return TOPK
    if named in _TRAINING_ONLY:
        raise UserError(
            f"{path}: architecture {named} is a training checkpoint, whose threshold is not in the weights' units; "
            "save it with SAELens' save_inference_model"
        )
    known = (STANDARD, JUMPRELU, TOPK, GATED, *_TRANSCODERS)
    if named not in known or activation not in ("relu", "topk"):
        raise UserError(f"{path}: architecture {named} with activation {activation}; supported: {', '.join(known)}")
    return str(named)


def _obstacle(architecture: str, model_kwargs: object) -> str | None:
    if "skip" in architecture:
        return "its skip connection is not part of its features"
    if isinstance(model_kwargs, Mapping) and model_kwargs.get("center_writing_weights"):
        return "it was trained on a residual stream without its mean (center_writing_weights), which this model has"
    return None


def _normalization(value: object) -> str:
    """Old files hold a boolean."""
    if value is True:
        return SCALED
    return "none" if value in (None, False, "none") else str(value)


def _k(path: Path, cfg: Mapping[str, Any]) -> int:
    key = "k" if cfg.get("k") is not None else "activation_fn_kwargs.k"
    return int(number(path, cfg, key))
