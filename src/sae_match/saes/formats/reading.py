"""Reading files that others wrote (safetensors, .npz, state dicts, JSON): headers first, no pickles, bounded sizes.

Every function raises `UserError`, which names the file: missing, damaged, hostile, or without what is wanted of it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes.activation import as_float32

if TYPE_CHECKING:
    from sae_match.hub import HubFile

logger = logging.getLogger(__name__)

MAX_INTEGER = 1 << 48
"""No dimension or count is larger; such integers also stay printable and exact as floats."""
MAX_RATIO, ALWAYS_FINE = 64, 1 << 26
"""Weights hardly compress: what unpacks to more than 64 times its size (and to more than 64 MiB) is refused."""
MAX_MEMBERS = 1000
MAX_YAML = 1 << 20
REMOTE_BLOCK = 2**14
"""Bytes of an archive at the hub that are requested at a time."""
_MEMBER = re.compile(r"[\w.-]+\.npy")

Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor in a file."""


@contextmanager
def _readable(path: Path, kind: str, *, quote: bool = True) -> Iterator[None]:
    """Whatever a parser raises on a damaged or hostile file becomes a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: not a readable {kind} ({error if quote else type(error).__name__}). Pickled files are refused; "
            "if the download broke off, delete the file and fetch it again"
        ) from error


def need_file(path: Path) -> Path:
    """The path itself, of a file that is there."""
    if not os.path.isfile(path):  # a name that no file can have counts as no
        raise UserError(f"SAE file not found: {str(path)[:200]}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    with _readable(path, "JSON file"):
        value = json.loads(need_file(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, of plain values; a file too large for a configuration is refused."""
    with _readable(path, "YAML file"):
        if need_file(path).stat().st_size > MAX_YAML:
            raise UserError(f"{path}: more than {MAX_YAML} bytes; no configuration is so large")
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a YAML mapping, got {type(value).__name__}")
    return value


def number(where: object, cfg: Mapping[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A positive number of a JSON config; dots in `key` descend."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not fits or not 0 < value <= (MAX_INTEGER if kind is int else sys.float_info.max):
        raise UserError(f"{where}: {key} must be a positive {kind.__name__}, got {repr(value)[:100]}")
    return kind(value)


def expect(path: Path, cfg: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a JSON config with another value than expected; a missing key counts as the expected value."""
    for key, value in expected.items():
        if cfg.get(key, value) != value:
            raise UserError(f"{path}: {key}={cfg[key]!r}, but only {value!r} is supported")


def need_names(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Refuse a file without one of the `wanted` keys."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path}: missing keys {', '.join(missing)}; found {', '.join(sorted(found)) or 'none'}")


def need_layout(path: Path, found: Shapes, layout: Mapping[str, str], d: int, width: int) -> None:
    """Refuse weights that lack one of the tensors of a layout or have it in another shape.

    Args:
        layout: axes of every tensor, such as {"encoder.weight": "F d"}.
        d, width: sizes of the axes d and F, as the config beside the weights states them.
    """
    need_names(path, found, layout)
    for name, axes in layout.items():
        shape = tuple({"d": d, "F": width}[axis] for axis in axes.split())
        if found[name] != shape:
            turned = " The matrix seems to be transposed." if found[name] == shape[::-1] else ""
            raise UserError(
                f"{path}: {name} has shape {found[name]}, expected {shape} by the config beside it.{turned}"
            )


def matrix_shape(path: Path, shapes: Shapes, name: str) -> tuple[int, int]:
    """Shape of a matrix."""
    need_names(path, shapes, [name])
    if len(shapes[name]) != 2:
        raise UserError(f"{path}: {name} must be a matrix, got shape {shapes[name]}")
    rows, columns = shapes[name]
    return rows, columns


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    # The format's own reader refuses headers that disagree with the file's size, so absurd shapes end here.
    with _readable(path, "safetensors file"), safe_open(need_file(path), framework="pt") as file:
        yield file


def safetensors_shapes(path: Path) -> Shapes:
    """Shapes from the header alone."""
    with _safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path | str) -> dict[str, str]:
    """The string metadata in the header of a safetensors file."""
    with _safetensors(Path(path)) as file:
        return dict(file.metadata() or {})


def read_safetensors(path: Path, names: Collection[str], int8: Collection[str] = ()) -> dict[str, Tensor]:
    """Those tensors as float32; others are not read. Only the tensors named in `int8` may be of that type."""
    with _safetensors(path) as file:
        need_names(path, file.keys(), names)
        tensors = {}
        for name in names:
            tensor = file.get_tensor(name)
            whole = name in int8 and tensor.dtype is torch.int8
            tensors[name] = tensor.float() if whole else as_float32(path, name, tensor)
        return tensors


def read_summed(path: Path, name: str) -> Tensor:
    """The float32 sum over the middle axis of a tensor [a, n, b], of which one [a, b] is in memory at a time."""
    with _safetensors(path) as file:
        need_names(path, file.keys(), [name])
        stored = file.get_slice(name)
        total = as_float32(path, name, stored[:, 0, :]).clone()
        for place in range(1, stored.get_shape()[1]):
            total += as_float32(path, name, stored[:, place, :])
        return total


def npz_shapes(path: Path) -> Shapes:
    """Shapes from the headers alone; nothing is unpickled or allocated."""
    with _readable(path, ".npz of plain arrays"), need_file(path).open("rb") as file:
        return _archive_shapes(path, file)


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays as float32 tensors, under the names they have; checksums are checked."""
    npz_shapes(path)
    with _readable(path, ".npz of plain arrays"), np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key].astype(np.float32, copy=False)) for key in arrays.files}


def _archive_shapes(path: Path | str, file: IO[bytes]) -> Shapes:
    """Shapes of an archive's arrays, once its directory shows plain names and sizes that weights have."""
    shapes: Shapes = {}
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        odd = next((name for name in names if not _MEMBER.fullmatch(name)), None)
        if odd is not None:
            raise UserError(f"{path}: {odd[:100]!r} is not the name of an array; expected names such as W_enc.npy")
        if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
            raise UserError(f"{path}: {len(names)} arrays, {len(set(names))} different names; no SAE looks like that")
        _check_expansion(path, archive, size)
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                v1, v2 = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
                shape, _, dtype = (v1 if version == (1, 0) else v2)(member)
                header = member.tell()
            if dtype.hasobject:
                raise UserError(f"{path}: {info.filename} holds Python objects. Pickled files are refused")
            if dtype.kind != "f":
                raise UserError(f"{path}: {info.filename} has dtype {dtype}, expected a floating-point array")
            if header + math.prod(shape) * dtype.itemsize != info.file_size:
                raise UserError(f"{path}: {info.filename} claims shape {shape}, which is not what the archive holds")
            shapes[info.filename.removesuffix(".npy")] = tuple(shape)
    return shapes


def _check_expansion(path: Path | str, archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what would unpack to far more than it is: one member, or all (which may share their bytes)."""
    members = [(info.file_size, info.compress_size) for info in archive.infolist()]
    for unpacked, packed in [(sum(unpacked for unpacked, _ in members), size), *members]:
        if unpacked > ALWAYS_FINE and unpacked > MAX_RATIO * packed:
            raise UserError(f"{path}: would unpack {packed} bytes to {unpacked}; no weights do")


def read_state_dict(
    path: Path, *, lazy: bool = False, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a state dict, unpickled by torch's restricted unpickler: nothing in the file can run.

    Args:
        lazy: map the file into memory where its layout allows it, for a look at the shapes.
        keep: which entries are wanted; the others may be anything that the restricted unpickler reads.
    """
    size = need_file(path).stat().st_size
    # torch's own message, not quoted, advises to load the file without the restriction.
    with _readable(path, "state dict of plain tensors", quote=False):
        packed = zipfile.is_zipfile(path)
        if packed:
            with zipfile.ZipFile(path) as archive:
                _check_expansion(path, archive, size)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy and packed)
    kept = {str(name): value for name, value in state.items() if keep(str(name))} if isinstance(state, dict) else {}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in kept.values()):
        raise UserError(f"{path}: expected a state dict of tensors")
    if sum(value.numel() * value.element_size() for value in kept.values()) > size:
        raise UserError(f"{path}: its tensors claim more data than the file holds")
    return kept


@dataclass(frozen=True)
class SaeShape:
    """Dimensions of one SAE, and how they are known."""

    d_model: int
    width: int
    source: str


def shape_at_hub(file: HubFile, d_model: int | None) -> SaeShape | None:
    """Dimensions of the SAE in a weights file at the hub: from its header, of which some kilobytes are read, else from
    its size (float32; headers are within the rounding); None where neither is known.
    """
    if file.filename.endswith((".safetensors", ".npz")):
        try:
            # Encoder and decoder are the largest, and an SAE has more features than its stream has dimensions.
            largest = max((shape for shape in _shapes_at_hub(file).values() if len(shape) == 2), key=math.prod)
        except Exception:
            # Headers serve the estimates only; whatever is wrong with the file is reported when it is read.
            logger.debug("no header of %s", file.filename, exc_info=True)
            return None
        return SaeShape(min(largest), max(largest), "the file's header")
    if file.size is None or d_model is None:
        return None
    width = max(1, round((file.size / 4 - d_model) / (2 * d_model + 2)))
    return SaeShape(d_model, width, "the model's d_model and the file's size")


def _shapes_at_hub(file: HubFile) -> Shapes:
    repo_id, revision, name = file.repository.repo_id, file.repository.revision, file.filename
    if file.cached is not None:
        return npz_shapes(file.cached) if name.endswith(".npz") else safetensors_shapes(file.cached)
    from huggingface_hub import HfApi, HfFileSystem, constants

    if name.endswith(".npz"):
        files = HfFileSystem(endpoint=constants.ENDPOINT)
        with files.open(f"{repo_id}/{name}", revision=revision, block_size=REMOTE_BLOCK) as opened:
            return _archive_shapes(name, opened)
    header = HfApi(endpoint=constants.ENDPOINT).parse_safetensors_file_metadata(repo_id, name, revision=revision)
    return {key: tuple(tensor.shape) for key, tensor in header.tensors.items()}
