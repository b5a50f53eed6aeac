"""One way in for every checkpoint dialect: a registry of small loaders behind `load_sae` and `SaeSource`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sae_match.config.sae_schema import Dialect, SaeConfig, Site
from sae_match.errors import UserError
from sae_match.saes.detection import detect_dialect
from sae_match.saes.dictionary_learning import DictionaryLearning
from sae_match.saes.gemma_scope import GemmaScope
from sae_match.saes.gemma_scope_2 import GemmaScope2
from sae_match.saes.header import SaeHeader
from sae_match.saes.llama_scope import LlamaScope
from sae_match.saes.loader import Loader
from sae_match.saes.locating import fill, inside_only, is_file, local_root
from sae_match.saes.native import Native
from sae_match.saes.saelens import Saelens
from sae_match.saes.sparse_autoencoder import SparseAutoencoder
from sae_match.saes.sparsify import Sparsify
from sae_match.saes.sparsity import native_l0

E = TypeVar("E", Dialect, Site)

LOADERS: dict[Dialect, Loader] = {
    Dialect.native: Native(),
    Dialect.gemma_scope: GemmaScope(),
    Dialect.gemma_scope_2: GemmaScope2(),
    Dialect.llama_scope: LlamaScope(),
    Dialect.saelens: Saelens(),
    Dialect.sparsify: Sparsify(),
    Dialect.dictionary_learning: DictionaryLearning(),
}
"""Loader of each dialect; a new dialect is one class and one line here."""


@dataclass(frozen=True)
class SaeSource:
    """The SAEs that a configuration names, one per layer.

    Attributes:
        cfg: the `sae` group.
        span: all layers of the job, for choices across them (sae.l0=similar).
    """

    cfg: SaeConfig
    span: tuple[int, ...] = ()

    @property
    def loader(self) -> Loader:
        """The dialect's loader."""
        return LOADERS[self.cfg.dialect]

    def names(self, layer: int) -> tuple[str, ...]:
        """The layer's files inside `sae.repo_id` (or `sae.root`); nothing is downloaded."""
        return self.loader.names(self.cfg, layer, self.span)

    def locate(self, layers: list[int]) -> dict[int, Path]:
        """Files (or folders) of all `layers`, located (and downloaded) before anything is read.

        Raises:
            UserError: a layer outside the span that the SAEs cover, or a missing file.
        """
        outside = [layer for layer in layers if not self.cfg.first_layer <= layer <= self.cfg.last_layer]
        if outside:
            raise UserError(
                f"layers {outside}: the SAEs {self.cfg.name} cover layers {self.cfg.first_layer}.."
                f"{self.cfg.last_layer}. Set layers.first and layers.last within that span."
            )
        return {layer: self.loader.locate(self.cfg, layer, self.span) for layer in layers}

    def header(self, layer: int) -> SaeHeader:
        """Dimensions, site and layer of one SAE, without reading its tensors.

        Raises:
            UserError: as `load`, so far as headers show it.
        """
        return self.loader.header(self.locate([layer])[layer], layer, self.cfg)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer.

        Raises:
            UserError: missing, corrupt or contradictory files, or invalid values.
        """
        return self.loader.read(self.locate([layer])[layer], layer, self.cfg)

    def load_ceiling(self, layer: int) -> SparseAutoencoder | None:
        """A second seed of one layer's SAE, or None where there is none."""
        path = self.ceiling_path(layer)
        return None if path is None else self.loader.read(path, layer, self.cfg)

    def ceiling_path(self, layer: int) -> Path | None:
        """File of the second seed, or None where there is none: it has the sparsity of `sae.filename`."""
        if self.cfg.ceiling_filename is None or self.cfg.root is None:
            return None
        if native_l0(self.cfg, layer, self.span) is not None:
            return None
        path = local_root(self.cfg.root) / inside_only(fill(self.cfg.ceiling_filename, layer, "sae.ceiling_filename"))
        return path if is_file(path) else None


def load_sae(
    path: Path | str,
    layer: int | None = None,
    *,
    dialect: Dialect | str | None = None,
    site: Site | str | None = None,
) -> SparseAutoencoder:
    """Load one SAE from a file, or from the folder that holds its files, in any supported dialect.

    `path` may begin with `embedded/`, which names the SAEs shipped with the package; `{layer}` in it is
    replaced, so `load_sae("embedded/smollm2_135m/layer_{layer:02d}.safetensors", 13)` works.

    Args:
        path: file or folder to read.
        layer: 0-based layer, for the file name, for error messages, and to be compared with what the files say.
        dialect: how the files are laid out; detected where that is unambiguous.
        site: where in the block the SAE reads, for files that do not say so.

    Raises:
        UserError: missing or corrupt file, unknown or ambiguous layout, or invalid values.
    """
    if not isinstance(path, (str, Path)):
        raise UserError(
            f"load_sae reads files, and was given a {type(path).__name__}; an SAE in memory becomes one with "
            "SparseAutoencoder.from_state_dict(sae.state_dict(), activation=..., subtracts_b_dec=...)"
        )
    name = str(path)
    if layer is not None and "{" in name:
        name = fill(name, layer, "path")
    file = local_root(name)
    if not file.exists() and file.suffix in (".safetensors", ".npz", ".pt"):
        raise UserError(f"SAE file not found: {file}")
    known = _member(Dialect, dialect, "dialect") or detect_dialect(file)
    cfg = SaeConfig(name=file.name, dialect=known, site=_member(Site, site, "site"), last_layer=layer or 0)
    return LOADERS[known].read(file, layer, cfg)


def _member(kind: type[E], value: E | str | None, name: str) -> E | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        raise UserError(f"{name}={value}: must be one of {', '.join(kind)}") from None
