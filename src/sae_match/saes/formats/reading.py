"""Reading files that others wrote (safetensors, .npz, JSON): headers before data, plain arrays only, bounded sizes."""

from __future__ import annotations

import json
import lzma
import math
import re
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_match.errors import UserError

MOST = 1 << 48
"""No dimension or count is larger; such integers also stay printable and exact as floats."""

Shapes = dict[str, tuple[int, ...]]

MAX_RATIO, ALWAYS_FINE = 64, 1 << 26
"""Float weights hardly compress; an archive member that unpacks to more than this many times its size (and to more
than 64 MiB) is not one."""
MAX_MEMBERS = 1000
_MEMBER = re.compile(r"[\w.-]+\.npy")
_ERRORS = (
    ValueError, OSError, EOFError, RuntimeError, TypeError, OverflowError, SyntaxError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
"""What zipfile and numpy raise on damaged or hostile archives."""


def need_file(path: Path) -> Path:
    """The path itself.

    Raises:
        UserError: there is no such file.
    """
    try:
        found = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"SAE file not found: {str(path)[:200]} ({error.strerror})") from None
    if not found:
        raise UserError(f"SAE file not found: {path}")
    return path


def safetensors_shapes(path: Path) -> Shapes:
    """Name and shape of every tensor, from the header alone.

    Raises:
        UserError: missing or unreadable file. The format's own reader refuses headers that disagree with the file's
            size, so absurd shapes end here.
    """
    try:
        with safe_open(need_file(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_safetensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Those tensors as float32; others are not read.

    Raises:
        UserError: missing or unreadable file, missing tensors, or one that is not floating point.
    """
    try:
        with safe_open(need_file(path), framework="pt") as file:
            need_names(path, file.keys(), names)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return {name: as_float32(path, name, tensor) for name, tensor in tensors.items()}


def as_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as float32.

    Raises:
        UserError: it is not a floating-point tensor.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{path}: {name} must be a floating-point tensor, got {what}")
    return tensor.to(torch.float32)


def need_names(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Refuse a file without one of the `wanted` keys.

    Raises:
        UserError: listing what is missing and what there is.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path}: missing keys {', '.join(missing)}; found {', '.join(sorted(found)) or 'none'}")


def matrix_shape(path: Path, shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """Shape of a matrix from a file's header.

    Raises:
        UserError: missing, or not a matrix.
    """
    need_names(path, shapes, [name])
    shape = shapes[name]
    if len(shape) != 2:
        raise UserError(f"{path}: {name} must be a matrix, got shape {shape}")
    return shape[0], shape[1]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing file, or not a JSON object.
    """
    try:
        value = json.loads(need_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def number(path: Path, cfg: Mapping[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A positive number of a JSON config; dots in `key` descend.

    Raises:
        UserError: missing, of another type, or not positive.
    """
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    fits = isinstance(value, int) if kind is int else isinstance(value, (int, float))
    if not fits or isinstance(value, bool) or not 0 < value <= (MOST if kind is int else sys.float_info.max):
        raise UserError(f"{path}: {key} must be a positive {kind.__name__}, got {repr(value)[:100]}")
    return value if kind is int else float(value)


def need_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that lack one of the `expected` tensors or have it in another shape.

    Raises:
        UserError: naming the tensor and both shapes.
    """
    need_names(path, found, expected)
    for name, shape in expected.items():
        if found[name] != shape:
            turned = " The matrix seems to be transposed." if found[name] == shape[::-1] else ""
            raise UserError(
                f"{path}: {name} has shape {found[name]}, expected {shape} by the config beside it.{turned}"
            )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a readable safetensors file ({error}). If the download broke off, delete it and retry"
    )


def npz_shapes(path: Path) -> Shapes:
    """Name and shape of every array, from the headers alone; nothing is unpickled or allocated.

    Raises:
        UserError: not an .npz, pickled or non-float content, or a shape that the archive cannot hold.
    """
    shapes: Shapes = {}
    try:
        with zipfile.ZipFile(need_file(path)) as archive:
            check_members(path, archive)
            for info in archive.infolist():
                shapes[info.filename.removesuffix(".npy")] = _member_shape(path, archive, info)
    except _ERRORS as error:
        raise _unreadable_npz(path, error) from error
    return shapes


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays as float32 tensors, under the names they have.

    Raises:
        UserError: as `npz_shapes`, or the data fails its checksum.
    """
    npz_shapes(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key].astype(np.float32, copy=False)) for key in arrays.files}
    except _ERRORS as error:
        raise _unreadable_npz(path, error) from error


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive by its directory, before anything in it is unpacked.

    Raises:
        UserError: names that are no plain array names (a path, a doubled name), too many of them, or together more
            data than weights of this size unpack to (members that share their bytes are found so, too).
    """
    members = archive.infolist()
    names = [info.filename for info in members]
    odd = next((name for name in names if not _MEMBER.fullmatch(name)), None)
    if odd is not None:
        raise UserError(f"{path}: {odd[:100]!r} is not the name of an array; expected names such as W_enc.npy")
    if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
        raise UserError(f"{path}: {len(names)} arrays, {len(set(names))} different names; no SAE looks like that")
    check_expansion(path, archive)


def check_expansion(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would unpack to far more than it is.

    Raises:
        UserError: naming both sizes.
    """
    total, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if total > ALWAYS_FINE and total > MAX_RATIO * size:
        raise UserError(f"{path}: would unpack {size} bytes to {total}; no weights do")


def _member_shape(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        header = file.tell()
    if dtype.hasobject:
        raise UserError(f"{path}: {info.filename} holds Python objects. Pickled files are refused")
    if dtype.kind != "f":
        raise UserError(f"{path}: {info.filename} has dtype {dtype}, expected a floating-point array")
    if header + math.prod(shape) * dtype.itemsize != info.file_size:
        raise UserError(f"{path}: {info.filename} claims shape {shape}, which is not what the archive holds")
    if info.file_size > ALWAYS_FINE and info.file_size > MAX_RATIO * info.compress_size:
        raise UserError(
            f"{path}: {info.filename} would unpack {info.compress_size} bytes to {info.file_size}; no weights do"
        )
    return tuple(shape)


def _unreadable_npz(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a readable .npz of plain arrays ({error}). Pickled files are refused; "
        "if the download broke off, delete the file and fetch it again."
    )
