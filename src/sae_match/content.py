"""Content keys: equal data, equal hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np


def content_key(value: Any) -> str:
    """SHA-256 of `canonical_json`, as 64 hexadecimal digits.

    Raises:
        TypeError, ValueError: as `canonical_json`.
    """
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def canonical_json(value: Any) -> str:
    """One JSON text for equal values.

    Mappings are equal in any order, tuples to lists, enums to their value, NumPy scalars to Python's. 1 and 1.0 differ.
    Paths are refused: content is named by content, never by a file's name.

    Raises:
        TypeError: a value has no canonical form (a path, an array, an object) or a mapping's key is no string.
        ValueError: a float is not finite.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"content key: mapping keys must be strings, not {key!r}")
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    raise TypeError(f"content key: {type(value).__name__} has no canonical form; hash its content instead")
