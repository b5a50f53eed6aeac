"""Llama Scope checkpoints: FOLDER/{hyperparams.json, checkpoints/final.safetensors}."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.formats.base import FolderFormat, SaeHeader, validate_loaded
from sae_match.saes.formats.reading import need_shapes, number, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.site import Site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_EXPECTED = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
}
"""What all published SAEs say; other values would need other arithmetic."""


@option
class LlamaScope(FolderFormat):
    """Loader of Llama Scope's JumpReLU SAEs, with the arithmetic of the library that trained them.

    The SAE was trained on x * s_in with s = sqrt(d) / average activation norm, and its one threshold is in units of the
    raw residual stream once decoder rows have unit norm. So, in float32, with n = row norms of the rescaled decoder:

        W_dec = decoder.weight.T * (s_in / s_out) / n     b_dec = decoder.bias / s_out
        W_enc = encoder.weight.T * n                      b_enc = encoder.bias / s_in * n     threshold = the scalar

    SAELens differs. It keeps decoder rows as stored and compares its pre-activations, which are larger by s_in / n,
    with threshold * s_in: the norm n never enters its threshold. Features with n > 1 fire less often there than they
    should and features with n < 1 more often; a feature that fires in both has the same share of the reconstruction.
    """

    dialect: ClassVar[str] = "llama_scope"
    FILES: ClassVar[tuple[str, ...]] = ("hyperparams.json", "checkpoints/final.safetensors")

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, hook points and layer from `hyperparams.json`, compared with the weights' header.

        Raises:
            UserError: unreadable files, other dimensions than stated, or a variant that needs other arithmetic.
        """
        path = self.folder_of(path)
        weights = path / self.FILES[1]
        settings = _settings(path / self.FILES[0])
        d_model, width = settings["d_model"], settings["d_sae"]
        need_shapes(weights, safetensors_shapes(weights), _shapes(d_model, width))
        site, stated = site_of_hook(settings["hook_point_in"])
        if settings["hook_point_out"] != settings["hook_point_in"]:
            site, stated = Site.transcoder, site_of_hook(settings["hook_point_out"])[1]
        return SaeHeader(d_model, width, site, stated)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder.

        Raises:
            UserError: as `header`, missing keys, or invalid values.
        """
        header = self.header(path, layer)
        path = self.folder_of(path)
        settings = _settings(path / self.FILES[0])
        tensors = read_safetensors(path / self.FILES[1], _shapes(header.d_model, header.width))
        root = math.sqrt(header.d_model)
        s_in, s_out = root / settings["norm_in"], root / settings["norm_out"]
        decoder = tensors["decoder.weight"].T * (s_in / s_out)
        norms = decoder.norm(dim=1)
        sae = SparseAutoencoder(
            W_enc=tensors["encoder.weight"].T * norms,
            b_enc=tensors["encoder.bias"] / s_in * norms,
            W_dec=torch.nn.functional.normalize(decoder, dim=1, eps=1e-30),  # a row of zeros stays one
            b_dec=tensors["decoder.bias"] / s_out,
            threshold=norms.new_full((header.width,), settings["threshold"]),
            site=header.site,
            source=str(path),
        )
        return validate_loaded(sae, layer, unit_norm=True)


def _shapes(d_model: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "encoder.weight": (width, d_model),
        "encoder.bias": (width,),
        "decoder.weight": (d_model, width),
        "decoder.bias": (d_model,),
    }


def _settings(path: Path) -> dict[str, Any]:
    hyperparams = read_json(path)
    for key, value in _EXPECTED.items():
        if hyperparams.get(key, value) != value:
            raise UserError(f"{path}: {key}={hyperparams[key]!r}, but only {value!r} is supported")
    norms = "dataset_average_activation_norm"
    return {
        "d_model": number(path, hyperparams, "d_model"),
        "d_sae": number(path, hyperparams, "d_sae"),
        "threshold": number(path, hyperparams, "jump_relu_threshold", float),
        "norm_in": number(path, hyperparams, f"{norms}.in", float),
        "norm_out": number(path, hyperparams, f"{norms}.out", float),
        "hook_point_in": hyperparams.get("hook_point_in"),
        "hook_point_out": hyperparams.get("hook_point_out", hyperparams.get("hook_point_in")),
    }
