"""Evaluation: SAEs, permutations and residual streams brought together into metrics of a layer pair."""

from sae_match.evaluation.pair import PairEvaluation, PairSettings, evaluate_pair, feature_table
from sae_match.metrics.metric import MetricRow

__all__ = ["MetricRow", "PairEvaluation", "PairSettings", "evaluate_pair", "feature_table"]
