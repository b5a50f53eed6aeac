"""The SAEs of a span of layers through their dialect, and `load_sae` for a single file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from sae_match.errors import UserError
from sae_match.hub import cached_path, content_hash
from sae_match.saes.formats import SaeFormat, SaeHeader, detect_format, format_named
from sae_match.saes.locating import fill, inside_only, is_file, local_root
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class SaeSource:
    """The SAEs of a job, one per layer.

    Attributes:
        format: the `sae` group: the dialect with its options.
        span: all layers of the job, for choices across them (sae.l0=similar).
    """

    format: SaeFormat
    span: tuple[int, ...] = ()

    def files(self, layer: int) -> tuple[str, ...]:
        """The layer's files inside `sae.repo_id` (or `sae.root`); nothing is downloaded."""
        return self.format.files(layer, self.span)

    def locate(self, layers: list[int]) -> dict[int, Path]:
        """Files (or folders) of all `layers`, located (and downloaded) before anything is read.

        Raises:
            UserError: a layer outside the span that the SAEs cover, or a missing file.
        """
        saes = self.format
        outside = [layer for layer in layers if not saes.first_layer <= layer <= saes.last_layer]
        if outside:
            raise UserError(
                f"layers {outside}: the SAEs {saes.name} cover layers {saes.first_layer}..{saes.last_layer}. "
                "Set layers.first and layers.last within that span."
            )
        return {layer: saes.locate(layer, self.span) for layer in layers}

    def header(self, layer: int) -> SaeHeader:
        """Dimensions, site and layer of one SAE, without reading its tensors.

        Raises:
            UserError: as `load`, so far as headers show it.
        """
        return self.format.header(self.locate([layer])[layer], layer)

    def load(self, layer: int) -> SparseAutoencoder:
        """The SAE of one layer.

        Raises:
            UserError: missing, corrupt or contradictory files, or invalid values.
        """
        return self.format.read(self.locate([layer])[layer], layer)

    def load_ceiling(self, layer: int) -> SparseAutoencoder | None:
        """A second seed of one layer's SAE, or None where there is none."""
        path = self.ceiling_path(layer)
        return None if path is None else self.format.read(path, layer)

    def ceiling_path(self, layer: int) -> Path | None:
        """File of the second seed, or None where there is none."""
        name = self.format.second_seed(layer, self.span)
        if name is None or self.format.root is None:
            return None
        path = local_root(self.format.root) / inside_only(name)
        return path if is_file(path) else None

    def identity(self, layer: int) -> list[str]:
        """Content hashes of a layer's files, then of its second seed where there is one. Nothing is downloaded.

        Raises:
            UserError: a file of the hub is not on this machine.
            OSError: a local file cannot be read.
        """
        second = self.ceiling_path(layer)
        paths = [self._on_this_machine(name) for name in self.files(layer)]
        return [content_hash(path) for path in (*paths, second) if path is not None]

    def _on_this_machine(self, name: str) -> Path:
        if self.format.root is not None:
            return local_root(self.format.root) / inside_only(name)
        cached = cached_path(self.format.repository, name, self.format.revision)
        if cached is None:
            raise UserError(f"{name} of {self.format.repo_id} is not on this machine")
        return cached


def load_sae(
    path: Path | str,
    layer: int | None = None,
    *,
    dialect: SaeFormat | type[SaeFormat] | str | None = None,
    site: Site | str | None = None,
) -> SparseAutoencoder:
    """Load one SAE from a file, or from the folder that holds its files, in any supported dialect.

    `path` may begin with `embedded/`, which names the SAEs shipped with the package; `{layer}` in it is
    replaced, so `load_sae("embedded/smollm2_135m/layer_{layer:02d}.safetensors", 13)` works.

    Args:
        path: file or folder to read.
        layer: 0-based layer, for the file name, for error messages, and to be compared with what the files say.
        dialect: how the files are laid out: a name, or a class (or an object with its options) such as a user's own;
            detected where that is unambiguous.
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
    try:
        place = None if site is None else Site(site)
    except ValueError:
        raise UserError(f"site={site}: must be one of {', '.join(Site)}") from None
    if isinstance(dialect, SaeFormat):
        return (dialect if place is None else replace(dialect, site=place)).read(file, layer)
    kind = detect_format(file) if dialect is None else format_named(dialect) if isinstance(dialect, str) else dialect
    try:
        saes = kind(name=file.name, site=place, last_layer=layer or 0)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"dialect={kind.__name__}: {found}; pass an object, {kind.__name__}(name=..., ...)") from error
    return saes.read(file, layer)
