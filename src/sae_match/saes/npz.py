"""Reading .npz archives that others wrote: plain arrays only, headers checked before anything is allocated."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_match.errors import UserError
from sae_match.saes.tensor_files import Shapes, need_file

MAX_RATIO, ALWAYS_FINE = 64, 1 << 26
"""Float weights hardly compress; an archive member that unpacks to more than this many times its size (and to more
than 64 MiB) is not one."""
_ERRORS = (
    ValueError, OSError, EOFError, RuntimeError, TypeError, OverflowError, SyntaxError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and numpy raise on damaged or hostile archives."""


def npz_shapes(path: Path) -> Shapes:
    """Name and shape of every array, from the headers alone; nothing is unpickled or allocated.

    Raises:
        UserError: not an .npz, pickled or non-float content, or a shape that the archive cannot hold.
    """
    shapes: Shapes = {}
    try:
        with zipfile.ZipFile(need_file(path)) as archive:
            for info in archive.infolist():
                shapes[info.filename.removesuffix(".npy")] = _member_shape(path, archive, info)
    except _ERRORS as error:
        raise _unreadable(path, error) from error
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
        raise _unreadable(path, error) from error


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


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a readable .npz of plain arrays ({error}). Pickled files are refused; "
        "if the download broke off, delete the file and fetch it again."
    )
