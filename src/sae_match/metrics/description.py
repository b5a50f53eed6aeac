"""What tables, figures and comparisons say about a number, without the means to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sae_match.metrics.bootstrap import Statistic
from sae_match.options import option

MATCHED, SPLICED = "matched", "encode_permute_decode"
"""The variant that belongs to the job's own matching: of scores, and of reconstructions and losses."""
CEILING = "ceiling"
"""The variant of two seeds of one layer."""
DIFFERENCE, TO_CEILING = "_difference", "_to_ceiling"
"""Ends of the names of differences: to another variant, and to two seeds of one layer."""

Better = Literal["higher", "lower"]
Text = Annotated[str, Field(max_length=120)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


@option
class Description:
    """What tables, figures and comparisons need to know of a metric; a record keeps it beside its numbers."""

    name: Name
    """In pairs.csv and metrics.json. One that ends in `/` describes all names that begin so."""
    label: Text = ""
    """On axes and in tables; the name where there is none."""
    unit: Text = ""
    better: Better | None = None
    combine: Literal["mean", "sum", "max"] = "mean"
    """How the values of all layer pairs (or layers) become one headline number."""
    headline: bool = False
    """Shown when a job ends, in a sweep's table and in the report's main table."""
    compared: bool = False
    """In the report's main table and ranked between jobs, also where it is no headline."""
    tracked: bool = False
    """Sent to experiment trackers by default, also where it is neither headline nor compared."""
    difference: bool = False
    """The matching's value minus that of every other variant is written too, where both have resamples."""
    figure: Literal["record", "report", "none"] = "report"
    """Where its curve over layer pairs is drawn: in each record and in reports, in reports alone, or nowhere."""
    log: bool = False
    """Drawn on a logarithmic axis."""
    distance: bool = False
    """Shown over the distance between two layers, as headline metrics are."""
    reference: Text = MATCHED
    """The variant that belongs to the job's own matching; set by the kind of a metric."""
    beside: tuple[Text, ...] = ()
    """Variants that stand next to the reference in the report's main table."""
    statistic: Statistic | None = None
    """How it follows from sums per document; None where it does not, and has no paired differences between jobs."""
    sums_of: Name | None = None
    """The metric under whose name the sums are kept; its own where None."""

    @property
    def title(self) -> str:
        """The label, or the name."""
        return self.label or self.name

    @property
    def axis(self) -> str:
        """The label with the unit in brackets."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def against_controls(self) -> bool:
        """Whether it is a main number of which every alternative to the matching has one too."""
        return self.headline and self.difference

    def over_pairs(self, values: Sequence[float]) -> float:
        """The headline number of its values on every pair (or layer)."""
        array = np.asarray(values, dtype=np.float64)
        if self.combine == "max":
            return float(array.max())
        return float(array.mean() if self.combine == "mean" else array.sum())

    @property
    def numbers(self) -> list[str]:
        """Its headline numbers in the report's main table: that of the matching, then those beside it."""
        return [headline_name(self.name, variant) for variant in (self.reference, *self.beside)]


def headline_name(metric: str, variant: str) -> str:
    """Name of a number in metrics.json: `metric` for the variant `matched`, else `metric/variant`."""
    return metric if variant == MATCHED else f"{metric}/{variant}"
