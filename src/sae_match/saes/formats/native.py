"""The project's own SAE format: safetensors with canonical names and string metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import model_validator
from safetensors.torch import save_file
from torch import Tensor

from sae_match.errors import UserError
from sae_match.files import atomic_path
from sae_match.options import option
from sae_match.saes.activation import JUMPRELU, Activation, ActivationKind
from sae_match.saes.formats.base import SaeFormat, SaeHeader, build_sae, fill, l0_of_layer, local_root
from sae_match.saes.formats.reading import matrix_shape, read_metadata, read_safetensors, safetensors_shapes
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder

FORMAT = "sae_match.jumprelu.v1"
"""JumpReLU SAEs of the residual stream: the five tensors determine everything."""
FORMAT_2 = "sae_match.sae.v2"
"""Any other SAE: metadata say which activation, site and so on; an optional tensor `scale` is folded by."""

ROW_SCALES = {"W_enc": "W_enc_scale", "W_dec": "W_dec_scale"}
"""Matrices that may be stored as int8, and the tensor [features] that then holds one scale a feature."""


@option
class Native(SaeFormat):
    """The project's own safetensors files, one per layer; `root: embedded/NAME` is a set shipped with the package."""

    dialect: ClassVar[str] = "native"

    filename: str = "layer_{layer:02d}.safetensors"
    """File name per layer."""
    l0: str | None = None
    """Sparsity: a number that `l0_filename` holds, or one per layer of the span, such as 16/64."""
    l0_filename: str | None = None
    """File name at l0=N, with {layer} and {l0}; a folder may stand in front."""
    default_l0: int | None = None
    """The L0 that `filename` was trained for; l0 of null or of this number reads it."""
    default_layers: tuple[int, int] | None = None
    """First and last layer of a job that names none; null = first_layer to last_layer."""
    ceiling_filename: str | None = None
    """File name of a second seed; where it exists the two are matched, as a reference."""

    @model_validator(mode="after")
    def _l0_names_a_file(self) -> Native:
        if self.l0_filename is not None and "{l0}" not in self.l0_filename:
            raise ValueError(f"sae.l0_filename={self.l0_filename}: must contain {{l0}}, or every sae.l0 names one file")
        if self.l0 is None:
            return self
        numbers = self.l0.split("/")
        if not all(number.isdigit() for number in numbers):
            raise ValueError(f"sae.l0={self.l0}: must be a whole number such as 64, or one per layer, joined by /")
        if self.l0_filename is None and set(numbers) != {str(self.default_l0)}:
            raise ValueError(
                f"sae.l0={self.l0}: needs sae.l0_filename, such as 'layer_{{layer:02d}}_l0_{{l0}}.safetensors'"
            )
        return self

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Any safetensors file: what is missing in it, the reader says."""
        return path.suffix == ".safetensors" and path.is_file()

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's one file."""
        l0 = self._other_l0(layer, span)
        return (fill(self.filename, layer, "sae.filename") if l0 is None else self._at_l0(layer, l0),)

    def second_seed(self, layer: int, span: tuple[int, ...] = ()) -> str | None:
        """The file that `ceiling_filename` names, which has the sparsity of `filename`."""
        if self.ceiling_filename is None or self._other_l0(layer, span) is not None:
            return None
        return fill(self.ceiling_filename, layer, "sae.ceiling_filename")

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """As `SaeFormat.check_layers`, and refuse an `l0` of other layers."""
        super().check_layers(layers)
        l0_of_layer(self.l0, layers[0], layers)

    def locate(self, layer: int, span: tuple[int, ...] = ()) -> Path:
        """As `SaeFormat.locate`; where the file of an `l0` is missing, the message lists the L0s that are there."""
        l0 = self._other_l0(layer, span)
        if l0 is not None and self.root is not None and int(l0) not in (have := self.l0s(layer)):
            raise UserError(
                f"sae.l0={self.l0}: no SAE of layer {layer} at L0 {l0} in {local_root(self.root)} "
                f"({self._at_l0(layer, l0)}); there are: {', '.join(map(str, have)) or 'none'}. "
                f"sae-match-train training.target_l0={l0} trains one"
            )
        return super().locate(layer, span)

    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """Dimensions from the file's header, site (resid_post where nothing is said) and layer from its metadata."""
        shapes = safetensors_shapes(path)
        d_model, width = matrix_shape(path, shapes, "W_enc")
        activation, site, match_only = _facts(path)
        unscaled = "scale" not in shapes and activation.kind in (ActivationKind.topk, ActivationKind.relu)
        obstacle = match_only or activation.obstacle
        stated = read_metadata(path).get("layer", "")
        return SaeHeader(
            d_model, width, site, int(stated) if stated.isdigit() else None, obstacle, False if unscaled else None
        )

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one safetensors file."""
        names = set(safetensors_shapes(path))
        known = {*PARAMETERS, "scale", *ROW_SCALES.values()}
        if names - known or set(PARAMETERS) - names:
            raise UserError(
                f"{path}: expected the tensors {', '.join(PARAMETERS)}; "
                f"missing {sorted(set(PARAMETERS) - names)}, unknown {sorted(names - known)}"
            )
        header, activation = self.header(path, layer), _facts(path)[0]
        plain = activation == JUMPRELU and header.obstacle is None
        scaled = {name: scale for name, scale in ROW_SCALES.items() if scale in names}
        tensors = read_safetensors(path, names, int8=scaled)
        for name, scale in scaled.items():
            tensors[name] *= _by_feature(name, tensors.pop(scale))
        return build_sae(path, layer, header, tensors, activation, unit_norm=plain)

    def l0s(self, layer: int) -> list[int]:
        """L0s of one layer for which there are files below `root`, ascending; `default_l0` among them."""
        root, mark = local_root(self.root or ""), "sparsity"
        pattern = re.compile(re.escape(self._at_l0(layer, mark)).replace(mark, r"(\d+)"))
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        found = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
        if self.default_l0 is not None and (root / fill(self.filename, layer, "sae.filename")).is_file():
            found.add(self.default_l0)
        return sorted(found)

    def _other_l0(self, layer: int, span: tuple[int, ...]) -> str | None:
        """The L0 of a layer's file; None where it is `filename` itself."""
        l0 = l0_of_layer(self.l0, layer, span)
        return None if l0 is None or l0 == str(self.default_l0) else l0

    def _at_l0(self, layer: int, l0: str) -> str:
        return fill((self.l0_filename or "").replace("{l0}", l0), layer, "sae.l0_filename")


def save_native(
    sae: SparseAutoencoder, path: Path | str, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write `sae` to `path` as safetensors, replacing it in one step.

    Args:
        metadata: extra string pairs kept in the header (recipe, license and the like).
        dtype: storage dtype; all read back as float32. bfloat16 halves the file; int8 is for the two weight matrices,
            one float32 scale a feature, which keeps the norm of its row (biases and thresholds stay float32).
    """
    tensors = sae.parameters() if sae.scale is None else {**sae.parameters(), "scale": sae.scale}
    if dtype is torch.int8:
        tensors = {name: t.to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
        for name, scale in ROW_SCALES.items():
            tensors[name], tensors[scale] = _eight_bits(name, tensors[name])
    else:
        tensors = {name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={**(metadata or {}), **_metadata(sae)})


def _by_feature(name: str, values: Tensor) -> Tensor:
    """One value a feature, shaped to multiply the matrix of that name."""
    return values[:, None] if name == "W_dec" else values


def _eight_bits(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their largest entries as integers -127..127, and the scales [features] that keep the rows' norms."""
    over = 0 if name == "W_enc" else 1
    largest = matrix.abs().amax(over).clamp_min(torch.finfo(torch.float32).tiny)
    rounded = (matrix / _by_feature(name, largest) * 127).round()
    norms = torch.linalg.vector_norm(rounded, dim=over).clamp_min(1.0)
    return rounded.to(torch.int8), torch.linalg.vector_norm(matrix, dim=over) / norms


def load_native(path: Path | str, layer: int | None = None) -> SparseAutoencoder:
    """Read a file written by `save_native` (or any safetensors file with the five canonical names).

    Raises:
        UserError: missing or corrupt file, missing or unknown keys, or invalid values or metadata.
    """
    return Native(name=Path(path).name, last_layer=layer or 0).read(Path(path), layer)


def _metadata(sae: SparseAutoencoder) -> dict[str, str]:
    """What the tensors do not say; nothing but the format for a JumpReLU SAE of the residual stream."""
    activation = sae.activation
    if (activation, sae.site, sae.match_only, sae.scale) == (JUMPRELU, Site.resid_post, None, None):
        return {"format": FORMAT}
    return {
        "format": FORMAT_2,
        "activation": activation.kind.value,
        "k": str(activation.k or ""),
        "stored_threshold": "" if activation.stored_threshold is None else repr(activation.stored_threshold),
        "normalization": activation.normalization,
        "site": sae.site.value,
        "match_only": sae.match_only or "",
    }


def _facts(path: Path) -> tuple[Activation, Site, str | None]:
    """Activation, site and match_only from the metadata of `save_native`; the defaults where there are none."""
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT_2:
        return JUMPRELU, Site.resid_post, None
    try:
        k, stored = metadata["k"], metadata["stored_threshold"]
        activation = Activation(
            ActivationKind(metadata["activation"]),
            k=int(k) if k else None,
            stored_threshold=float(stored) if stored else None,
            normalization=metadata["normalization"],
        )
        return activation, Site(metadata["site"]), metadata["match_only"] or None
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: metadata of format {FORMAT_2} are incomplete or wrong ({error})") from error
