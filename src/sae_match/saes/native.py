"""The project's own SAE format: safetensors with canonical names and string metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_match.atomic import atomic_path
from sae_match.errors import UserError
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder
from sae_match.saes.validation import validate_loaded

FORMAT = "sae_match.jumprelu.v1"


def save_native(
    sae: SparseAutoencoder, path: Path | str, metadata: dict[str, str] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write `sae` to `path` as safetensors, replacing it in one step.

    Args:
        metadata: extra string pairs kept in the header (recipe, licence and the like).
        dtype: storage dtype; bfloat16 halves the file and reads back as float32.
    """
    path = Path(path)
    tensors = {name: t.to("cpu", dtype).contiguous() for name, t in sae.parameters().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={**(metadata or {}), "format": FORMAT})


def load_native(path: Path | str, layer: int | None = None) -> SparseAutoencoder:
    """Read a file written by `save_native` (or any safetensors file with the five canonical names).

    Raises:
        UserError: missing or corrupt file, missing or unknown keys, or invalid values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"SAE file not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(PARAMETERS):
                raise UserError(
                    f"{path}: expected the tensors {', '.join(PARAMETERS)}; "
                    f"missing {sorted(set(PARAMETERS) - names)}, unknown {sorted(names - set(PARAMETERS))}"
                )
            tensors = {name: file.get_tensor(name) for name in PARAMETERS}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return validate_loaded(SparseAutoencoder(**tensors, source=str(path)), layer)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The string metadata in the header of a native file."""
    with safe_open(Path(path), framework="pt") as file:
        return dict(file.metadata() or {})
