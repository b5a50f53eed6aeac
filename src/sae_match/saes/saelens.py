"""SAELens checkpoints on disk: FOLDER/{cfg.json, sae_weights.safetensors}."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sae_match.config.sae_schema import SaeConfig
from sae_match.errors import UserError
from sae_match.saes.activation import GATED, JUMPRELU, RELU, Activation, ActivationKind
from sae_match.saes.header import SaeHeader
from sae_match.saes.loader import FolderLoader
from sae_match.saes.parametrization import canonical_gated, subtract_input_bias
from sae_match.saes.saelens_config import SCALED, SaelensConfig, read_saelens_config
from sae_match.saes.sparse_autoencoder import SparseAutoencoder
from sae_match.saes.tensor_files import need_names, need_shapes, read_safetensors, safetensors_shapes
from sae_match.saes.validation import validate_loaded


class Saelens(FolderLoader):
    """Loader of SAELens' standard, jumprelu, topk and gated SAEs (and of its transcoders, which only match).

    What SAELens does at run time is folded into the weights, exactly: b_dec subtracted from the input goes into b_enc;
    `rescale_acts_by_decoder_norm` multiplies the encoder by the decoder norms and divides the decoder by them;
    `expected_average_only_in` multiplies the encoder by its factor s and divides the decoder and b_dec by it, where
    `sae.norm_scaling_factors` gives s (the files do not hold it). constant_norm_rescale, layer_norm and
    covariance_whitening, and a missing s, cannot be folded: the weights match, but in the units of normalised inputs,
    and such an SAE refuses to encode.
    """

    FILES: ClassVar[tuple[str, ...]] = ("cfg.json", "sae_weights.safetensors")

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions, hook point and layer from `cfg.json`, compared with the weights' header.

        Raises:
            UserError: unreadable files, other dimensions than stated, or an unsupported architecture.
        """
        path = self.folder(path)
        weights = path / self.FILES[1]
        settings = read_saelens_config(path / self.FILES[0], cfg.repo_id)
        need_shapes(weights, safetensors_shapes(weights), _shapes(settings))
        obstacle = settings.obstacle or _activation(settings, _factor(cfg, layer)).obstacle
        header = SaeHeader(settings.d_in, settings.d_sae, settings.site, settings.layer, obstacle)
        return header.checked(str(path), cfg, layer)

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, missing keys, or invalid values.
        """
        header = self.header(path, layer, cfg)
        path = self.folder(path)
        settings = read_saelens_config(path / self.FILES[0], cfg.repo_id)
        tensors = _tensors(path / self.FILES[1], settings)
        factor = _factor(cfg, layer)
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


def _activation(settings: SaelensConfig, factor: float | None) -> Activation:
    folded = settings.normalize_activations == SCALED and factor is not None
    normalization = "none" if folded else settings.normalize_activations
    if settings.k is not None:
        return Activation(ActivationKind.topk, k=settings.k, normalization=normalization)
    kind = {"standard": RELU, "jumprelu": JUMPRELU, "gated": GATED}[settings.architecture].kind
    return Activation(kind, normalization=normalization)


def _factor(cfg: SaeConfig, layer: int | None) -> float | None:
    return None if layer is None else cfg.norm_scaling_factors.get(layer)


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
