"""The tensors of an SAE in one file (.safetensors, or a state dict in .pt), with a convention that options say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import Activation, ActivationKind, canonical_name, canonical_tensors, check_names
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae, fill
from sae_match.saes.formats.reading import Shapes, read_safetensors, read_state_dict, safetensors_shapes
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
    """jumprelu | relu | topk."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active features per token of a topk."""
    subtracts_b_dec: bool
    """Whether b_dec is subtracted from the input before it is encoded."""
    rescales_by_decoder_norm: bool = False
    """Whether a topk ranks pre-activations times decoder norms."""
    ignores_others: bool = False
    """Whether the file may hold something else, which is left out; false = it is refused."""

    @model_validator(mode="after")
    def _activation_is_complete(self) -> StateDict:
        if self.activation not in (ActivationKind.jumprelu, ActivationKind.relu, ActivationKind.topk):
            raise ValueError(f"sae.activation={self.activation.value}: must be jumprelu, relu or topk")
        if (self.activation is ActivationKind.topk) != (self.k is not None):
            raise ValueError(
                f"sae.activation={self.activation.value}, sae.k={self.k}: a topk has a k, others have none"
            )
        return self

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's one file."""
        if self.filename is None:
            raise UserError("sae.filename is not set: name the file of one layer, such as 'layer{layer}.sae.pt'")
        return (fill(self.filename, layer, "sae.filename"),)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the shapes of the biases; site and layer are what the options say."""
        if path.suffix == ".safetensors":
            return self._header(
                path, {name: shape for name, shape in safetensors_shapes(path).items() if self._own(name)}
            )
        stored = read_state_dict(path, lazy=True, keep=self._own)
        return self._header(path, {name: tuple(tensor.shape) for name, tensor in stored.items()})

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one file; anything in it but the tensors of such an SAE is refused."""
        header = self.header(path, layer)
        if path.suffix == ".safetensors":
            stored = read_safetensors(path, list(filter(self._own, safetensors_shapes(path))))
        else:
            stored = read_state_dict(path, keep=self._own)
        check_names(stored, self.activation, str(path))
        named = {canonical_name(name): tensor for name, tensor in stored.items()}
        d, width = header.d_model, header.width
        oriented = named | {
            "W_enc": _oriented(path, "W_enc", named["W_enc"], (d, width)),
            "W_dec": _oriented(path, "W_dec", named["W_dec"], (width, d)),
        }
        tensors = canonical_tensors(oriented, self.subtracts_b_dec, self.rescales_by_decoder_norm, source=path)
        return build_sae(path, layer, header, tensors, Activation(self.activation, k=self.k))

    def _own(self, name: str) -> bool:
        """Whether an entry of the file is read."""
        threshold = self.activation is ActivationKind.jumprelu and name in ("threshold", "log_threshold")
        return not self.ignores_others or threshold or canonical_name(name) in ("W_enc", "b_enc", "W_dec", "b_dec")

    def _header(self, path: Path, shapes: Shapes) -> SaeHeader:
        check_names(shapes, self.activation, str(path))
        named = {canonical_name(name): shape for name, shape in shapes.items()}
        sizes = [named[name] for name in ("b_dec", "b_enc")]
        if any(len(size) != 1 for size in sizes) or sizes[0] == sizes[1]:
            raise UserError(
                f"{path}: b_dec and b_enc have shapes {sizes[0]} and {sizes[1]}; expected vectors of the stream's "
                "dimensions and of the features, two different numbers, which tell the axes of the matrices apart"
            )
        foldable = None if self.activation is ActivationKind.jumprelu else False
        return SaeHeader(sizes[0][0], sizes[1][0], self.site or Site.unknown, foldable=foldable)


def _oriented(path: Path, name: str, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix in this shape, turned where the file holds its transpose."""
    if tuple(matrix.shape) not in (shape, shape[::-1]):
        raise UserError(f"{path}: {name} has shape {tuple(matrix.shape)}, expected {shape} or its transpose")
    return matrix if tuple(matrix.shape) == shape else matrix.T
