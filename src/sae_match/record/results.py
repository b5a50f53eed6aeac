"""The one writer of a job's results: steps hand it rows and tables, which are on disk after every step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from sae_match.metrics.description import MATCHED
from sae_match.metrics.metric import MetricRow
from sae_match.record.contents import CHILDREN, FEATURES
from sae_match.record.job import JobRecord
from sae_match.record.labels import Labels
from sae_match.record.pairs import near

PER_FEATURE = ("drop", "kl_ablated", "kl_substituted", "fingerprint")
"""Columns of functional.parquet that features.parquet has too, empty where a feature was not tested."""

logger = logging.getLogger(__name__)


class Results:
    """What a job has found so far. Subscribers (figures, experiment trackers) are given it when the job is complete.

    Attributes:
        labels: what every metric and variant of the job is called.
        rows: those whose value is a number.
        random_mse: decoder MSE of random pairs, to draw beside the matched ones.
        numbers: headline numbers, once they are known.
        warnings: what a reader of the results must know.
    """

    def __init__(self, record: JobRecord, labels: Labels) -> None:
        self.record, self.labels = record, labels
        self.rows: list[MetricRow] = []
        self.random_mse: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []
        self._features: dict[tuple[int, int], pd.DataFrame] = {}
        self._effects: list[pd.DataFrame] = []
        self._children: list[pd.DataFrame] = []
        self._lines: list[dict[str, int | str | float | None]] = []
        self._named: set[tuple[str, str]] = set()

    def add(
        self, rows: Iterable[MetricRow], layers: tuple[int, int] | None = None, features: pd.DataFrame | None = None
    ) -> None:
        """Add rows, and put a layer pair's feature table in the place of what is known of it.

        A row whose value is no number is left out and reported: a missing row must not look like an oversight.
        """
        for row in rows:
            if math.isfinite(row.value):
                self.rows.append(row)
                self._lines.append(row.as_dict())
            else:
                logger.warning(
                    "%s (%s) at layers %d -> %d is undefined (nothing to average) and left out",
                    row.metric, row.variant, row.layer, row.layer_to,
                )  # fmt: skip
        self.__dict__.pop("pairs", None)
        self.record.write_pairs(self.pairs)
        named = self._named | {(row.metric, row.variant) for row in self.rows}
        if named != self._named:
            self._named = named
            self.record.write_labels(self.known_labels)
        if layers is not None and features is not None:
            self._features[layers] = pd.DataFrame({"layer": layers[0], "layer_to": layers[1], **features})
            self.__dict__.pop("features", None)
            self.record.write_table(FEATURES, self.features)

    def add_children(self, layers: tuple[int, int], children: pd.DataFrame) -> None:
        """Add the children of the features of a pair's first SAE, as in children.parquet."""
        self._children.append(pd.DataFrame({"layer": layers[0], "layer_to": layers[1], **children}))
        self.record.write_table(CHILDREN, pd.concat(self._children, ignore_index=True))

    def add_effects(self, effects: pd.DataFrame, matchers: Mapping[str, Mapping[str, str]]) -> None:
        """Add what the partners of a pair do, and give the features of the job's own matching their numbers.

        Args:
            effects: as in functional.parquet.
            matchers: what each variant is, as in matchers.json.
        """
        self._effects.append(effects)
        self.record.write_functional(pd.concat(self._effects, ignore_index=True), matchers)
        own = effects[effects["variant"] == MATCHED]
        layers = tuple(effects[["layer", "layer_to"]].iloc[0])
        if len(own) and layers in self._features:
            columns = [name for name in PER_FEATURE if name in own]
            table = self._features[layers].drop(columns=columns, errors="ignore")
            self._features[layers] = table.merge(own[["feature", *columns]], on="feature", how="left")
            self.__dict__.pop("features", None)
            self.record.write_table(FEATURES, self.features)

    def warn(self, warnings: Sequence[str]) -> None:
        """Log what a reader of the results must know; it is in status.json, the report and the W&B run's notes, too."""
        for warning in warnings:
            logger.warning("%s", warning)
        self.warnings += warnings
        self.record.warn(warnings)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """All rows, as in pairs.csv."""
        return pd.DataFrame(self._lines)

    @cached_property
    def features(self) -> pd.DataFrame:
        """One row per matched feature, as in features.parquet; none of a single layer."""
        if not self._features:
            return pd.DataFrame(columns=["layer", "layer_to"], dtype="int64")
        return pd.concat(self._features.values(), ignore_index=True)

    @property
    def near_rows(self) -> list[MetricRow]:
        """Rows of neighbors and of single layers: averages over them are not mixed with those over distance."""
        kept = near([(row.layer, row.layer_to, row.variant) for row in self.rows])
        return [row for row, is_near in zip(self.rows, kept, strict=True) if is_near]

    @property
    def known_labels(self) -> Labels:
        """Labels of the metrics and variants that have rows."""
        return self.labels.only(self.pairs["metric"], self.pairs["variant"])

    def finish(self, numbers: dict[str, float]) -> None:
        """Write the headline numbers."""
        self.numbers = numbers
        self.record.write_metrics(numbers)
