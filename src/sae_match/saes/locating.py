"""From the names of a checkpoint's files to local paths: a directory in the hub's layout, or the hub itself."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi, HfFileSystem, constants
from safetensors import safe_open

from sae_match.errors import UserError
from sae_match.hub import HubFile, download

if TYPE_CHECKING:
    from sae_match.saes.formats.base import SaeFormat

logger = logging.getLogger(__name__)

ELSEWHERE = "point sae.root at a local copy in the hub's layout"
"""Advice where the hub has no answer."""
REMOTE_BLOCK = 2**14
"""Bytes of an archive at the hub that are asked for at a time."""
_PLACEHOLDER = re.compile(r"\{(layer|next)(?::(0?\dd))?\}")


def local_root(root: str) -> Path:
    """The directory that `sae.root` names; `embedded/NAME` is a folder of the package's own assets."""
    if root.startswith("embedded/"):
        return Path(str(resources.files("sae_match").joinpath("assets", root.removeprefix("embedded/"))))
    return Path(root).expanduser()


def fetch(saes: SaeFormat, name: str, layer: int) -> Path:
    """Local path of one file, downloaded (and its checksum checked) where `saes.root` is not set.

    Args:
        name: path inside the repository or the root.
        layer: for the message.

    Raises:
        UserError: neither root nor repo_id set, or the file is missing or cannot be downloaded.
    """
    inside_only(name)
    if saes.root is None:
        if saes.repo_id is None:
            raise UserError("neither sae.root nor sae.repo_id is set: name a directory or a hub repository")
        return download(saes.repository, name)
    root = local_root(saes.root)
    path = root / name
    if not is_file(path):
        parent = path.parent
        while not parent.is_dir() and parent not in (root, root.parent):
            parent = parent.parent
        held = ", ".join(sorted(entry.name for entry in parent.iterdir())[:12]) if parent.is_dir() else ""
        raise UserError(
            f"no SAE for layer {layer}: {path} does not exist. "
            + (f"{parent} holds {held}." if held else f"{parent} is missing or empty (sae.root).")
        )
    return path


def inside_only(name: str) -> str:
    """The name itself: a path that stays inside the directory or repository it belongs to.

    Links are followed: the hub client's own cache consists of them.

    Raises:
        UserError: an absolute path, `..`, or an unprintable character.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or not name.isprintable():
        raise UserError(
            f"{name[:200]!r}: names of files inside sae.root or sae.repo_id (from sae.filename, sae.folder, sae.width, "
            "sae.l0) are relative and without '..'; set sae.root to the directory itself"
        )
    return name


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have counts as no."""
    try:
        return path.is_file()
    except OSError:
        return False


def fill(pattern: str, layer: int, key: str) -> str:
    """A name pattern with {layer} and {next} (= layer + 1) filled in.

    Raises:
        UserError: other placeholders, or broken braces.
    """
    # str.format would also follow attributes ({layer.x}) and allocate any width ({layer:999999999d}).
    filled = _PLACEHOLDER.sub(lambda found: format(layer + (found[1] == "next"), found[2] or "d"), pattern)
    if "{" in filled or "}" in filled:
        raise UserError(
            f"{key}={pattern}: only {{layer}} and {{next}} can be filled in, with a width such as {{layer:02d}} at most"
        )
    return filled


@dataclass(frozen=True)
class SaeShape:
    """Dimensions of one SAE, and how they are known."""

    d_model: int
    width: int
    source: str


def shape_at_hub(file: HubFile, d_model: int | None) -> SaeShape | None:
    """Dimensions of the SAE in a weights' file at the hub: from its header, of which some kilobytes are read, else from
    its size; None where neither tells them.
    """
    try:
        if file.filename.endswith(".safetensors"):
            matrices = _safetensors_shapes(file)
        elif file.filename.endswith(".npz"):
            matrices = _npz_shapes(file)
        elif file.size is not None and d_model is not None:
            return SaeShape(d_model, width_from(file.size, d_model), "the model's d_model and the file's size")
        else:
            return None
    except Exception:
        # Headers serve the estimates only; whatever is wrong with the file is said when it is read.
        logger.debug("no header of %s", file.filename, exc_info=True)
        return None
    # Encoder and decoder are the largest, and an SAE has more features than its stream has dimensions.
    largest = max((shape for shape in matrices if len(shape) == 2), key=math.prod, default=None)
    return None if largest is None else SaeShape(min(largest), max(largest), "the file's header")


def _safetensors_shapes(file: HubFile) -> list[tuple[int, ...]]:
    if file.cached is not None:
        with safe_open(file.cached, framework="pt") as tensors:
            return [tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    header = HfApi(endpoint=constants.ENDPOINT).parse_safetensors_file_metadata(
        file.repository.repo_id, file.filename, revision=file.repository.revision
    )
    return [tuple(tensor.shape) for tensor in header.tensors.values()]


def _npz_shapes(file: HubFile) -> list[tuple[int, ...]]:
    """Shapes of an archive's arrays; of one at the hub some kilobytes are read."""
    if file.cached is not None:
        opened: IO[bytes] = file.cached.open("rb")
    else:
        name, revision = f"{file.repository.repo_id}/{file.filename}", file.repository.revision
        files = HfFileSystem(endpoint=constants.ENDPOINT)
        opened = files.open(name, revision=revision, block_size=REMOTE_BLOCK)
    shapes = []
    with opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes.append(tuple(read(array)[0]))
    return shapes


def width_from(size: int, d_model: int) -> int:
    """Number of features of a float32 SAE of known d_model from its file's bytes (headers are within the rounding)."""
    return max(1, round((size / 4 - d_model) / (2 * d_model + 2)))
