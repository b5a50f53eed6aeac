"""The tensors of an SAE in one file (.safetensors, or a state dict in .pt), with a convention that options say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import ActivationKind, Convention, canonical_name, check_names, tensor_names
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae, fill
from sae_match.saes.formats.reading import read_safetensors, read_state_dict, safetensors_shapes
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder


@option
class StateDict(SaeFormat):
    """Loader of SAEs that are one file of tensors per layer; the options say what the tensors do not.

    W_enc, b_enc, W_dec, b_dec, and a threshold where the activation has one, by these names, by those of torch's Linear
    layers (encoder.weight, ...) or of Goodfire's (encoder_linear.weight, ...). Which axis of a matrix is which follows
    from the biases; where an SAE has as many features as its stream has dimensions, that is refused.
    """

    dialect: ClassVar[str] = "state_dict"

    filename: str | None = None
    """File of one layer inside root or repo_id, with {layer} or {next} (= layer + 1)."""
    activation: ActivationKind
    """jumprelu | relu | gated | topk | batch_topk."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active features per token of a topk or batch_topk."""
    subtracts_b_dec: bool
    """Whether b_dec is subtracted from the input before it is encoded."""
    rescales_by_decoder_norm: bool = False
    """Whether a topk ranks pre-activations times decoder norms."""
    ignores_others: bool = False
    """Whether the file may hold something else, which is left out; false = it is refused."""

    @model_validator(mode="after")
    def _convention_is_complete(self) -> StateDict:
        _ = self.convention
        return self

    @property
    def convention(self) -> Convention:
        """What the SAEs compute from their tensors."""
        return Convention(
            activation=self.activation, subtracts_b_dec=self.subtracts_b_dec, normalization="none", k=self.k,
            rescales_by_decoder_norm=self.rescales_by_decoder_norm,
        )  # fmt: skip

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's one file."""
        if self.filename is None:
            raise UserError("sae.filename is not set: name the file of one layer, such as 'layer{layer}.sae.pt'")
        return (fill(self.filename, layer, "sae.filename"),)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the shapes of the biases; site and layer are what the options say."""
        if path.suffix == ".safetensors":
            shapes = {name: shape for name, shape in safetensors_shapes(path).items() if self._own(name)}
        else:
            stored = read_state_dict(path, lazy=True, keep=self._own)
            shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        check_names(shapes, self.activation, path)
        named = {canonical_name(name): shape for name, shape in shapes.items()}
        sizes = named["b_dec"], named["b_gate" if self.activation is ActivationKind.gated else "b_enc"]
        if any(len(size) != 1 for size in sizes) or sizes[0] == sizes[1]:
            raise UserError(
                f"{path}: b_dec and b_enc have shapes {sizes[0]} and {sizes[1]}; expected vectors of the stream's "
                "dimensions and of the features, two different numbers, which tell the axes of the matrices apart"
            )
        thresholds = self.activation in (ActivationKind.jumprelu, ActivationKind.gated)
        return SaeHeader(
            sizes[0][0], sizes[1][0], self.site or Site.unknown, obstacle=self.convention.how.obstacle,
            foldable=None if thresholds else False,
        )  # fmt: skip

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one file; anything in it but the tensors of such an SAE is refused."""
        header = self.header(path, layer)
        if path.suffix == ".safetensors":
            stored = read_safetensors(path, list(filter(self._own, safetensors_shapes(path))))
        else:
            stored = read_state_dict(path, keep=self._own)
        named = {canonical_name(name): tensor for name, tensor in stored.items()}
        d, width = header.d_model, header.width
        oriented = named | {
            "W_enc": _oriented(path, "W_enc", named["W_enc"], (d, width)),
            "W_dec": _oriented(path, "W_dec", named["W_dec"], (width, d)),
        }
        return build_sae(path, layer, header, self.convention.canonical(oriented, path), self.convention.how)

    def _own(self, name: str) -> bool:
        """Whether an entry of the file is read."""
        known = canonical_name(name) in tensor_names([name], self.activation)
        return known or not self.ignores_others


def _oriented(path: Path, name: str, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix in this shape, turned where the file holds its transpose."""
    if tuple(matrix.shape) not in (shape, shape[::-1]):
        raise UserError(f"{path}: {name} has shape {tuple(matrix.shape)}, expected {shape} or its transpose")
    return matrix if tuple(matrix.shape) == shape else matrix.T
