"""Temporal SAEs (Lubana et al. 2025, arXiv:2511.01836): FOLDER/{conf.yaml, latest_ckpt.safetensors}."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import Convention
from sae_match.saes.formats.base import FolderFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import need_layout, number, read_safetensors, read_yaml, safetensors_shapes
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_LAYER = re.compile(r"layer_(\d{1,4})")


@option
class Temporal(FolderFormat):
    """Loader of temporal SAEs, for matching by weights only.

    What a feature encodes is x less what attention over earlier tokens predicts of it, scaled: in SAELens' names
    relu or top-k of (s x - b - prediction) / (4 d) @ E, decoded by rows of D / s. The weights are those of this code
    without the prediction, so such an SAE never encodes. Tied weights have no E: it is D transposed.
    """

    dialect: ClassVar[str] = "temporal"
    FILES: ClassVar[tuple[str, ...]] = ("conf.yaml", "latest_ckpt.safetensors")

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from `conf.yaml`, compared with the weights' header; the layer from the folder's path."""
        config, weights = self.paths(path)
        cfg, shapes = read_yaml(config), safetensors_shapes(weights)
        d_model = number(config, cfg, "llm.dimin")
        width = int(d_model * number(config, cfg, "sae.exp_factor", float))
        need_layout(weights, shapes, self._layout(shapes), d_model, width)
        stated = [int(found[1]) for part in weights.parts if (found := _LAYER.fullmatch(part))]
        obstacle = "its features are of what earlier tokens do not predict, and depend on them"
        return SaeHeader(d_model, width, Site.resid_post, stated[-1] if stated else None, obstacle, foldable=False)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder; its attention layers are left out."""
        config, weights = self.paths(path)
        header, cfg = self.header(path, layer), read_yaml(config)
        kind = cfg["sae"].get("sae_diff_type")
        if kind not in ("relu", "topk"):
            raise UserError(f"{config}: sae.sae_diff_type={kind!r}, expected relu or topk")
        convention = Convention(
            activation=kind,
            subtracts_b_dec=True,
            normalization=number(config, cfg, "sae.scaling_factor", float),
            k=number(config, cfg, "sae.kval_topk") if kind == "topk" else None,
            rescales_by_decoder_norm=False,
        )
        stored = read_safetensors(weights, self._layout(safetensors_shapes(weights)))
        encoder = stored["E"] if "E" in stored else stored["D"].T
        tensors = {"W_enc": encoder / (4 * header.d_model), "b_enc": encoder.new_zeros(header.width)}
        tensors |= {"W_dec": stored["D"], "b_dec": stored["b"]}
        return build_sae(self.folder_of(path), layer, header, convention.canonical(tensors, weights), convention.how)

    @staticmethod
    def _layout(found: Collection[str]) -> dict[str, str]:
        untied = {"E": "d F"} if "E" in found else {}
        return {"D": "F d", "b": "d", **untied}
