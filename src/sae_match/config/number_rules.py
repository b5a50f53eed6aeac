"""Whole numbers that no array can be counted with: refused before any rule computes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

LARGEST = 2**63 - 1
"""Of numpy's and torch's counts; above some 10^308 Python cannot even make a float of it."""


def number_rules(value: Any, name: str = "") -> Iterator[str]:
    """A line for every whole number, anywhere in nested dataclasses, lists and dicts, that does not fit 64 bits."""
    if isinstance(value, int) and abs(value) > LARGEST:
        yield f"{name}: a whole number of {value.bit_length()} bits; 63 are the most that can be counted with"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from number_rules(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from number_rules(entry, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from number_rules(entry, name)
