"""Llama Scope checkpoints: FOLDER/{hyperparams.json, checkpoints/final.safetensors}, and those of its library since."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import Activation, canonical_tensors
from sae_match.saes.formats.base import FolderFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import expect, need_layout, number, read_json, read_safetensors, safetensors_shapes
from sae_match.saes.site import Site, site_of_hook
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_LAYOUT = {"encoder.weight": "F d", "encoder.bias": "F", "decoder.weight": "d F", "decoder.bias": "d"}
_LAYOUT_R1 = {**_LAYOUT, "log_jumprelu_threshold": "F"}
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
        """Dimensions, hook points and layer from `hyperparams.json`, compared with the weights' header."""
        config, weights = self.paths(path)
        cfg = read_json(config)
        d_model, width = number(config, cfg, "d_model"), number(config, cfg, "d_sae")
        _settings(config)
        need_layout(weights, safetensors_shapes(weights), _LAYOUT, d_model, width)
        hook_in = cfg.get("hook_point_in")
        hook_out = cfg.get("hook_point_out", hook_in)
        site, stated = site_of_hook(hook_out)
        return SaeHeader(d_model, width, site if hook_in == hook_out else Site.transcoder, stated)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder."""
        config, weights = self.paths(path)
        header, stored = self.header(path, layer), read_safetensors(weights, _LAYOUT)
        threshold, *norms_of_input = _settings(config)
        s_in, s_out = (math.sqrt(header.d_model) / norm for norm in norms_of_input)
        decoder = stored["decoder.weight"].T * (s_in / s_out)
        norms = decoder.norm(dim=1)
        tensors = {
            "W_enc": stored["encoder.weight"].T * norms,
            "b_enc": stored["encoder.bias"] / s_in * norms,
            "W_dec": torch.nn.functional.normalize(decoder, dim=1, eps=1e-30),  # a row of zeros stays one
            "b_dec": stored["decoder.bias"] / s_out,
            "threshold": norms.new_full((header.width,), threshold),
        }
        return build_sae(self.folder_of(path), layer, header, tensors, unit_norm=True)


@option
class LlamaScopeR1(FolderFormat):
    """Loader of Llama Scope R1-Distill's JumpReLU SAEs and of others that their library saves in this way.

    The arithmetic is that of `LlamaScope`, with a threshold per feature that is compared, as there, with
    pre-activations times decoder norms. s_in = s_out = sqrt(d) / average activation norm is in the weights' file, or
    is given by `norm_scaling_factors`; without it such an SAE only matches.

    SAELens leaves the norms out of the comparison, as it does for `LlamaScope`.
    """

    dialect: ClassVar[str] = "llama_scope_r1"
    FILES: ClassVar[tuple[str, ...]] = ("config.json", "sae_weights.safetensors")

    norm_scaling_factors: dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """The factor s per layer that scaled the inputs in training, where the file does not hold it."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """As `FolderFormat.detect`, of a config that names its hook points."""
        return super().detect(path) and "hook_point_in" in read_json(cls.folder_of(path) / cls.FILES[0])

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions, hook point and layer from `config.json`, compared with the weights' header."""
        config, weights = self.paths(path)
        cfg, shapes = read_json(config), safetensors_shapes(weights)
        hook_in = cfg.get("hook_point_in")
        expect(config, cfg, {"act_fn": "jumprelu", "apply_decoder_bias_to_pre_encoder": False})
        expect(config, cfg, {"use_decoder_bias": True, "use_glu_encoder": False, "hook_point_out": hook_in})
        d_model = number(config, cfg, "d_model")
        width = d_model * number(config, cfg, "expansion_factor")
        need_layout(weights, shapes, _LAYOUT_R1, d_model, width)
        site, stated = site_of_hook(hook_in)
        scaled = self._scale(config, weights, layer) is not None
        obstacle = None if scaled else Activation(normalization="dataset-wise").obstacle
        return SaeHeader(d_model, width, site, stated, obstacle)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one folder."""
        config, weights = self.paths(path)
        header, stored = self.header(path, layer), read_safetensors(weights, _LAYOUT_R1)
        s = self._scale(config, weights, layer) or 1.0
        stored["log_threshold"] = stored.pop("log_jumprelu_threshold")
        rescales = bool(read_json(config).get("sparsity_include_decoder_norm", True))
        tensors = canonical_tensors(stored, False, rescales, source=weights)
        for name in ("b_enc", "b_dec", "threshold"):
            tensors[name] = tensors[name] / s
        return build_sae(self.folder_of(path), layer, header, tensors)

    def _scale(self, config: Path, weights: Path, layer: int | None) -> float | None:
        """The factor of the inputs: 1 where they are not normalized, None where it is not known."""
        cfg = read_json(config)
        if cfg.get("norm_activation", "dataset-wise") != "dataset-wise":
            expect(config, cfg, {"norm_activation": "inference"})
            return 1.0
        name = f"dataset_average_activation_norm.{cfg.get('hook_point_in')}"
        if name in safetensors_shapes(weights):
            norm = read_safetensors(weights, [name])[name]
            if norm.numel() != 1 or not 0 < float(norm) < math.inf:
                raise UserError(f"{weights}: {name} must be one positive number")
            return math.sqrt(number(config, cfg, "d_model")) / float(norm)
        return None if layer is None else self.norm_scaling_factors.get(layer)


def _settings(config: Path) -> list[float]:
    """The threshold, and the average norms of the activations that are read and written."""
    keys = ("jump_relu_threshold", "dataset_average_activation_norm.in", "dataset_average_activation_norm.out")
    cfg = read_json(config)
    expect(config, cfg, _EXPECTED)
    return [number(config, cfg, key, float) for key in keys]
