"""What a checkpoint dialect is: a class with its options that knows where its files are and how they are read."""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from sae_match.errors import UserError
from sae_match.options import option
from sae_match.saes.activation import JUMPRELU, Activation
from sae_match.saes.formats.reading import SaeShape, shape_at_hub
from sae_match.saes.site import Site
from sae_match.saes.sparse_autoencoder import SparseAutoencoder, first_indices

if TYPE_CHECKING:
    from sae_match.hub import HubFile
    from sae_match.hub_errors import Repository

logger = logging.getLogger(__name__)

UNKNOWN_LAST = 1000
"""`last_layer` of formats that do not say how many layers there are."""
UNIT_NORM_TOLERANCE = 0.01
"""bf16 rows of unit norm stay within this."""
_PLACEHOLDER = re.compile(r"\{(layer|next)(?::(0?\dd))?\}")


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
    folders of several files begins from `FolderFormat`. `detect` lets `load_sae` find the dialect of a path. Methods
    raise `UserError`: options that name no file, missing, unreadable or contradictory files, unsupported variants.
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
    """Last layer for which SAEs exist; 1000 = not known, so that a job must name its layers."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether an existing file or folder is one layer's SAE of this dialect, by names and headers alone."""
        return False

    @abstractmethod
    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's files inside `repo_id` or `root`, in the order in which they are needed; nothing is downloaded.

        Args:
            span: all layers of the job, for choices that depend on them.
        """

    @abstractmethod
    def read_header(self, path: Path, layer: int | None) -> SaeHeader:
        """What the files at `path` say of the SAE, without reading its tensors."""

    @abstractmethod
    def read(self, path: Path, layer: int | None) -> SparseAutoencoder:
        """The canonical SAE in the file or folder that `locate` or a user names."""

    def locate(self, layer: int, span: tuple[int, ...] = ()) -> Path:
        """Local path that `read` takes, once all files of the layer are there: downloaded where `root` is not set."""
        return self.place([self.fetch(name, layer) for name in self.files(layer, span)])

    def place(self, files: list[Path]) -> Path:
        """What `read` is given, of all files of one layer on this machine."""
        return files[0]

    def second_seed(self, layer: int, span: tuple[int, ...] = ()) -> str | None:
        """File below `root` of a second training seed of the layer's SAE, whether it exists or not; None = none."""
        return None

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that there are no SAEs for, and options that belong to another span.

        Args:
            layers: all layers of the job, ascending.
        """
        if layers[-1] == self.last_layer == UNKNOWN_LAST:
            raise UserError(
                f"nothing says which layers the SAEs {self.name} have: name those of the job, "
                "layers.first=.. layers.last=.., or layers.pair=.. for one pair"
            )
        if not self.first_layer <= layers[0] <= layers[-1] <= self.last_layer:
            raise UserError(
                f"layers.first={layers[0]}, layers.last={layers[-1]}: the SAEs {self.name} cover layers "
                f"{self.first_layer}..{self.last_layer}"
            )

    def header(self, path: Path, layer: int | None) -> SaeHeader:
        """`read_header`, compared with the layer that was asked for and with the options `site` and `d_model`.

        The input of block t+1 is the output of block t: an SAE of `resid_pre` at t+1 is one of `resid_post` at t.
        """
        header = self.read_header(path, layer)
        site, stated = header.site, header.layer
        if site is Site.resid_pre and stated is not None and layer == stated - 1:
            site, stated = Site.resid_post, layer
        if layer is not None and stated is not None and stated != layer:
            hint = " (sae.folder with {next} names the folder of block t+1)" if site is Site.resid_pre else ""
            raise UserError(f"{path}: asked for layer {layer}, but the file is of layer {stated} ({site.value}){hint}")
        if site is Site.unknown:
            site = self.site or site
        if self.site not in (None, site):
            raise UserError(f"{path}: sae.site={self.site}, but the file reads {site}")
        if self.d_model not in (None, header.d_model):
            raise UserError(f"{path}: reads d_model={header.d_model}, but sae.d_model={self.d_model}")
        return replace(header, site=site, layer=stated)

    @property
    def repository(self) -> Repository:
        """The hub repository that is read where `root` is not set."""
        from sae_match.hub_errors import Repository  # the hub's client is loaded where the hub is asked

        if not self.repo_id:
            raise UserError("neither sae.root nor sae.repo_id is set: name a directory or a hub repository")
        return Repository(self.repo_id, self.revision, "sae", "point sae.root at a local copy in the hub's layout")

    def fetch(self, name: str, layer: int | None) -> Path:
        """Local path of one file of a layer, downloaded (and its checksum checked) where `root` is not set.

        Args:
            name: path inside the repository or the root.
        """
        inside_only(name)
        if self.root is not None:
            return _local_file(local_root(self.root), name, layer)
        from sae_match.hub import download

        return download(self.repository, name)

    def shape_at_hub(self, files: list[HubFile], d_model: int | None) -> SaeShape | None:
        """Dimensions of a layer whose files are at the hub, as far as the largest file's header or size tells them."""
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
        folder = cls.folder_of(path)
        return all((folder / name).is_file() for name in cls.FILES)

    @classmethod
    def folder_of(cls, path: Path) -> Path:
        """The layer's folder, also where the weights in it were named."""
        weights = Path(cls.FILES[-1]).parts
        return path.parents[len(weights) - 1] if path.parts[-len(weights) :] == weights else path

    @classmethod
    def paths(cls, path: Path) -> tuple[Path, ...]:
        """The layer's config and weights, from its folder or from the weights in it; no other file may be named."""
        folder = cls.folder_of(path)
        if folder.is_file():
            raise UserError(f"{path}: not called {cls.FILES[-1]}; in this dialect a layer is {', '.join(cls.FILES)}")
        return tuple(folder / name for name in cls.FILES)

    def files(self, layer: int, span: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The layer's files, in the folder that `folder` names."""
        if self.folder is None:
            raise UserError("sae.folder is not set: name the folder of one layer, such as sae.folder='layer_{layer}'")
        folder = fill(self.folder, layer, "sae.folder").strip("/")
        return tuple(f"{folder}/{name}".lstrip("/") for name in self.FILES)

    def place(self, files: list[Path]) -> Path:
        """The layer's folder."""
        return files[0].parents[self.FILES[0].count("/")]


def local_root(root: str) -> Path:
    """The directory that `sae.root` names; `embedded/NAME` is a folder of the package's own assets."""
    if root.startswith("embedded/"):
        return Path(str(resources.files("sae_match").joinpath("assets", root.removeprefix("embedded/"))))
    return Path(root).expanduser()


def inside_only(name: str) -> str:
    """The name itself, of a path that stays inside its directory or repository: neither absolute nor with `..`."""
    # Links are followed: the hub client's own cache consists of them.
    parts = name.replace("\\", "/").split("/")
    # A colon ends a drive or a protocol (C:, hf:); within a name it is an ordinary letter.
    elsewhere = name.startswith(("/", "\\", "~")) or re.match(r"\w:|[^/]*:$", parts[0])
    if elsewhere or ".." in parts or not name.isprintable():
        raise UserError(
            f"{name[:200]!r}: names of files inside sae.root or sae.repo_id (from sae.filename, sae.folder, sae.width, "
            "sae.l0) are relative and without '..'; set sae.root to the directory itself"
        )
    return name


def _local_file(root: Path, name: str, layer: int | None) -> Path:
    """The file below `root`; where it is missing, the message lists what its nearest folder holds."""
    path = root / name
    if os.path.isfile(path):  # a name that no file can have counts as no
        return path
    parent = next((at for at in path.parents if os.path.isdir(at) and at.is_relative_to(root)), root)
    held = ", ".join(sorted(os.listdir(parent))[:12]) if os.path.isdir(parent) else ""
    found = f"{parent} holds {held}" if held else f"{parent} is missing or empty (sae.root)"
    what = "SAE" if layer is None else f"SAE for layer {layer}"
    raise UserError(f"no {what}: {path} does not exist. {found}.")


def fill(pattern: str, layer: int, key: str) -> str:
    """A name pattern with {layer} and {next} (= layer + 1) filled in."""
    # str.format would also follow attributes ({layer.x}) and allocate any width ({layer:999999999d}).
    filled = _PLACEHOLDER.sub(lambda found: format(layer + (found[1] == "next"), found[2] or "d"), pattern)
    if "{" in filled or "}" in filled:
        raise UserError(
            f"{key}={pattern}: only {{layer}} and {{next}} can be filled in, with a width such as {{layer:02d}} at most"
        )
    return filled


def l0_of_layer(l0: str | None, layer: int, span: tuple[int, ...]) -> str | None:
    """What `sae.l0` says of one layer: `71/70` is a number per layer of the span, anything else holds for all."""
    if l0 is None or "/" not in l0:
        return l0
    numbers, span = l0.split("/"), span or (layer,)
    if len(numbers) != len(span) or layer not in span:
        raise UserError(
            f"sae.l0={l0}: names {len(numbers)} L0s, but layers.first={span[0]}, layers.last={span[-1]} are "
            f"{len(span)} layers; give one number, or one per layer"
        )
    return numbers[span.index(layer)]


def build_sae(
    path: Path,
    layer: int | None,
    header: SaeHeader,
    tensors: Mapping[str, Tensor],
    activation: Activation = JUMPRELU,
    *,
    unit_norm: bool = False,
) -> SparseAutoencoder:
    """The SAE of these canonical tensors; thresholds that are mostly negative are refused, what is unusual is logged.

    Trainers leave a few thresholds at or a little below 0, where a feature acts as with a ReLU. A file of logarithms
    looks otherwise: its thresholds below 1 are negative.

    Args:
        unit_norm: decoder rows of this dialect have unit norm; warn where they do not.
    """
    given: dict[str, Any] = dict(tensors)
    sae = SparseAutoencoder(
        **given, activation=activation, site=header.site, match_only=header.obstacle, source=str(path)
    )
    where = sae.source if layer is None else f"{sae.source} (layer {layer})"
    negative = tensors["threshold"] < 0
    if n_negative := int(negative.sum()):
        found = f"{n_negative} of {sae.width} thresholds are negative (feature {first_indices(negative)})"
        if n_negative > sae.width // 2:
            raise UserError(f"{where}: {found}. Is the file storing log thresholds, or another activation?")
        logger.warning("%s: %s; these features act as with a ReLU", where, found)
    if unit_norm and (worst := float((sae.W_dec.norm(dim=1) - 1).abs().max())) > UNIT_NORM_TOLERANCE:
        logger.warning("%s: decoder rows are not of unit norm (largest deviation %.3g)", where, worst)
    return sae
