"""Gemma Scope 2 checkpoints (Gemma 3): SITE[_all]/layer_{L}_width_{W}_l0_{size}[_affine]/params.safetensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_match.config.sae_schema import SaeConfig, Site
from sae_match.errors import UserError
from sae_match.saes.header import SaeHeader
from sae_match.saes.locating import fetch
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder
from sae_match.saes.tensor_files import matrix_shape, need_names, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.validation import validate_loaded

_FOLDER = re.compile(r"layer_(\d{1,4})_width_\w+?_l0_\w+")
_SITES = {name: Site(name) for name in ("resid_post", "mlp_out", "attn_out", "transcoder")}
"""Sites by the folder's name. The attention SAEs read the heads' outputs before the last projection."""
_SKIP = "affine_skip_connection"


class GemmaScope2:
    """Loader of the Gemma Scope 2 layout: JumpReLU SAEs with lower-case keys; b_dec is not subtracted from the input.

    The folders SITE_all hold every layer (l0 small and big), the others four layers. A transcoder's affine skip
    connection is not part of its features: it is left out, and such a transcoder never encodes.
    """

    def names(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> tuple[str, ...]:
        """The layer's weights. `config.json` beside them may be missing and adds nothing that is needed.

        Raises:
            UserError: width or l0 not set, or a site that the release does not have.
        """
        site = cfg.site or Site.resid_post
        if cfg.width is None or cfg.l0 is None:
            raise UserError("sae.width and sae.l0 must be set for Gemma Scope 2, such as sae.width=16k sae.l0=small")
        if site.value not in _SITES:
            raise UserError(f"sae.site={site.value}: Gemma Scope 2 has {', '.join(_SITES)}")
        folder = f"{site.value}{'_all' if cfg.every_layer else ''}"
        variant = f"layer_{layer}_width_{cfg.width}_l0_{cfg.l0}{'_affine' if cfg.affine else ''}"
        return (f"{folder}/{variant}/params.safetensors",)

    def locate(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> Path:
        """Local path of one layer's `params.safetensors`."""
        return fetch(cfg, self.names(cfg, layer, span)[0], layer)

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions from the file's header; site and layer from its folders.

        Raises:
            UserError: unreadable file, a cross-layer decoder, or a config.json of another architecture.
        """
        path = _file(path)
        shapes = safetensors_shapes(path)
        if len(shapes.get("w_dec", ())) == 3:
            raise UserError(f"{path}: w_dec writes to several layers (a cross-layer transcoder), which is not one SAE")
        d_model, width = matrix_shape(path, shapes, "w_enc")
        if (config := path.with_name("config.json")).is_file():
            architecture = read_json(config).get("architecture")
            if architecture not in (None, "jump_relu"):
                raise UserError(f"{config}: architecture {architecture}, expected jump_relu")
        named = _FOLDER.match(path.parent.name)
        site = _SITES.get(path.parent.parent.name.removesuffix("_all"), Site.unknown)
        obstacle = "its affine skip connection is not part of its features" if _SKIP in shapes else None
        header = SaeHeader(d_model, width, site, int(named[1]) if named else None, obstacle)
        return header.checked(str(path), cfg, layer)

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """Read one `params.safetensors`.

        Raises:
            UserError: unreadable file, missing keys, or invalid values.
        """
        path = _file(path)
        header = self.header(path, layer, cfg)
        wanted = {name: name.lower() for name in PARAMETERS}
        need_names(path, safetensors_shapes(path), wanted.values())
        tensors = read_safetensors(path, list(wanted.values()))
        canonical: dict[str, Any] = {name: tensors[key] for name, key in wanted.items()}
        sae = SparseAutoencoder(
            **canonical,
            site=header.site,
            match_only=header.obstacle,
            source=str(path),
        )
        return validate_loaded(sae, layer, canonical["threshold"], unit_norm=True)


def _file(path: Path) -> Path:
    return path / "params.safetensors" if path.is_dir() else path
