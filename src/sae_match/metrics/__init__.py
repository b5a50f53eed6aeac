"""Metrics: what is measured of matched features, of splices and of layers; none knows where its input came from."""

from sae_match.metrics.bootstrap import Bootstrap, DocumentSums, Estimate
from sae_match.metrics.description import Description
from sae_match.metrics.metric import (
    ActivationMetric,
    LayerActivity,
    LayerMetric,
    LossMetric,
    MatchedWeights,
    Measured,
    Metric,
    MetricRow,
    PairCounts,
    ReconstructionMetric,
    SplicedLosses,
    WeightMetric,
    metric_rows,
)
from sae_match.metrics.registry import BUILT_IN

__all__ = [
    "BUILT_IN",
    "ActivationMetric",
    "Bootstrap",
    "Description",
    "DocumentSums",
    "Estimate",
    "LayerActivity",
    "LayerMetric",
    "LossMetric",
    "MatchedWeights",
    "Measured",
    "Metric",
    "MetricRow",
    "PairCounts",
    "ReconstructionMetric",
    "SplicedLosses",
    "WeightMetric",
    "metric_rows",
]
