"""The keys of a configuration, and the one that is nearest to an unknown key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

MIN_LIKENESS = 0.7
"""Of the last parts of two dotted keys, as `SequenceMatcher.ratio` measures it."""


def dotted_keys(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings, groups included: `layers`, `layers.first`."""
    for key, value in nested.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """` (did you mean layers.first?)`, or nothing where no known key has a similar last part."""

    def likeness(other: str) -> tuple[float, float]:
        last = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return last, SequenceMatcher(None, key, other).ratio()

    nearest = max(known, key=likeness, default="")
    return f" (did you mean {nearest}?)" if likeness(nearest)[0] >= MIN_LIKENESS else ""
