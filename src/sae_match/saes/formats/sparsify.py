"""EleutherAI sparsify checkpoints: HOOKPOINT/{cfg.json, sae.safetensors}, HOOKPOINT such as layers.N."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from sae_match.options import option
from sae_match.saes.activation import Convention
from sae_match.saes.formats.base import FolderFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import expect, need_layout, number, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.site import Site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_LAYOUT = {"encoder.weight": "F d", "encoder.bias": "F", "W_dec": "F d", "b_dec": "d"}
SKIPS = "its skip connection is not part of its features"
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
        """Dimensions from `cfg.json`, compared with the weights' header; site and layer from the folder's name."""
        folder = self.folder_of(path)
        config, weights = self.paths(folder)
        cfg, shapes = read_json(config), safetensors_shapes(weights)
        expect(config, cfg, {"activation": "topk", "signed": False})
        d_model, _ = number(config, cfg, "d_in"), number(config, cfg, "k")
        # 0 latents means d_in times the expansion factor.
        if cfg.get("num_latents"):
            width = number(config, cfg, "num_latents")
        else:
            width = d_model * number(config, cfg, "expansion_factor")
        need_layout(weights, shapes, _LAYOUT, d_model, width)
        # With several seeds the hookpoint's folder holds one folder a seed.
        site, stated = site_of_hook(folder.parent.name if _SEED.fullmatch(folder.name) else folder.name)
        site = Site.transcoder if cfg.get("transcode") else site
        obstacle = SKIPS if "W_skip" in shapes else None
        return SaeHeader(d_model, width, site, stated, obstacle, foldable=False)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder."""
        config, weights = self.paths(path)
        header, cfg = self.header(path, layer), read_json(config)
        convention = convention_of(number(config, cfg, "k"), bool(cfg.get("transcode")))
        tensors = convention.canonical(read_safetensors(weights, _LAYOUT), weights)
        return build_sae(self.folder_of(path), layer, header, tensors, convention.how)


def convention_of(k: int, transcodes: bool) -> Convention:
    """What an SAE, or a transcoder, of sparsify computes."""
    return Convention(
        activation="topk", subtracts_b_dec=not transcodes, normalization="none", k=k, rescales_by_decoder_norm=False
    )
