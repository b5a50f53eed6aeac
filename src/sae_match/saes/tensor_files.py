"""Reading safetensors and JSON files that others wrote: headers without data, and errors that name the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_match.errors import UserError

MOST = 1 << 48
"""No dimension or count is larger; such integers also stay printable and exact as floats."""

Shapes = dict[str, tuple[int, ...]]


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
