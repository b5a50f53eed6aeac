"""The tidy row in which every measured number is kept."""

from __future__ import annotations

from dataclasses import dataclass

from sae_match.metrics.bootstrap import Estimate


@dataclass(frozen=True, eq=False)
class MetricRow:
    """One metric of one variant on one layer pair (or on one layer: then `layer_to` equals `layer`).

    Attributes:
        layer, layer_to: layers t and t+1.
        variant: `matched`, a control (`vanilla`, `random`), `ceiling`, a splice's name, or `sae` / `model`.
        metric: its name.
        value: the number; for bootstrapped metrics the estimate's value.
        estimate: replicates for the interval, None for exact numbers.
        n: documents, features or tokens that the number averages over.
    """

    layer: int
    layer_to: int
    variant: str
    metric: str
    value: float
    n: int
    estimate: Estimate | None = None

    def as_dict(self) -> dict[str, int | str | float | None]:
        """Columns of `pairs.csv`."""
        low, high = self.estimate.interval if self.estimate is not None else (None, None)  # NaN: an empty cell
        return {
            "layer": self.layer,
            "layer_to": self.layer_to,
            "variant": self.variant,
            "metric": self.metric,
            "value": self.value,
            "low": low,
            "high": high,
            "n": self.n,
        }
