"""SAELens checkpoints on disk: FOLDER/{cfg.json, sae_weights.safetensors}."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind, Convention
from sae_match.saes.formats.base import FolderFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import need_layout, number, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.formats.sparsify import SKIPS
from sae_match.saes.releases import settings_of_repositories
from sae_match.saes.site import Site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

logger = logging.getLogger(__name__)

_KINDS = {
    "standard": ActivationKind.relu,
    "jumprelu": ActivationKind.jumprelu,
    "topk": ActivationKind.topk,
    "gated": ActivationKind.gated,
    "transcoder": ActivationKind.relu,
    "skip_transcoder": ActivationKind.relu,
    "jumprelu_transcoder": ActivationKind.jumprelu,
    "jumprelu_skip_transcoder": ActivationKind.jumprelu,
}
"""Activations by architecture."""
_TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
"""Training classes; SAELens itself saves their inference form as jumprelu."""
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
SCALED = "expected_average_only_in"
_REGISTERED_MODELS = (None, "gpt2-small", "gpt2", "mistral-7b", "mistralai/Mistral-7B-v0.1")


@option
class Saelens(FolderFormat):
    """Loader of SAELens' standard, jumprelu, topk and gated SAEs (and of its transcoders, which only match).

    What SAELens does at run time is folded into the weights, exactly: b_dec subtracted from the input goes into b_enc;
    `rescale_acts_by_decoder_norm` multiplies the encoder by the decoder norms and divides the decoder by them;
    `expected_average_only_in` multiplies the encoder by its factor s and divides the decoder and b_dec by it, where
    `sae.norm_scaling_factors` gives s (the files do not hold it). constant_norm_rescale, layer_norm and
    covariance_whitening, and a missing s, cannot be folded: the weights match, but in the units of normalized inputs,
    and such an SAE refuses to encode.
    """

    dialect: ClassVar[str] = "saelens"
    FILES: ClassVar[tuple[str, ...]] = ("cfg.json", "sae_weights.safetensors")

    norm_scaling_factors: dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """normalize_activations=expected_average_only_in: the factor per layer that scaled the inputs in training; the
    files do not hold it. On the command line with a plus: '+sae.norm_scaling_factors={7: 2.5, 8: 2.4}'."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Also weights without any config, which cannot be read: the reader names what is missing."""
        return super().detect(path) or (path.name == cls.FILES[-1] and not path.with_name("config.json").is_file())

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, hook point and layer from `cfg.json`, compared with the weights' header."""
        config, weights = self.paths(path)
        settings, shapes = self._settings(config, layer), safetensors_shapes(weights)
        header = settings.header
        need_layout(weights, shapes, settings.layout(shapes), header.d_model, header.width)
        return header

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder."""
        config, weights = self.paths(path)
        header, settings, shapes = self.header(path, layer), self._settings(config, layer), safetensors_shapes(weights)
        scaling = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in shapes]
        stored = read_safetensors(weights, [*settings.layout(shapes), *scaling])
        if any(bool((stored.pop(name) != 1).any()) for name in scaling):
            raise UserError(
                f"{weights}: {', '.join(scaling)} is not all ones; fold it into W_dec first (SAELens before v6 can)"
            )
        convention = settings.convention
        return build_sae(self.folder_of(path), layer, header, convention.canonical(stored, weights), convention.how)

    def _settings(self, config: Path, layer: int | None) -> Settings:
        """What `cfg.json` says, with the settings of its repository that only SAELens' registry knows."""
        cfg = {_RENAMED.get(key, key): value for key, value in read_json(config).items()}
        registered = _registered(config, self.repo_id)
        old = registered is None and cfg.get("metadata") is None and self.repo_id is None
        if old and cfg.get("model_name") in _REGISTERED_MODELS:
            logger.warning(
                "%s is of SAELens before version 6. If the SAE is from %s, its inputs are normalized or centered in a "
                "way that the file does not say: give the repository as sae.repo_id or in the folder's name",
                config, ", ".join(settings_of_repositories("sae_lens")),
            )  # fmt: skip
        factor = None if layer is None else self.norm_scaling_factors.get(layer)
        return settings_of(config, {**cfg, **(registered or {})}, factor)


@dataclass(frozen=True)
class Settings:
    """What a config of SAELens says."""

    header: SaeHeader
    convention: Convention

    def layout(self, found: Collection[str]) -> dict[str, str]:
        """The tensors and their axes."""
        kind = self.convention.how.kind
        extra = ["b_gate", "b_mag", "r_mag"] if kind is ActivationKind.gated else ["b_enc"]
        if kind is ActivationKind.jumprelu:
            extra.append("log_threshold" if "log_threshold" in found else "threshold")
        return {"W_enc": "d F", "W_dec": "F d", "b_dec": "d", **dict.fromkeys(extra, "F")}


def settings_of(where: object, cfg: Mapping[str, Any], factor: float | None = None) -> Settings:
    """What a config says, of a file or of an object; `metadata` in it counts as well.

    Args:
        factor: what the inputs were multiplied by in training, for `expected_average_only_in`.

    Raises:
        UserError: an architecture that is not supported, or a dimension that is missing.
    """
    metadata = cfg.get("metadata")
    cfg = {**(metadata if isinstance(metadata, Mapping) else {}), **cfg}
    named = _architecture(where, cfg)
    kind, transcoder = _KINDS[named], "transcoder" in named
    if cfg.get("hook_head_index") is not None:
        raise UserError(f"{where}: reads a single attention head (hook_head_index), which is not supported")
    ranked = kind is ActivationKind.topk
    normalization = cfg.get("normalize_activations")
    normalization = SCALED if normalization is True else str(normalization or "none")  # old files hold a boolean
    convention = Convention(
        activation=kind,
        # The library's own default differs: SAEs true, transcoders false.
        subtracts_b_dec=bool(cfg.get("apply_b_dec_to_input", not transcoder)),
        normalization=factor if factor and normalization == SCALED else normalization,
        k=number(where, cfg, "k" if cfg.get("k") is not None else "activation_fn_kwargs.k") if ranked else None,
        rescales_by_decoder_norm=ranked and bool(cfg.get("rescale_acts_by_decoder_norm")),
    )
    site, stated = site_of_hook(cfg.get("hook_name"))
    header = SaeHeader(
        d_model=number(where, cfg, "d_in"),
        width=number(where, cfg, "d_sae"),
        site=Site.transcoder if transcoder else site,
        layer=stated,
        obstacle=_obstacle(named, cfg.get("model_from_pretrained_kwargs")) or convention.how.obstacle,
        foldable=False if kind in (ActivationKind.relu, ActivationKind.topk) else None,
    )
    return Settings(header, convention)


def _registered(path: Path, repo_id: str | None) -> Mapping[str, Any] | None:
    for repository, settings in settings_of_repositories("sae_lens").items():
        name = repository.rsplit("/", 1)[-1]
        if repository == repo_id or {name, f"models--{repository.replace('/', '--')}"} & set(path.parts):
            return settings
    return None


def _architecture(where: object, cfg: Mapping[str, Any]) -> str:
    activation, named = cfg.get("activation_fn") or "relu", cfg.get("architecture") or "standard"
    if activation == "topk" and named == "standard":
        return "topk"
    if named in _TRAINING_ONLY:
        raise UserError(
            f"{where}: architecture {named} is a training checkpoint, whose threshold is not in the weights' units; "
            "save it with SAELens' save_inference_model"
        )
    if named not in tuple(_KINDS) or activation not in ("relu", "topk"):
        raise UserError(f"{where}: architecture {named} with activation {activation}; supported: {', '.join(_KINDS)}")
    return str(named)


def _obstacle(architecture: str, model_kwargs: object) -> str | None:
    """Why its activations on a plain model's residual stream would mean nothing, or None."""
    if "skip" in architecture:
        return SKIPS
    if isinstance(model_kwargs, Mapping) and model_kwargs.get("center_writing_weights"):
        return "it was trained on a residual stream without its mean (center_writing_weights), which this model has"
    return None
