"""The dialects and their detection, `load_sae` for a single SAE, and the SAEs of a span of layers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from sae_match.errors import UserError
from sae_match.options import parse, what_is_wrong
from sae_match.saes.formats.base import UNKNOWN_LAST, FolderFormat, SaeFormat, SaeHeader, fill, inside_only, local_root
from sae_match.saes.formats.cross_layer import CrossLayerTranscoder
from sae_match.saes.formats.dictionary_learning import DictionaryLearning
from sae_match.saes.formats.gemma_scope import GemmaScope
from sae_match.saes.formats.gemma_scope_2 import GemmaScope2
from sae_match.saes.formats.llama_scope import LlamaScope, LlamaScopeR1
from sae_match.saes.formats.native import Native
from sae_match.saes.formats.release import Release
from sae_match.saes.formats.saelens import Saelens
from sae_match.saes.formats.sparsify import Sparsify
from sae_match.saes.formats.state_dict import StateDict
from sae_match.saes.formats.temporal import Temporal
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder

FORMATS: tuple[type[SaeFormat], ...] = (
    Native, GemmaScope, GemmaScope2, LlamaScope, LlamaScopeR1, Saelens, Sparsify, DictionaryLearning,
    CrossLayerTranscoder, Temporal, StateDict,
)  # fmt: skip
"""The dialects that `load_sae` detects and knows by name."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def format_named(dialect: str) -> type[SaeFormat]:
    """The class of a dialect of `FORMATS`."""
    names = {kind.dialect: kind for kind in FORMATS}
    if dialect not in names:
        raise UserError(f"dialect={dialect}: must be one of {', '.join(names)}, or a class of your own")
    return names[dialect]


def detect_format(path: Path) -> type[SaeFormat]:
    """The dialect of a folder by the files in it, of a file by its name, its neighbors and its tensors' names."""
    found = [kind for kind in FORMATS if kind is not Native and kind.detect(path)]
    if not found and Native.detect(path):
        return Native
    if len(found) == 1:
        return found[0]
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES) if path.is_dir() else [path]
    if not found and len(pickles) == 1:
        raise _unread(pickles[0])
    fits = f"several dialects ({', '.join(kind.dialect for kind in found)})" if found else "no known dialect"
    names = ", ".join(kind.dialect for kind in FORMATS)
    raise UserError(f"{path}: fits {fits} of SAE checkpoints. Say which with dialect=..., one of {names}")


def _unread(path: Path) -> UserError:
    if path.suffix not in PICKLES or not path.is_file():
        return UserError(f"{path}: unknown SAE file type; expected .safetensors, .npz, ae.pt or the folder of a layer")
    return UserError(
        f"{path}: a state dict does not say what the SAE computes from it. Say so with dialect=StateDict("
        "name='mine', activation=..., subtracts_b_dec=..., last_layer=0) of sae_match.saes (sae=state_dict of the "
        "command); nothing but tensors is unpickled"
    )


def load_sae(
    path: Path | str | object = None,
    layer: int | None = None,
    *,
    release: str | None = None,
    id: str | None = None,
    dialect: SaeFormat | type[SaeFormat] | str | None = None,
    site: Site | str | None = None,
) -> SparseAutoencoder:
    """Load one SAE from a file, from the folder that holds its files, in any supported dialect, or by its name in
    SAELens' registry: `load_sae(release="gemma-scope-2b-pt-res-canonical", id="layer_{layer}/width_16k/canonical",
    layer=12)`; or take over one in memory: a live object of SAELens, sparsify or dictionary_learning.

    `path` may begin with `embedded/`, which names the SAEs shipped with the package; `{layer}` in it is
    replaced, so `load_sae("embedded/smollm2_135m/layer_{layer:02d}.safetensors", 13)` works.

    Args:
        path: file or folder to read, or an object; with a release, a local copy of its repository, read in place of the
            hub.
        layer: 0-based layer, for the file name, for error messages, and to be compared with what the files say.
        release, id: names in the registry; {layer} and {next} (= layer + 1) in the id are replaced.
        dialect: how the files are laid out: a name, or a class (or an object with its options) such as a user's own;
            detected where that is unambiguous.
        site: where in the block the SAE reads, for files that do not say so.

    Raises:
        UserError: missing or corrupt file, unknown or ambiguous layout, unknown release or id, or invalid values.
    """
    if release is not None or id is not None:
        return _load_published(release, id, layer, path, site, dialect)
    if not isinstance(path, (str, Path)):
        from sae_match.saes.live import as_sae  # few need it

        return as_sae(path, layer, site)
    name = str(path)
    if layer is None and "{layer" in name:
        raise UserError(f"{name}: of which layer? load_sae({name!r}, 13) puts 13 in place of {{layer}}")
    file = local_root(fill(name, layer, "path") if layer is not None and "{" in name else name)
    if not file.exists() and file.suffix in (".safetensors", ".npz", ".pt"):
        raise UserError(f"SAE file not found: {file}")
    place = None if site is None else parse(Site, site, "site")
    if isinstance(dialect, SaeFormat):
        return (dialect if place is None else replace(dialect, site=place)).read(file, layer)
    kind = detect_format(file) if dialect is None else format_named(dialect) if isinstance(dialect, str) else dialect
    try:
        saes = kind(name=file.name, site=place, last_layer=layer or 0)
    except ValidationError as error:
        advice = f"pass an object, {kind.__name__}(name=..., ...)"
        raise UserError(f"dialect={kind.__name__}: {what_is_wrong(error)}; {advice}") from error
    return saes.read(file, layer)


def _load_published(
    release: str | None, id: str | None, layer: int | None, root: object, site: Site | str | None,
    dialect: object,
) -> SparseAutoencoder:  # fmt: skip
    if release is None or id is None or dialect is not None:
        raise UserError(f"load_sae: release={release}, id={id}, dialect={dialect}: a release goes with an id, alone")
    if layer is None and "{" in id:
        raise UserError(f"load_sae(release={release!r}, id={id!r}): of which layer? Say layer=13, or a full id")
    place = None if site is None else parse(Site, site, "site")
    saes = Release(
        name=release,
        release=release,
        id=id,
        root=None if root is None else str(root),
        site=place,
        last_layer=UNKNOWN_LAST,
    )
    at = saes.sae(layer).block if layer is None else layer
    return saes.read(saes.place([saes.fetch(name, at) for name in saes.files(at)]), at)


@dataclass(frozen=True)
class SaeSource:
    """The SAEs of a job, one per layer. Methods raise `UserError`: missing, corrupt or contradictory files.

    Attributes:
        format: the `sae` group: the dialect with its options.
        span: all layers of the job, for choices across them (sae.l0=similar).
        second: the second seeds of these SAEs in place of them, as far as there are any (`has`).
    """

    format: SaeFormat
    span: tuple[int, ...] = ()
    second: bool = False

    def has(self, layer: int) -> bool:
        """Whether there is such an SAE: of second seeds where the file exists; others are refused where they do not."""
        return not self.second or self._second_path(layer) is not None

    def files(self, layer: int) -> tuple[str, ...]:
        """The layer's files inside `sae.repo_id` (or `sae.root`); nothing is downloaded."""
        return self.format.files(layer, self.span)

    def locate(self, layers: list[int]) -> dict[int, Path]:
        """Files (or folders) of all `layers`, located (and downloaded) before anything is read."""
        if self.second:
            return {layer: self._required_second(layer) for layer in layers}
        saes = self.format
        outside = [layer for layer in layers if not saes.first_layer <= layer <= saes.last_layer]
        if outside:
            raise UserError(
                f"layers {outside}: the SAEs {saes.name} cover layers {saes.first_layer}..{saes.last_layer}. "
                "Set layers.first and layers.last within that span."
            )
        return {layer: saes.locate(layer, self.span) for layer in layers}

    def header(self, layer: int) -> SaeHeader:
        """Dimensions, site and layer of one SAE, without reading its tensors."""
        return self.format.header(self.locate([layer])[layer], layer)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer."""
        return self.format.read(self.locate([layer])[layer], layer)

    def _required_second(self, layer: int) -> Path:
        path = self._second_path(layer)
        if path is None:
            raise UserError(f"layer {layer} has no second seed")
        return path

    def _second_path(self, layer: int) -> Path | None:
        """File of the second seed, or None where there is none."""
        name = self.format.second_seed(layer, self.span)
        if name is None or self.format.root is None:
            return None
        path = local_root(self.format.root) / inside_only(name)
        return path if os.path.isfile(path) else None

    def seed_paths(self, layer: int, names: Iterable[str]) -> list[Path]:
        """Files or folders of further seeds of a layer's SAE, whether they exist or not.

        Args:
            names: with {layer} or {next}; absolute, in embedded/, or below `root`.
        """
        root = local_root(self.format.root or "")
        return [root / local_root(fill(name, layer, "evaluation.stability_seeds")) for name in names]

    def existing_seeds(self, layer: int, names: Iterable[str]) -> list[Path]:
        """Those of `seed_paths` that exist."""
        return [path for path in self.seed_paths(layer, names) if path.exists()]

    def seed_files(self, layer: int, names: Iterable[str]) -> list[Path]:
        """Their files, also those of a folder that count."""
        found, form = self.existing_seeds(layer, names), self.format
        return [file for path in found for file in (form.paths(path) if isinstance(form, FolderFormat) else (path,))]

    def identity(self, layer: int) -> list[str]:
        """Content hashes of a layer's files. Nothing is downloaded.

        Raises:
            UserError: a file of the hub is not on this machine.
            OSError: a local file cannot be read.
        """
        from sae_match.hub import cached_path, content_hash  # the hub's client is not loaded for local files

        saes, hashes = self.format, list[str]()
        if self.second:
            return [content_hash(self._required_second(layer))]
        for name in self.files(layer):
            if saes.root is not None:
                path: Path | None = local_root(saes.root) / inside_only(name)
            else:
                path = cached_path(saes.repository, name, saes.revision)
            if path is None:
                raise UserError(f"{name} of {saes.repo_id} is not on this machine")
            hashes.append(content_hash(path))
        return hashes
