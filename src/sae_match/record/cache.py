"""Small results kept by content key: what is already known is not computed twice."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sae_match.atomic import atomic_path

from .metrics import Scalar, plain_scalar

log = logging.getLogger(__name__)

_FORMAT = "sae_match.result.v1"


class ResultCache:
    """A folder of results, one safetensors file per key (arrays as tensors, scalars as JSON metadata).

    Keys come from `content_key`: equal key, equal content, so entries never go stale and two processes
    that write one key write the same thing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def path(self, key: str) -> Path:
        """File of an entry.

        Raises:
            ValueError: the key is not a hexadecimal hash.
        """
        if not re.fullmatch(r"[0-9a-f]{16,64}", key):
            raise ValueError(f"cache key {key!r} is not a hexadecimal content hash")
        return self.directory / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Scalar | np.ndarray] | None:
        """The payload stored under `key`, or None. A file that fails its checksum, or cannot be read as
        what it should be, is reported with a warning and counts as missing."""
        path = self.path(key)
        try:
            return _read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            log.warning("cache entry %s is damaged and will be computed anew: %s", path, error)
            return None

    def damage(self, key: str) -> str | None:
        """What is wrong with an entry, or None."""
        try:
            _read(self.path(key), key)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            return str(error)
        return None

    def remove(self, key: str) -> None:
        """Remove an entry, if it is there."""
        self.path(key).unlink(missing_ok=True)

    def put(self, key: str, payload: Mapping[str, object]) -> None:
        """Store scalars (float, int, str, bool, None) and NumPy arrays by name.

        Raises:
            TypeError: a value is neither, or an array's dtype is not numeric or bool.
            ValueError: a scalar is NaN or infinite.
        """
        arrays = {name: _array(name, value) for name, value in payload.items() if isinstance(value, np.ndarray)}
        rest = {name: plain_scalar(name, value) for name, value in payload.items() if name not in arrays}
        scalars = json.dumps(rest, sort_keys=True, allow_nan=False)
        metadata = {"format": _FORMAT, "key": key, "scalars": scalars, "checksum": _checksum(key, scalars, arrays)}
        with atomic_path(self.path(key)) as temporary:
            save_file(arrays, temporary, metadata=metadata)


def _read(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as stored:
        metadata = stored.metadata() or {}
        arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"unknown format {metadata.get('format')!r}")
    if metadata["checksum"] != _checksum(key, metadata["scalars"], arrays):
        raise ValueError("checksum mismatch")
    return {**json.loads(metadata["scalars"]), **arrays}


def _array(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biuf":
        raise TypeError(f"cache payload {name}: dtype {value.dtype} cannot be stored")
    # safetensors stores the buffer as it lies in memory: it must be in C order and little-endian.
    return np.array(value, dtype=value.dtype.newbyteorder("<"), order="C")


def _checksum(key: str, scalars: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{key}\n{scalars}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
