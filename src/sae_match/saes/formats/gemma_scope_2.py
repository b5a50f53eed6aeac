"""Gemma Scope 2 checkpoints (Gemma 3): SITE[_all]/layer_{L}_width_{W}_l0_{size}[_affine]/params.safetensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import matrix_shape, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder

_FOLDER = re.compile(r"layer_(\d{1,4})_width_\w+?_l0_\w+")
_SITES = {name: Site(name) for name in ("resid_post", "mlp_out", "attn_out", "transcoder")}
"""Sites by the folder's name. The attention SAEs read the heads' outputs before the last projection."""
_KEYS = {name.lower(): name for name in PARAMETERS}
SPARSITIES = ("small", "medium", "big")


@option
class GemmaScope2(SaeFormat):
    """The Gemma Scope 2 layout: JumpReLU SAEs with lower-case keys; b_dec is not subtracted from the input.

    The folders SITE_all hold every layer (l0 small and big), the others four layers. A transcoder's affine skip
    connection is not part of its features: it is left out, and such a transcoder never encodes.
    """

    dialect: ClassVar[str] = "gemma_scope_2"

    width: str | None = None
    """Width, such as 16k."""
    l0: str | None = None
    """Sparsity: small, medium (four layers only) or big."""
    every_layer: bool = True
    """The folders SITE_all, which cover every layer (small and big only); false = four layers."""
    affine: bool = False
    """Transcoders: the variant with an affine skip connection."""

    @model_validator(mode="after")
    def _exists(self) -> GemmaScope2:
        if self.l0 is not None and self.l0.split("_")[0] not in SPARSITIES:
            raise ValueError(f"sae.l0={self.l0}: Gemma Scope 2 has {', '.join(SPARSITIES)}")
        if self.every_layer and (self.l0 or "").startswith("medium"):
            raise ValueError(
                f"sae.l0={self.l0}: Gemma Scope 2 has it only for four layers (sae.every_layer=false); choose small or "
                "big"
            )
        if self.affine and self.site is not Site.transcoder:
            raise ValueError("sae.affine=true: only transcoders have an affine skip connection (sae.site=transcoder)")
        if self.site is not None and self.site.value not in _SITES:
            raise ValueError(f"sae.site={self.site.value}: Gemma Scope 2 has {', '.join(_SITES)}")
        return self

    @classmethod
    def detect(cls, path: Path) -> bool:
        """params.safetensors, the folder with it, or a safetensors file with its keys."""
        if path.is_dir():
            return _file(path).is_file()
        if path.suffix != ".safetensors":
            return False
        return path.name == "params.safetensors" or safetensors_shapes(path).keys() >= _KEYS.keys()

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's weights. `config.json` beside them may be missing and adds nothing that is needed."""
        if self.width is None or self.l0 is None:
            raise UserError("sae.width and sae.l0 must be set for Gemma Scope 2, such as sae.width=16k sae.l0=small")
        folder = f"{self.site or Site.resid_post}{'_all' if self.every_layer else ''}"
        variant = f"layer_{layer}_width_{self.width}_l0_{self.l0}{'_affine' if self.affine else ''}"
        return (f"{folder}/{variant}/params.safetensors",)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the file's header; site and layer from its folders."""
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
        affine = "affine_skip_connection" in shapes
        obstacle = "its affine skip connection is not part of its features" if affine else None
        return SaeHeader(d_model, width, site, int(named[1]) if named else None, obstacle)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one `params.safetensors`."""
        path = _file(path)
        header, stored = self.header(path, layer), read_safetensors(path, _KEYS)
        return build_sae(path, layer, header, {name: stored[key] for key, name in _KEYS.items()}, unit_norm=True)


def _file(path: Path) -> Path:
    return path / "params.safetensors" if path.is_dir() else path
