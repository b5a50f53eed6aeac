"""One way in for every checkpoint dialect: a registry of small loaders behind `load_sae` and `SaeSource`."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from sae_match.config.schema import Dialect, SaeConfig
from sae_match.errors import UserError
from sae_match.saes.gemma_scope import GemmaScope
from sae_match.saes.hub import download
from sae_match.saes.native import load_native
from sae_match.saes.sparse_autoencoder import SparseAutoencoder


class Loader(Protocol):
    """Maps one checkpoint dialect onto the canonical SAE."""

    def locate(self, cfg: SaeConfig, layer: int) -> Path:
        """Local path of one layer's checkpoint."""

    def names(self, cfg: SaeConfig, layer: int) -> tuple[str, ...]:
        """The layer's files inside the repository."""

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """The canonical SAE in that file."""


class Native:
    """Loader of the project's own safetensors files; `root: embedded/NAME` is a set shipped with the package."""

    def locate(self, cfg: SaeConfig, layer: int) -> Path:
        """Local path of one layer's file.

        Raises:
            UserError: neither root nor repo_id set, or the file is missing.
        """
        return self._named(cfg, cfg.filename, layer)

    def names(self, cfg: SaeConfig, layer: int) -> tuple[str, ...]:
        """The layer's one file inside the repository."""
        if cfg.repo_id is None:
            raise UserError("neither sae.root nor sae.repo_id is set: name a directory or a hub repository")
        return (cfg.filename.format(layer=layer),)

    def locate_ceiling(self, cfg: SaeConfig, layer: int) -> Path | None:
        """Path of a second seed of the same layer, or None where there is none."""
        if cfg.ceiling_filename is None or cfg.root is None:
            return None
        path = native_root(cfg.root) / cfg.ceiling_filename.format(layer=layer)
        return path if path.is_file() else None

    def _named(self, cfg: SaeConfig, pattern: str, layer: int) -> Path:
        name = pattern.format(layer=layer)
        if cfg.root is None:
            if cfg.repo_id is None:
                raise UserError("neither sae.root nor sae.repo_id is set: name a directory or a hub repository")
            return download(cfg.repo_id, name, cfg.revision)
        path = native_root(cfg.root) / name
        if not path.is_file():
            raise UserError(f"no SAE for layer {layer}: {path} does not exist (sae.root, sae.filename)")
        return path

    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """Read one safetensors file."""
        return load_native(path, layer)


LOADERS: dict[Dialect, Loader] = {Dialect.native: Native(), Dialect.gemma_scope: GemmaScope()}
"""Loader of each dialect; a new dialect is one class and one line here."""


def native_root(root: str) -> Path:
    """The directory that `sae.root` names; `embedded/NAME` is a folder of the package's own assets."""
    if root.startswith("embedded/"):
        return Path(str(resources.files("sae_match").joinpath("assets", root.removeprefix("embedded/"))))
    return Path(root).expanduser()


class SaeHeader(NamedTuple):
    """What is known of an SAE before its tensors are read."""

    d_model: int
    width: int


@dataclass(frozen=True)
class SaeSource:
    """The SAEs that a configuration names, one per layer."""

    cfg: SaeConfig

    def locate(self, layers: list[int]) -> dict[int, Path]:
        """Files of all `layers`, located (and downloaded) before anything is read.

        Raises:
            UserError: a layer outside the span that the SAEs cover, or a missing file.
        """
        outside = [layer for layer in layers if not self.cfg.first_layer <= layer <= self.cfg.last_layer]
        if outside:
            raise UserError(
                f"layers {outside}: the SAEs {self.cfg.name} cover layers {self.cfg.first_layer}.."
                f"{self.cfg.last_layer}. Set layers.first and layers.last within that span."
            )
        loader = LOADERS[self.cfg.dialect]
        return {layer: loader.locate(self.cfg, layer) for layer in layers}

    def names(self, layer: int) -> tuple[str, ...]:
        """The layer's files inside `sae.repo_id`; nothing is downloaded."""
        return LOADERS[self.cfg.dialect].names(self.cfg, layer)

    def header(self, layer: int) -> SaeHeader:
        """Dimensions of one SAE, without reading its tensors.

        Raises:
            UserError: as `load`, so far as headers show it.
        """
        path = self.locate([layer])[layer]
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive, archive.open("W_enc.npy") as file:
                    np.lib.format.read_magic(file)
                    d_model, width = np.lib.format.read_array_header_1_0(file)[0]
            else:
                with safe_open(path, framework="pt") as tensors:
                    d_model, width = tensors.get_slice("W_enc").get_shape()
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
            raise UserError(f"{path}: not a readable {path.suffix[1:]} file with W_enc [d, F] ({error})") from error
        return SaeHeader(d_model, width)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer."""
        return LOADERS[self.cfg.dialect].read(self.locate([layer])[layer], layer)

    def load_ceiling(self, layer: int) -> SparseAutoencoder | None:
        """A second seed of one layer's SAE, or None where there is none."""
        loader = LOADERS[self.cfg.dialect]
        path = loader.locate_ceiling(self.cfg, layer) if isinstance(loader, Native) else None
        return None if path is None else loader.read(path, layer)


def load_sae(path: Path | str, layer: int | None = None) -> SparseAutoencoder:
    """Load one SAE file: `.safetensors` in the native format, or `.npz` as Gemma Scope publishes them.

    `path` may begin with `embedded/`, which names the SAEs shipped with the package; `{layer}` in it is
    replaced, so `load_sae("embedded/smollm2_135m/layer_{layer:02d}.safetensors", 13)` works.

    Args:
        path: file to read.
        layer: 0-based layer, for the file name and for error messages.

    Raises:
        UserError: missing or corrupt file, unknown suffix, or invalid values.
    """
    name = str(path)
    if layer is not None and "{layer" in name:
        name = name.format(layer=layer)
    suffixes = {".safetensors": Dialect.native, ".npz": Dialect.gemma_scope}
    file = native_root(name)
    if file.suffix not in suffixes:
        raise UserError(f"{file}: unknown SAE file type; expected one of {', '.join(suffixes)}")
    return LOADERS[suffixes[file.suffix]].read(file, layer)
