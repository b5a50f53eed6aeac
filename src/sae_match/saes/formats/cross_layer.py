"""One layer of a cross-layer transcoder in circuit-tracer's layout: W_enc_{L}.safetensors and W_dec_{L}.safetensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind, Convention
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae
from sae_match.saes.formats.reading import (
    SaeShape,
    matrix_shape,
    need_layout,
    need_names,
    read_safetensors,
    read_summed,
    safetensors_shapes,
    shape_at_hub,
)
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from sae_match.hub import HubFile

_ENCODER = re.compile(r"W_enc_(\d{1,4})\.safetensors")


@option
class CrossLayerTranscoder(SaeFormat):
    """Loader of one layer of a cross-layer transcoder, for matching by weights only.

    A feature reads the MLP's input at its layer and writes to the MLP outputs of this layer and all later ones. Its
    decoder row is the sum of what it writes, as in SAELens; a threshold beside the encoder makes it a JumpReLU.
    """

    dialect: ClassVar[str] = "cross_layer_transcoder"

    @classmethod
    def detect(cls, path: Path) -> bool:
        """The encoder's file, with the decoder's beside it."""
        return path.is_file() and _ENCODER.fullmatch(path.name) is not None and cls._decoder(path).is_file()

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's encoder and decoder."""
        return f"W_enc_{layer}.safetensors", f"W_dec_{layer}.safetensors"

    def shape_at_hub(self, files: list[HubFile], d_model: int | None) -> SaeShape | None:
        """Dimensions from the encoder's file."""
        return shape_at_hub(files[0], d_model)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the headers of both files, the layer from the encoder's name."""
        number, shapes, written = self._number(path), safetensors_shapes(path), safetensors_shapes(self._decoder(path))
        width, d_model = matrix_shape(path, shapes, f"W_enc_{number}")
        need_layout(path, shapes, {f"b_enc_{number}": "F", f"b_dec_{number}": "d"}, d_model, width)
        name = f"W_dec_{number}"
        need_names(self._decoder(path), written, [name])
        if len(written[name]) != 3 or (written[name][0], written[name][2]) != (width, d_model):
            raise UserError(
                f"{self._decoder(path)}: {name} has shape {written[name]}, expected ({width}, n, {d_model})"
            )
        obstacle = "it writes to several layers, of which its decoder rows are the sum"
        foldable = None if f"threshold_{number}" in shapes else False
        return SaeHeader(d_model, width, Site.transcoder, number, obstacle, foldable)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one layer; of the decoder one written layer is in memory at a time."""
        header, number = self.header(path, layer), self._number(path)
        names = ["W_enc", "b_enc", "b_dec"]
        if f"threshold_{number}" in safetensors_shapes(path):
            names.append("threshold")
        stored = read_safetensors(path, [f"{name}_{number}" for name in names])
        tensors = {name: stored[f"{name}_{number}"] for name in names}
        tensors |= {"W_enc": tensors["W_enc"].T, "W_dec": read_summed(self._decoder(path), f"W_dec_{number}")}
        kind = ActivationKind.jumprelu if "threshold" in names else ActivationKind.relu
        convention = Convention(activation=kind, subtracts_b_dec=False, normalization="none")
        return build_sae(path, layer, header, convention.canonical(tensors, path), convention.how)

    @staticmethod
    def _number(path: Path) -> int:
        found = _ENCODER.fullmatch(path.name)
        if found is None:
            raise UserError(f"{path}: name the encoder's file, W_enc_N.safetensors; the decoder's is beside it")
        return int(found[1])

    @staticmethod
    def _decoder(path: Path) -> Path:
        return path.with_name(path.name.replace("W_enc_", "W_dec_"))
