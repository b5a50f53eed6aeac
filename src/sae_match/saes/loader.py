"""What every loader of a checkpoint dialect offers, and the part that folder-per-layer dialects share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Protocol

from sae_match.config.sae_schema import SaeConfig, Site
from sae_match.errors import UserError
from sae_match.saes.header import SaeHeader
from sae_match.saes.locating import fetch_folder, layer_folder
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

_HOOK = re.compile(r"blocks\.(\d{1,4})\.(?:(attn)\.)?hook_(\w+)$")
_SITES = {name: Site(name) for name in ("resid_post", "resid_pre", "resid_mid", "mlp_out", "attn_out")}
_MODULE = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.(\w+))?$")
_MODULE_SITES = {
    None: Site.resid_post, "mlp": Site.mlp_out, "attn": Site.attn_out, "self_attn": Site.attn_out,
    "attention": Site.attn_out,
}  # fmt: skip


class Loader(Protocol):
    """Maps one checkpoint dialect onto the canonical SAE.

    `cfg` names the checkpoint; `span` holds all layers of the job, for choices that depend on them.
    """

    def names(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> tuple[str, ...]:
        """The layer's files inside `repo_id`, in the order in which they are needed."""

    def locate(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> Path:
        """Local path of one layer's checkpoint (a file, or a folder of several), downloaded if need be."""

    def header(self, path: Path, layer: int | None, cfg: SaeConfig) -> SaeHeader:
        """Dimensions, site and layer, without reading the tensors."""

    def read(self, path: Path, layer: int | None, cfg: SaeConfig) -> SparseAutoencoder:
        """The canonical SAE in that checkpoint."""


class FolderLoader:
    """A dialect with one folder per layer, named by `sae.folder`, and always the same files in it."""

    FILES: ClassVar[tuple[str, ...]] = ()

    def folder(self, path: Path) -> Path:
        """The layer's folder, also where the weights in it were named.

        Raises:
            UserError: another file was named.
        """
        weights = Path(self.FILES[-1])
        if path.name != weights.name and path.is_file():
            raise UserError(f"{path}: not called {weights.name}; in this dialect a layer is {', '.join(self.FILES)}")
        return path.parents[len(weights.parts) - 1] if path.name == weights.name else path

    def names(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> tuple[str, ...]:
        """The layer's files inside the repository: the config, then the weights."""
        return tuple(f"{layer_folder(cfg, layer)}/{name}".lstrip("/") for name in self.FILES)

    def locate(self, cfg: SaeConfig, layer: int, span: tuple[int, ...]) -> Path:
        """The layer's folder.

        Raises:
            UserError: a missing file, or no network.
        """
        return fetch_folder(cfg, self.FILES, layer)


def site_of_hook(name: object) -> tuple[Site, int | None]:
    """Site and block of a TransformerLens hook name or of a module of a transformers model (`site_of_module`);
    `unknown` where the name says something else.

    `blocks.N.attn.hook_z`, the attention output before its last projection, counts as attn_out.
    """
    found = _HOOK.match(name) if isinstance(name, str) else None
    if found is None:
        return site_of_module(name) if isinstance(name, str) else (Site.unknown, None)
    layer, attention, hook = int(found[1]), found[2], found[3]
    if attention is not None:
        return (Site.attn_out if hook == "z" else Site.unknown), layer
    return _SITES.get(hook, Site.unknown), layer


def site_of_module(name: str) -> tuple[Site, int | None]:
    """Site and block of a module whose output is read, such as `model.layers.3`, `h.3.mlp` or `gpt_neox.layers.3`."""
    found = _MODULE.match(name)
    return (Site.unknown, None) if found is None else (_MODULE_SITES.get(found[2], Site.unknown), int(found[1]))
