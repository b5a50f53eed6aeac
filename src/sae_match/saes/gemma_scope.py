"""Gemma Scope checkpoints: layer_{L}/width_{W}/average_l0_{N}/params.npz, from a local directory or the hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from sae_match.config.sae_schema import SaeConfig, Site
from sae_match.errors import UserError
from sae_match.saes.gemma_scope_names import choose_l0, published_l0s
from sae_match.saes.gemma_scope_similar import choose_similar
from sae_match.saes.header import SaeHeader
from sae_match.saes.locating import fetch, local_root
from sae_match.saes.npz import npz_shapes, read_npz
from sae_match.saes.sparse_autoencoder import PARAMETERS, SparseAutoencoder
from sae_match.saes.sparsity import l0_of_layer
from sae_match.saes.tensor_files import matrix_shape, need_names
from sae_match.saes.validation import validate_loaded

logger = logging.getLogger(__name__)

_CANONICAL = {name.lower(): name for name in PARAMETERS}
_RELEASE = re.compile(r"gemma-scope-\w+-[pi]t-(res|mlp|att|transcoders)\b")
_LAYER = re.compile(r"layer_(\d{1,4})")
_SITES = {
    "res": Site.resid_post, "mlp": Site.mlp_out, "att": Site.attn_out, "transcoders": Site.transcoder,
}  # fmt: skip
"""Sites by the release's suffix. The attention SAEs read the heads' outputs before the last projection."""


class GemmaScope:
    """Loader of the Gemma Scope layout (keys of `params.npz`: W_enc, W_dec, b_enc, b_dec, threshold, in any case)."""

    def names(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> tuple[str, ...]:
        """The layer's one file.

        Raises:
            UserError: unknown release, width or L0.
        """
        if cfg.repo_id is None and cfg.root is None:
            raise UserError("sae.repo_id is not set, and neither is sae.root: name a hub repository or a directory")
        return (f"layer_{layer}/width_{_width(cfg)}/average_l0_{_l0(cfg, layer, span)}/params.npz",)

    def locate(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> Path:
        """Local path of one layer's `params.npz`; downloads it where `cfg.root` is not set.

        Raises:
            UserError: unknown release, missing folder or file, or no network.
        """
        return fetch(cfg, self.names(cfg, layer, span)[0], layer)

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions from the archive's headers, site from the release's name, layer from the folder's.

        Raises:
            UserError: not an .npz of plain arrays, or missing keys.
        """
        shapes = {_CANONICAL.get(key.lower(), key): shape for key, shape in npz_shapes(path).items()}
        d_model, width = matrix_shape(path, shapes, "W_enc")
        found = _RELEASE.search(str(path)) or _RELEASE.search(cfg.repo_id or "")
        site = _SITES[found[1]] if found else Site.unknown
        folder = path.parents[2].name if len(path.parents) > 2 else ""
        named = _LAYER.fullmatch(folder)
        obstacle = None
        if folder == "embedding":
            site, obstacle = Site.embedding, "it reads token embeddings, multiplied by sqrt(d_model)"
        return SaeHeader(d_model, width, site, int(named[1]) if named else None, obstacle).checked(
            str(path), cfg, layer
        )

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """Read one `params.npz`; never unpickles.

        Raises:
            UserError: not an npz, pickled content, missing keys, or invalid values.
        """
        header = self.header(path, layer, cfg)
        tensors: dict[str, Any] = {
            _CANONICAL.get(key.lower(), key.lower()): value for key, value in read_npz(path).items()
        }
        scaling = tensors.pop("scaling_factor", None)
        if scaling is not None and not bool((scaling == 1).all()):
            raise UserError(f"{path}: scaling_factor is not all ones; this variant of Gemma Scope is not supported")
        need_names(path, tensors, PARAMETERS)
        sae = SparseAutoencoder(
            **{name: tensors[name] for name in PARAMETERS},
            site=header.site,
            match_only=header.obstacle,
            source=str(path),
        )
        return validate_loaded(sae, layer, tensors["threshold"], unit_norm=True)


def _width(cfg: SaeConfig) -> str:
    if not cfg.width:
        raise UserError("sae.width is not set: Gemma Scope needs one, such as sae.width=16k")
    return cfg.width.removeprefix("width_")


def _l0(cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> int:
    """The N of the layer's folder; with a local root, of the folders that are there."""
    l0, width = l0_of_layer(cfg.l0, layer, span) or "canonical", _width(cfg)
    if l0 == "similar":
        layers = sorted({*span, layer})
        have = {n: _l0s_on_disk(cfg, n) if cfg.root else published_l0s(cfg.repo_id, width, n) for n in layers}
        return choose_similar(have, cfg.l0_near)[layer]
    if cfg.root is None:
        return choose_l0(cfg.repo_id, width, layer, l0)
    found = _l0s_on_disk(cfg, layer)
    if not l0.isdigit() and len(found) == 1:
        # One choice on disk is what the user means, but say so where the published list says otherwise.
        return _only_choice(cfg, layer, l0, found[0])
    wanted = choose_l0(cfg.repo_id, width, layer, l0)
    if wanted not in found:
        names = ", ".join(f"average_l0_{n}" for n in found)
        raise UserError(f"sae.l0={l0}: layer {layer} has no average_l0_{wanted} in {cfg.root}; found {names}")
    return wanted


def _l0s_on_disk(cfg: SaeConfig, layer: int) -> list[int]:
    root = local_root(cfg.root or "")
    folder = root / f"layer_{layer}" / f"width_{_width(cfg)}"
    names = [path.parent.name.removeprefix("average_l0_") for path in folder.glob("average_l0_*/params.npz")]
    found = sorted(int(name) for name in names if name.isdigit())
    if not found:
        have = sorted(path.name for path in root.glob("layer_*")) if root.is_dir() else []
        raise UserError(
            f"no SAE for layer {layer} under sae.root={root}: expected {folder}/average_l0_N/params.npz. "
            + (f"The directory holds {', '.join(have)}." if have else "The directory is missing or holds no layer_*.")
        )
    return found


def _only_choice(cfg: SaeConfig, layer: int, l0: str, only: int) -> int:
    try:
        expected = f"average_l0_{choose_l0(cfg.repo_id, _width(cfg), layer, l0)}"
    except UserError:
        expected = f"a folder that sae.l0={l0} names"
    if f"average_l0_{only}" != expected:
        logger.warning("layer %d: %s is not there; using the only one, average_l0_%d", layer, expected, only)
    return only
