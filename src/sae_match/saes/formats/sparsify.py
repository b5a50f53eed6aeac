"""EleutherAI sparsify checkpoints: HOOKPOINT/{cfg.json, sae.safetensors}, HOOKPOINT such as layers.N."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import Activation, ActivationKind
from sae_match.saes.formats.base import FolderFormat, SaeHeader, validate_loaded
from sae_match.saes.formats.reading import need_shapes, number, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.parametrization import subtract_input_bias
from sae_match.saes.site import Site, site_of_module
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_SEED = re.compile(r"seed\d+")


@option
class Sparsify(FolderFormat):
    """Loader of sparsify's TopK SAEs: top-k of relu((x - b_dec) @ W_enc + b_enc); layers.N is the output of block N.

    Transcoders (`transcode`) do not subtract b_dec; with their skip connection, which is no part of the features, they
    only match. SAELens reads W_dec of this dialect transposed and subtracts b_dec by another flag
    (`normalize_decoder`); sparsify itself is followed here.
    """

    dialect: ClassVar[str] = "sparsify"
    FILES: ClassVar[tuple[str, ...]] = ("cfg.json", "sae.safetensors")

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from `cfg.json`, compared with the weights' header; site and layer from the folder's name.

        Raises:
            UserError: unreadable files, other dimensions than stated, or an unsupported activation.
        """
        path = self.folder_of(path)
        settings, weights = _settings(path / self.FILES[0]), path / self.FILES[1]
        shapes = safetensors_shapes(weights)
        need_shapes(weights, shapes, _shapes(settings))
        # With several seeds the hookpoint's folder holds one folder a seed.
        site, stated = site_of_module(path.parent.name if _SEED.fullmatch(path.name) else path.name)
        obstacle = "its skip connection is not part of its features" if "W_skip" in shapes else None
        return SaeHeader(
            settings["d_in"],
            settings["d_sae"],
            Site.transcoder if settings["transcode"] else site,
            stated,
            obstacle,
            foldable=False,
        )

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, missing keys, or invalid values.
        """
        header = self.header(path, layer)
        path = self.folder_of(path)
        settings = _settings(path / self.FILES[0])
        stored = read_safetensors(path / self.FILES[1], _shapes(settings))
        tensors: dict[str, Any] = {
            "W_enc": stored["encoder.weight"].T,
            "b_enc": stored["encoder.bias"],
            "W_dec": stored["W_dec"],
            "b_dec": stored["b_dec"],
        }
        if not settings["transcode"]:
            subtract_input_bias(tensors)
        sae = SparseAutoencoder(
            **tensors,
            threshold=tensors["b_enc"].new_zeros(settings["d_sae"]),
            activation=Activation(ActivationKind.topk, k=settings["k"]),
            site=header.site,
            match_only=header.obstacle,
            source=str(path),
        )
        return validate_loaded(sae, layer, unit_norm=False)


def _settings(path: Path) -> dict[str, Any]:
    cfg = read_json(path)
    for key, value in (("activation", "topk"), ("signed", False)):
        if cfg.get(key, value) != value:
            raise UserError(f"{path}: {key}={cfg[key]!r}, but only {value!r} is supported")
    d_in = number(path, cfg, "d_in")
    # 0 latents means d_in times the expansion factor.
    d_sae = number(path, cfg, "num_latents") if cfg.get("num_latents") else d_in * number(path, cfg, "expansion_factor")
    return {"d_in": d_in, "d_sae": d_sae, "k": number(path, cfg, "k"), "transcode": bool(cfg.get("transcode", False))}


def _shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, n_features = settings["d_in"], settings["d_sae"]
    return {"encoder.weight": (n_features, d), "encoder.bias": (n_features,), "W_dec": (n_features, d), "b_dec": (d,)}
