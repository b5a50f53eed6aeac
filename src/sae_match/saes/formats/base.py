"""What a checkpoint dialect is: a class with its options that knows where its files are and how they are read."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_match.errors import UserError
from sae_match.hub import HubFile
from sae_match.hub_errors import Repository
from sae_match.options import option
from sae_match.saes.locating import ELSEWHERE, SaeShape, fetch, fill, shape_at_hub
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

logger = logging.getLogger(__name__)

UNIT_NORM_TOLERANCE = 0.01
"""bf16 rows of unit norm stay within this."""


@dataclass(frozen=True)
class SaeHeader:
    """What is known of an SAE before its tensors are read: from file headers, JSON configs and folder names.

    Attributes:
        d_model: dimensions that the SAE reads.
        width: number of features.
        site: where in the block it reads; `unknown` where the files do not say.
        layer: 0-based block as the files say, None where they do not.
        obstacle: why the SAE cannot encode, where that is known already.
        foldable: False where its features have no thresholds to be folded by; None where only tensors tell.
    """

    d_model: int
    width: int
    site: Site = Site.unknown
    layer: int | None = None
    obstacle: str | None = None
    foldable: bool | None = None


@option
class SaeFormat(ABC):
    """SAEs of one checkpoint dialect, one per layer: the configuration's group `sae`.

    A dialect is a subclass with its own options and the methods `files`, `read_header` and `read`; one whose layers are
    folders of several files begins from `FolderFormat`. `detect` lets `load_sae` find the dialect of a path by itself.
    """

    dialect: ClassVar[str] = ""
    """Its name in `load_sae(..., dialect=NAME)`."""

    name: str
    """Short name used in records."""
    root: str | None = None
    """Local directory in the hub's layout, or embedded/NAME; read in place of the hub when set."""
    repo_id: str | None = None
    """Hub repository."""
    revision: str | None = None
    """Hub revision; null = main."""
    site: Site | None = None
    """Where in the block the SAEs read; null = what the files say. All but resid_post are matched by weights only."""
    d_model: Annotated[int, Field(ge=1)] | None = None
    """Width of what the SAEs read, where known before their files are."""
    n_layers: Annotated[int, Field(ge=1)] | None = None
    """Number of blocks of the model that the SAEs belong to, where known."""
    neuronpedia: str | None = None
    """Name of these SAEs on neuronpedia.org as MODEL/SOURCE with {layer}, for links; null = they are not there."""
    first_layer: int = 0
    """First layer for which SAEs exist."""
    last_layer: int
    """Last layer for which SAEs exist."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether an existing file or folder is one layer's SAE of this dialect, by names and headers alone."""
        return False

    @abstractmethod
    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's files inside `repo_id` or `root`, in the order in which they are needed; nothing is downloaded.

        Args:
            span: all layers of the job, for choices that depend on them.

        Raises:
            UserError: the options name no file.
        """

    @abstractmethod
    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """What the files at `path` say of the SAE, without reading its tensors.

        Raises:
            UserError: unreadable files, or a variant that is not supported.
        """

    @abstractmethod
    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """The canonical SAE in the file or folder that `locate` or a user names.

        Raises:
            UserError: as `header`, missing tensors, or invalid values.
        """

    def locate(self, layer: int, span: tuple[int, ...] = ()) -> Path:
        """Local path of one layer's file, or of the folder of several, downloaded where `root` is not set.

        Raises:
            UserError: neither root nor repo_id set, or a file is missing or cannot be downloaded.
        """
        (name,) = self.files(layer, span)
        return fetch(self, name, layer)

    def second_seed(self, layer: int, span: tuple[int, ...] = ()) -> str | None:
        """File below `root` of a second training seed of the layer's SAE, whether it exists or not; None = none."""
        return None

    def check_span(self, first: int, last: int) -> None:
        """Refuse layers that there are no SAEs for, and options that belong to another span.

        Raises:
            UserError: naming the layers or the option.
        """
        if first < self.first_layer or last > self.last_layer:
            raise UserError(
                f"layers.first={first}, layers.last={last}: the SAEs {self.name} cover layers "
                f"{self.first_layer}..{self.last_layer}"
            )

    def header(self, path: Path, layer: int | None) -> SaeHeader:
        """`read_header`, compared with the layer that was asked for and with the options `site` and `d_model`.

        The input of block t+1 is the output of block t: an SAE of `resid_pre` at t+1 is one of `resid_post` at t.

        Raises:
            UserError: as `read_header`, or the files name another layer, site or d_model.
        """
        header = self.read_header(path, layer)
        site, stated = header.site, header.layer
        if site is Site.resid_pre and stated is not None and layer == stated - 1:
            site, stated = Site.resid_post, layer
        if layer is not None and stated is not None and stated != layer:
            hint = " (sae.folder with {next} names the folder of block t+1)" if site is Site.resid_pre else ""
            raise UserError(f"{path}: asked for layer {layer}, but the file is of layer {stated} ({site.value}){hint}")
        if site is Site.unknown and self.site is not None:
            site = self.site
        if self.site is not None and self.site is not site:
            raise UserError(f"{path}: sae.site={self.site.value}, but the file reads {site.value}")
        if self.d_model is not None and self.d_model != header.d_model:
            raise UserError(f"{path}: reads d_model={header.d_model}, but sae.d_model={self.d_model}")
        return replace(header, site=site, layer=stated)

    @property
    def repository(self) -> Repository:
        """The hub repository that is read where `root` is not set."""
        return Repository(self.repo_id or "", self.revision, "sae", ELSEWHERE)

    def shape_at_hub(self, files: list[HubFile], d_model: int | None) -> SaeShape | None:
        """Dimensions of a layer whose files are at the hub, as far as the largest file's header or size tells them.

        Args:
            d_model: what the SAE reads, where it is known, for files whose header cannot be read alone.
        """
        return shape_at_hub(max(files, key=lambda file: file.size or 0), d_model)


@option
class FolderFormat(SaeFormat):
    """A dialect with one folder per layer and always the same files in it: the config, then the weights."""

    FILES: ClassVar[tuple[str, ...]] = ()

    folder: str | None = None
    """Folder of one layer inside root or repo_id, with {layer} or {next} (= layer + 1, for SAEs that read the input of
    the next block)."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """A folder with all the files, or the weights in one."""
        weights = Path(cls.FILES[-1]).parts
        folder = path.parents[len(weights) - 1] if path.parts[-len(weights) :] == weights else path
        return all((folder / name).is_file() for name in cls.FILES)

    @classmethod
    def folder_of(cls, path: Path) -> Path:
        """The layer's folder, also where the weights in it were named.

        Raises:
            UserError: another file was named.
        """
        weights = Path(cls.FILES[-1])
        if path.name != weights.name and path.is_file():
            raise UserError(f"{path}: not called {weights.name}; in this dialect a layer is {', '.join(cls.FILES)}")
        return path.parents[len(weights.parts) - 1] if path.name == weights.name else path

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's files: its folder from `folder`, with the layer filled in.

        Raises:
            UserError: `folder` is not set, or has other placeholders than {layer} and {next}.
        """
        if self.folder is None:
            raise UserError("sae.folder is not set: name the folder of one layer, such as sae.folder='layer_{layer}'")
        folder = fill(self.folder, layer, "sae.folder").strip("/")
        return tuple(f"{folder}/{name}".lstrip("/") for name in self.FILES)

    def locate(self, layer: int, span: tuple[int, ...] = ()) -> Path:
        """The layer's folder.

        Raises:
            UserError: a missing file, or no network.
        """
        paths = [fetch(self, name, layer) for name in self.files(layer, span)]
        return paths[0].parents[self.FILES[0].count("/")]


def l0_of_layer(l0: str | None, layer: int, span: tuple[int, ...]) -> str | None:
    """What `sae.l0` says of one layer: `71/70` is a number per layer of the span, anything else holds for all.

    Raises:
        UserError: another number of L0s than layers, or a layer outside the span.
    """
    if l0 is None or "/" not in l0:
        return l0
    numbers = l0.split("/")
    if len(numbers) != len(span) or layer not in span:
        raise UserError(f"sae.l0={l0}: names {len(numbers)} L0s for the layers {list(span)}; layer {layer} needs one")
    return numbers[span.index(layer)]


def check_l0_per_layer(l0: str | None, first: int, last: int) -> None:
    """Refuse an `sae.l0` with one number per layer of another span.

    Raises:
        UserError: naming both counts.
    """
    numbers, n_layers = (l0 or "").split("/"), last - first + 1
    if len(numbers) not in (1, n_layers):
        raise UserError(
            f"sae.l0={l0}: names {len(numbers)} L0s, but layers.first={first}, layers.last={last} are "
            f"{n_layers} layers; give one number, or one per layer"
        )


def validate_loaded(
    sae: SparseAutoencoder, layer: int | None, stored_threshold: Float[Tensor, " F"] | None = None, *, unit_norm: bool
) -> SparseAutoencoder:
    """Refuse thresholds that are mostly negative, and log what is unusual.

    Trainers leave a few thresholds at or a little below 0, where a feature acts as with a ReLU. A file of logarithms
    looks otherwise: its thresholds below 1 are negative.

    Args:
        stored_threshold: the thresholds as they stand in the file, where it has one per feature.
        unit_norm: decoder rows of this dialect have unit norm; warn where they do not.

    Returns the SAE itself, so that loaders can end with this call.

    Raises:
        UserError: naming file, layer, key and feature indices.
    """
    where = sae.source if layer is None else f"{sae.source} (layer {layer})"
    if stored_threshold is not None and bool((negative := stored_threshold < 0).any()):
        found = f"{int(negative.sum())} of {sae.width} thresholds are negative (feature {first_indices(negative)})"
        if int(negative.sum()) > sae.width // 2:
            raise UserError(f"{where}: {found}. Is the file storing log thresholds, or another activation?")
        logger.warning("%s: %s; these features act as with a ReLU", where, found)
    worst = float((sae.W_dec.norm(dim=1) - 1).abs().max())
    if unit_norm and worst > UNIT_NORM_TOLERANCE:
        logger.warning("%s: decoder rows are not of unit norm (largest deviation %.3g)", where, worst)
    return sae
