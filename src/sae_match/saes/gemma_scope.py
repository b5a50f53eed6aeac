"""Gemma Scope checkpoints: layer_{L}/width_{W}/average_l0_{N}/params.npz, from a local directory or the hub."""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from sae_match.config.schema import SaeConfig
from sae_match.errors import UserError
from sae_match.saes.gemma_scope_names import choose_l0
from sae_match.saes.hub import download
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder
from sae_match.saes.validation import validate_loaded

logger = logging.getLogger(__name__)


class GemmaScope:
    """Loader of the Gemma Scope layout (keys of `params.npz`: W_enc, W_dec, b_enc, b_dec, threshold)."""

    def locate(self, cfg: SaeConfig, layer: int) -> Path:
        """Local path of one layer's `params.npz`; downloads it where `cfg.root` is not set.

        Raises:
            UserError: unknown release, missing folder or file, or no network.
        """
        if cfg.root is not None:
            return _locate_local(cfg, Path(cfg.root).expanduser(), layer)
        return download(cfg.repo_id or "", self.names(cfg, layer)[0], cfg.revision)

    def names(self, cfg: SaeConfig, layer: int) -> tuple[str, ...]:
        """The layer's one file inside the repository."""
        if cfg.repo_id is None:
            raise UserError("sae.repo_id is not set, and neither is sae.root: name a hub repository or a directory")
        l0 = choose_l0(cfg.repo_id, _width(cfg), layer, cfg.l0 or "canonical")
        return (f"layer_{layer}/width_{_width(cfg)}/average_l0_{l0}/params.npz",)

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one `params.npz`; never unpickles.

        Raises:
            UserError: not an npz, pickled content, missing keys, or invalid values.
        """
        tensors = _read_npz(path)
        scaling = tensors.pop("scaling_factor", None)
        if scaling is not None and not bool((scaling == 1).all()):
            raise UserError(f"{path}: scaling_factor is not all ones; this variant of Gemma Scope is not supported")
        missing = [name for name in PARAMETERS if name not in tensors]
        if missing:
            raise UserError(f"{path}: missing keys {', '.join(missing)}; found {', '.join(sorted(tensors))}")
        sae = SparseAutoencoder(**{name: tensors[name] for name in PARAMETERS}, source=str(path))
        return validate_loaded(sae, layer)


def _width(cfg: SaeConfig) -> str:
    if not cfg.width:
        raise UserError("sae.width is not set: Gemma Scope needs one, such as sae.width=16k")
    return cfg.width.removeprefix("width_")


def _locate_local(cfg: SaeConfig, root: Path, layer: int) -> Path:
    folder = root / f"layer_{layer}" / f"width_{_width(cfg)}"
    found = sorted((p.parent.name for p in folder.glob("average_l0_*/params.npz")), key=lambda n: (len(n), n))
    if not found:
        have = sorted(p.name for p in root.glob("layer_*")) if root.is_dir() else []
        raise UserError(
            f"no SAE for layer {layer} under sae.root={root}: expected {folder}/average_l0_N/params.npz. "
            + (f"The directory holds {', '.join(have)}." if have else "The directory is missing or holds no layer_*.")
        )
    l0 = cfg.l0 or "canonical"
    if not l0.isdigit() and len(found) == 1:
        # One choice on disk is what the user means, but say so where the published list says otherwise.
        return _only_choice(cfg, folder / found[0] / "params.npz", layer, l0)
    wanted = f"average_l0_{choose_l0(cfg.repo_id, _width(cfg), layer, l0)}"
    if wanted not in found:
        raise UserError(f"sae.l0={l0}: layer {layer} has no {wanted} in {folder}; found {', '.join(found)}")
    return folder / wanted / "params.npz"


def _only_choice(cfg: SaeConfig, path: Path, layer: int, l0: str) -> Path:
    try:
        expected = f"average_l0_{choose_l0(cfg.repo_id, _width(cfg), layer, l0)}"
    except UserError:
        expected = f"a folder that sae.l0={l0} names"
    if path.parent.name != expected:
        logger.warning("layer %d: %s is not there; using the only one, %s", layer, expected, path.parent)
    return path


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"SAE file not found: {path}")
    canonical = {name.lower(): name for name in PARAMETERS}
    tensors: dict[str, torch.Tensor] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise UserError(f"{path}: a single array, not an .npz archive")
            for key in arrays.files:
                value = arrays[key]
                if value.dtype.kind != "f":
                    raise UserError(f"{path}: {key} has dtype {value.dtype}, expected a floating-point array")
                tensors[canonical.get(key.lower(), key.lower())] = torch.from_numpy(
                    value.astype(np.float32, copy=False)
                )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: not a readable .npz of plain arrays ({error}). Pickled files are refused; "
            "if the download broke off, delete the file and fetch it again."
        ) from error
    return tensors
