"""The `cfg.json` of a SAELens SAE, in its flat form (before v6) and its present one, read into one shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_match.config.sae_schema import Site
from sae_match.errors import UserError
from sae_match.saes.loader import site_of_hook
from sae_match.saes.tensor_files import number, read_json

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


def read_saelens_config(path: Path) -> SaelensConfig:
    """Read `cfg.json`.

    Raises:
        UserError: unreadable, without dimensions, or of an architecture that is not supported.
    """
    cfg: dict[str, Any] = {_RENAMED.get(key, key): value for key, value in read_json(path).items()}
    metadata = cfg.get("metadata")
    cfg = {**(metadata if isinstance(metadata, Mapping) else {}), **cfg}
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
