"""What a job can show to an experiment tracker, and the mirror that shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd

from .labels import Labels

Histogram = tuple[np.ndarray, np.ndarray]
"""Counts [bins] and edges [bins + 1], as `numpy.histogram` gives them."""


class Mirror(Protocol):
    """A context manager around one job; what goes in comes from the record, which stays the truth.

    No method accepts a NaN or an infinite number: ValueError names it. None means "not measured" and is dropped.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def log_curves(self, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One step per place on an axis (`layer`, `distance` or `quantile`), which every row names and no two share."""

    def log_pair_table(self, pairs: pd.DataFrame) -> None:
        """The whole pairs.csv as a table; empty cells allowed for low, high and n only."""

    def log_comparison(self, numbers: Mapping[str, Any]) -> None:
        """The headline numbers as a table with the job's settings in every row: laid under those of other jobs it
        compares them."""

    def log_histograms(self, histograms: Mapping[str, np.ndarray | Histogram]) -> None:
        """Raw values (binned here, 64 bins) or ready histograms (at most 512 bins), by name."""

    def log_figures(self, paths: Sequence[Path]) -> None:
        """Image files, named by their stem."""

    def log_permutations(self, directory: Path) -> None:
        """Every safetensors file of a folder as one artifact, made from the SAEs that the files' headers name."""

    def log_labels(self, labels: Labels) -> None:
        """What the metrics are called, their units and which way is better, as a table."""

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Headline numbers; nothing but numbers, so that columns sort."""


class NullMirror:
    """tracking=none: same interface, no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def log_curves(self, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def log_comparison(self, numbers: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_pair_table(self, pairs: pd.DataFrame) -> None:
        """Nothing."""

    def log_histograms(self, histograms: Mapping[str, np.ndarray | Histogram]) -> None:
        """Nothing."""

    def log_figures(self, paths: Sequence[Path]) -> None:
        """Nothing."""

    def log_permutations(self, directory: Path) -> None:
        """Nothing."""

    def log_labels(self, labels: Labels) -> None:
        """Nothing."""

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Nothing."""
