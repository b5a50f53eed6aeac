"""Reading .npz archives that others wrote: plain arrays only, headers checked before anything is allocated."""

from __future__ import annotations

import lzma
import math
import re
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
MAX_MEMBERS = 1000
_MEMBER = re.compile(r"[\w.-]+\.npy")
_ERRORS = (
    ValueError, OSError, EOFError, RuntimeError, TypeError, OverflowError, SyntaxError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
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
            check_members(path, archive)
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


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a readable .npz of plain arrays ({error}). Pickled files are refused; "
        "if the download broke off, delete the file and fetch it again."
    )
