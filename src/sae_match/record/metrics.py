"""Headline numbers: flat names, finite values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Scalar = float | int | str | bool | None


def plain_scalar(name: str, value: object) -> Scalar:
    """A JSON scalar for a Python or NumPy one.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"metric {name}: expected a number, text, bool or None, got {type(value).__name__}")


def plain_metrics(metrics: Mapping[str, object]) -> dict[str, Scalar]:
    """The metrics as JSON scalars, sorted by name.

    Raises:
        TypeError: a name is no string, or a value is no scalar.
    """
    for name in metrics:
        if not isinstance(name, str) or not name:
            raise TypeError(f"metric names are non-empty strings, not {name!r}")
    return {name: plain_scalar(name, metrics[name]) for name in sorted(metrics)}


def undefined(metrics: Mapping[str, object]) -> list[str]:
    """Names of the values that are NaN or infinite."""
    return sorted(
        name for name, value in metrics.items() if isinstance(value, (float, np.floating)) and not math.isfinite(value)
    )
