"""The project's own SAE format: safetensors with canonical names and string metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_match.config.sae_schema import SaeConfig, Site
from sae_match.errors import UserError
from sae_match.files import atomic_path
from sae_match.saes.activation import JUMPRELU, Activation, ActivationKind
from sae_match.saes.header import SaeHeader
from sae_match.saes.locating import fetch
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder
from sae_match.saes.sparsity import check_native_l0, native_name
from sae_match.saes.tensor_files import matrix_shape, need_file, safetensors_shapes
from sae_match.saes.validation import validate_loaded

FORMAT = "sae_match.jumprelu.v1"
"""JumpReLU SAEs of the residual stream: the five tensors say everything."""
FORMAT_2 = "sae_match.sae.v2"
"""Any other SAE: metadata say which activation, site and so on; an optional tensor `scale` plays theta."""


class Native:
    """Loader of the project's own safetensors files; `root: embedded/NAME` is a set shipped with the package."""

    def names(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> tuple[str, ...]:
        """The layer's one file."""
        return (native_name(cfg, layer, span),)

    def locate(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> Path:
        """Local path of one layer's file.

        Raises:
            UserError: neither root nor repo_id set, or the file is missing; with the L0s that are there, for `sae.l0`.
        """
        check_native_l0(cfg, layer, span)
        return fetch(cfg, self.names(cfg, layer, span)[0], layer)

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions from the file's header, site from its metadata (resid_post where they say nothing)."""
        d_model, width = matrix_shape(path, safetensors_shapes(path), "W_enc")
        facts = _facts(path, read_metadata(path))
        header = SaeHeader(d_model, width, facts[1], obstacle=facts[2] or facts[0].obstacle)
        return header.checked(str(path), cfg, layer)

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """Read one safetensors file."""
        sae = load_native(path, layer)
        self.header(path, layer, cfg)
        return sae


def save_native(
    sae: SparseAutoencoder, path: Path | str, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write `sae` to `path` as safetensors, replacing it in one step.

    Args:
        metadata: extra string pairs kept in the header (recipe, licence and the like).
        dtype: storage dtype; bfloat16 halves the file and reads back as float32.
    """
    path = Path(path)
    named = sae.parameters() if sae.scale is None else {**sae.parameters(), "scale": sae.scale}
    tensors = {name: t.to("cpu", dtype).contiguous() for name, t in named.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={**(metadata or {}), **_metadata(sae)})


def load_native(path: Path | str, layer: int | None = None) -> SparseAutoencoder:
    """Read a file written by `save_native` (or any safetensors file with the five canonical names).

    Raises:
        UserError: missing or corrupt file, missing or unknown keys, or invalid values or metadata.
    """
    path = need_file(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names - {"scale"} != set(PARAMETERS):
                raise UserError(
                    f"{path}: expected the tensors {', '.join(PARAMETERS)}; "
                    f"missing {sorted(set(PARAMETERS) - names)}, unknown {sorted(names - set(PARAMETERS))}"
                )
            tensors = {name: file.get_tensor(name) for name in names}
            activation, site, match_only = _facts(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    sae = SparseAutoencoder(**tensors, activation=activation, site=site, match_only=match_only, source=str(path))
    return validate_loaded(sae, layer, tensors["threshold"], unit_norm=activation == JUMPRELU and match_only is None)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The string metadata in the header of a native file."""
    with safe_open(Path(path), framework="pt") as file:
        return dict(file.metadata() or {})


def _metadata(sae: SparseAutoencoder) -> dict[str, str]:
    """What the tensors do not say; nothing but the format for a JumpReLU SAE of the residual stream."""
    activation = sae.activation
    facts = {
        "activation": activation.kind.value,
        "k": "" if activation.k is None else str(activation.k),
        "stored_threshold": "" if activation.stored_threshold is None else repr(activation.stored_threshold),
        "normalization": activation.normalization,
        "site": sae.site.value,
        "match_only": sae.match_only or "",
    }
    if (activation, sae.site, sae.match_only, sae.scale) == (JUMPRELU, Site.resid_post, None, None):
        return {"format": FORMAT}
    return {**facts, "format": FORMAT_2}


def _facts(path: Path, metadata: dict[str, str]) -> tuple[Activation, Site, str | None]:
    """Activation, site and match_only from the metadata of `save_native`; the defaults where there are none."""
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
