"""SAELens checkpoints on disk: FOLDER/{cfg.json, sae_weights.safetensors}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import GATED, JUMPRELU, RELU, Activation, ActivationKind
from sae_match.saes.formats.base import FolderFormat, SaeHeader, validate_loaded
from sae_match.saes.formats.reading import (
    need_names,
    need_shapes,
    number,
    read_json,
    read_safetensors,
    safetensors_shapes,
)
from sae_match.saes.parametrization import canonical_gated, subtract_input_bias
from sae_match.saes.site import Site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

logger = logging.getLogger(__name__)

_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
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


@option
class Saelens(FolderFormat):
    """Loader of SAELens' standard, jumprelu, topk and gated SAEs (and of its transcoders, which only match).

    What SAELens does at run time is folded into the weights, exactly: b_dec subtracted from the input goes into b_enc;
    `rescale_acts_by_decoder_norm` multiplies the encoder by the decoder norms and divides the decoder by them;
    `expected_average_only_in` multiplies the encoder by its factor s and divides the decoder and b_dec by it, where
    `sae.norm_scaling_factors` gives s (the files do not hold it). constant_norm_rescale, layer_norm and
    covariance_whitening, and a missing s, cannot be folded: the weights match, but in the units of normalised inputs,
    and such an SAE refuses to encode.
    """

    dialect: ClassVar[str] = "saelens"
    FILES: ClassVar[tuple[str, ...]] = ("cfg.json", "sae_weights.safetensors")

    norm_scaling_factors: dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """normalize_activations=expected_average_only_in: the factor per layer that scaled the inputs in training; the
    files do not hold it. On the command line with a plus: '+sae.norm_scaling_factors={7: 2.5, 8: 2.4}'."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Also weights without their cfg.json, which cannot be read: the reader names what is missing."""
        return super().detect(path) or path.name == cls.FILES[-1]

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, hook point and layer from `cfg.json`, compared with the weights' header.

        Raises:
            UserError: unreadable files, other dimensions than stated, or an unsupported architecture.
        """
        path = self.folder_of(path)
        weights = path / self.FILES[1]
        settings = read_saelens_config(path / self.FILES[0], self.repo_id)
        need_shapes(weights, safetensors_shapes(weights), _shapes(settings))
        obstacle = settings.obstacle or _activation(settings, self._factor(layer)).obstacle
        foldable = False if settings.architecture in ("standard", "topk") else None
        return SaeHeader(settings.d_in, settings.d_sae, settings.site, settings.layer, obstacle, foldable)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, missing keys, or invalid values.
        """
        header = self.header(path, layer)
        path = self.folder_of(path)
        settings = read_saelens_config(path / self.FILES[0], self.repo_id)
        tensors = _tensors(path / self.FILES[1], settings)
        factor = self._factor(layer)
        if settings.normalize_activations == SCALED and factor is not None:
            tensors["W_enc"] *= factor
            tensors["W_dec"] /= factor
            tensors["b_dec"] /= factor
        if settings.rescale_acts_by_decoder_norm and settings.architecture == "topk":
            norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-8)  # as SAELens clamps them
            tensors["W_enc"] *= norms
            tensors["b_enc"] *= norms
            tensors["W_dec"] /= norms[:, None]
        if settings.apply_b_dec_to_input:
            subtract_input_bias(tensors)
        if settings.architecture == "gated":
            tensors = canonical_gated(tensors)
        zero = torch.zeros(settings.d_sae)
        sae = SparseAutoencoder(
            **{**tensors, "threshold": tensors.get("threshold", zero)},
            activation=_activation(settings, factor),
            site=header.site,
            match_only=header.obstacle,
            source=str(path),
        )
        return validate_loaded(sae, layer, tensors.get("threshold"), unit_norm=False)

    def _factor(self, layer: int | None) -> float | None:
        return None if layer is None else self.norm_scaling_factors.get(layer)


def _activation(settings: SaelensConfig, factor: float | None) -> Activation:
    folded = settings.normalize_activations == SCALED and factor is not None
    normalization = "none" if folded else settings.normalize_activations
    if settings.k is not None:
        return Activation(ActivationKind.topk, k=settings.k, normalization=normalization)
    kind = {"standard": RELU, "jumprelu": JUMPRELU, "gated": GATED}[settings.architecture].kind
    return Activation(kind, normalization=normalization)


def _shapes(settings: SaelensConfig) -> dict[str, tuple[int, ...]]:
    d, n_features = settings.d_in, settings.d_sae
    names = ("b_gate", "b_mag", "r_mag") if settings.architecture == "gated" else ("b_enc",)
    return {
        "W_enc": (d, n_features),
        "W_dec": (n_features, d),
        "b_dec": (d,),
        **{name: (n_features,) for name in names},
    }


def _tensors(path: Path, settings: SaelensConfig) -> dict[str, Tensor]:
    """The parameters, with a threshold for jumprelu; what would change the function in silence is refused."""
    shapes = safetensors_shapes(path)
    wanted = list(_shapes(settings))
    if settings.architecture == "jumprelu":
        wanted.append("log_threshold" if "log_threshold" in shapes else "threshold")
    need_names(path, shapes, wanted)
    scaling = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in shapes]
    tensors = read_safetensors(path, [*wanted, *scaling])
    if any(bool((tensors.pop(name) != 1).any()) for name in scaling):
        raise UserError(
            f"{path}: {', '.join(scaling)} is not all ones; fold it into W_dec first (SAELens before v6 can)"
        )
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    return tensors


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
        k=_k(path, cfg) if architecture == "topk" else None,
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
    activation, named = cfg.get("activation_fn") or "relu", cfg.get("architecture") or "standard"
    if activation == "topk" and named == "standard":
        return "topk"
    if named in _TRAINING_ONLY:
        raise UserError(
            f"{path}: architecture {named} is a training checkpoint, whose threshold is not in the weights' units; "
            "save it with SAELens' save_inference_model"
        )
    known = ("standard", "jumprelu", "topk", "gated", *_TRANSCODERS)
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
