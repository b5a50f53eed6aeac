"""labels.json: what a record's metrics and variants are called, their units and directions, and how they are drawn.

With it a record describes itself: a report shows a metric whose code it does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sae_match.metrics.description import DIFFERENCE, MATCHED, TO_CEILING, Description
from sae_match.metrics.registry import DESCRIPTIONS
from sae_match.options import option
from sae_match.style import VARIANTS, Look

LABELS = "labels.json"
OF_MATCHING = ("gap", "solver_seconds")
"""Tracked of the job's own matching alone, and not of a dozen other matchers."""
MAX_BYTES = 4 * 2**20


@option
class Labels:
    """Descriptions of metrics by name, in the order of a table's columns, and looks of variants in drawing order."""

    metrics: dict[str, Description]
    variants: dict[str, Look]

    def metric(self, name: str) -> Description:
        """The description of a metric; a difference has its metric's unit and direction, an unknown one its name."""
        if name in self.metrics:
            return self.metrics[name]
        for suffix, what in ((DIFFERENCE, "matched less another variant"), (TO_CEILING, "less that of two seeds")):
            if name.endswith(suffix):
                base = self.metric(name.removesuffix(suffix))
                return Description(
                    name=name, label=f"{base.title}, {what}", unit=base.unit, better=base.better, figure="none"
                )
        family = self.metrics.get(f"{name.partition('/')[0]}/")
        return Description(name=name) if family is None else replace(family, name=name)

    def split(self, number: str) -> tuple[Description, str]:
        """Metric and variant of a headline number's name (`record.headline_name`)."""
        parts = number.split("/")
        if f"{parts[0]}/" in self.metrics:
            return self.metric(number), MATCHED
        for end in range(len(parts), 0, -1):
            name = "/".join(parts[:end])
            if name.removesuffix(DIFFERENCE).removesuffix(TO_CEILING) in self.metrics or end == 1:
                return self.metric(name), "/".join(parts[end:]) or MATCHED
        raise AssertionError("unreachable: the first part is always taken")

    def of_number(self, number: str) -> Description:
        """The description of the metric that a headline number is of."""
        return self.split(number)[0]

    def is_main(self, number: str) -> bool:
        """Whether a number or curve (`METRIC/VARIANT...`) is of what jobs are compared by; no ends of intervals."""
        if number.startswith("composition/"):  # its numbers by distance are curves as well
            return number.endswith("_until")
        about, variant = self.split(number)
        tracked = about.tracked and (variant == MATCHED or about.name not in OF_MATCHING)
        compared = about.headline or about.compared or about.distance or tracked or about.figure == "record"
        return compared and not number.endswith(("_low", "_high"))

    @property
    def headlines(self) -> list[str]:
        """Names of the numbers of the matching that stand for a job."""
        return [about.numbers[0] for about in self.metrics.values() if about.headline]

    @property
    def compared(self) -> list[str]:
        """Names of the numbers of the matching that are compared between jobs."""
        return [about.numbers[0] for about in self.metrics.values() if about.headline or about.compared]

    @property
    def columns(self) -> list[str]:
        """Names of the numbers in a report's main table: those compared, and what stands beside them."""
        return [name for about in self.metrics.values() if about.headline or about.compared for name in about.numbers]

    @property
    def against_controls(self) -> list[str]:
        """Metrics of which every alternative to the matching is shown too."""
        return [name for name, about in self.metrics.items() if about.against_controls]

    def only(self, metrics: Iterable[str], variants: Iterable[str]) -> Labels:
        """The labels of these metrics and variants: known ones in their order, then the others by name."""
        names, looks = set(metrics), set(variants)
        ordered = [name for name in self.metrics if name in names]
        ordered += sorted(names.difference(ordered))
        return Labels(
            metrics={name: self.metric(name) for name in ordered},
            variants={name: style for name, style in self.variants.items() if name in looks},
        )

    def as_json(self) -> dict[str, Any]:
        """The content of labels.json: lists, since their order counts."""
        return {
            "metrics": [asdict(about) for about in self.metrics.values()],
            "variants": [{"name": name, **style._asdict()} for name, style in self.variants.items()],
        }


BUILT_IN_LABELS = Labels(metrics=dict(DESCRIPTIONS), variants=dict(VARIANTS))


def joined(every: Iterable[Labels]) -> Labels:
    """Those of the package and of several records; where two records differ, the later one counts."""
    metrics: Mapping[str, Description] = BUILT_IN_LABELS.metrics
    variants: Mapping[str, Look] = BUILT_IN_LABELS.variants
    for labels in every:
        metrics, variants = {**metrics, **labels.metrics}, {**variants, **labels.variants}
    return Labels(metrics=dict(metrics), variants=dict(variants))


def read_labels(path: Path) -> Labels:
    """What a record says, beside what the package knows; the latter alone where there is no such file.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    if not path.is_file():
        return BUILT_IN_LABELS
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: larger than {MAX_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {entry["name"]: entry for entry in content["metrics"]}
        variants = {entry.pop("name"): entry for entry in content["variants"]}
        found = Labels(metrics=metrics, variants=variants)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
    return joined([found])
