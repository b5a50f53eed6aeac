"""What a job shows beside its numbers: per-feature activation columns, figures, and the W&B mirror."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sae_match.evaluation.activations import ActivationStatistics
from sae_match.evaluation.controls import Control
from sae_match.evaluation.settings import Evaluation
from sae_match.evaluation.splices import Splice
from sae_match.evaluation.standard_splices import ENCODE_PERMUTE_DECODE
from sae_match.experiment.matching_step import PairMatching
from sae_match.metrics.layers import MeanTheta, ResidualNorm
from sae_match.record.curves import DISTANCE, LAYER, QUANTILE, distance_curves, layer_curves, quantile_curves
from sae_match.record.job import JobRecord
from sae_match.record.labels import Labels
from sae_match.record.mirror import Mirror
from sae_match.record.pairs import read_pairs
from sae_match.report import (
    plot_composition,
    plot_layer_curves,
    plot_mse_histogram,
    plot_overview,
    plot_quantiles,
    plot_theta,
)
from sae_match.report.axes import has_distances, has_quantiles
from sae_match.report.controls import control_frame, plot_controls
from sae_match.report.curves import per_layer_rows
from sae_match.report.features import pair_examples_of, plot_pair_examples
from sae_match.style import GREY, PURPLE, SKY, Style
from sae_match.variants import VARIANTS, Look

THETA, NORM = MeanTheta().name, ResidualNorm().name


def add_activation_columns(pair: PairMatching, statistics: ActivationStatistics) -> pd.DataFrame:
    """The pair's feature table with token counts: how often feature and partner fire, alone and together."""
    feature, partner = pair.features["feature"].to_numpy(), pair.features["partner"].to_numpy()
    active_a = statistics.a.active.sum(dim=0).cpu().numpy()
    active_b = statistics.b.active.sum(dim=0).cpu().numpy()
    together = statistics.together["matched"]
    return pair.features.assign(
        active=active_a[feature],
        partner_active=active_b[partner],
        together=together.together.sum(dim=0).cpu().numpy()[feature],
        matching_score=together.per_feature(statistics.a)[feature],
    )


def draw_figures(
    record: JobRecord,
    pairs: pd.DataFrame,
    features: pd.DataFrame,
    random_mse: npt.NDArray[np.float32],
    metrics: Mapping[str, float],
    labels: Labels,
    alternatives: Collection[Control] = (),
) -> list[Path]:
    """The record's figures: overview, per-layer curves, decoder MSE histogram, theta against the residual norm; scores
    over distance and over quantiles, and controls, where they were asked for; example pairs of a single layer pair."""
    measured = set(pairs["metric"])
    near = few_variants(per_layer_rows(pairs), alternatives)
    paths = [plot_overview(near, record.figure_path("overview"), labels=labels)]
    for metric, about in labels.metrics.items():
        if about.figure == "record" and metric in measured:
            paths.append(plot_layer_curves(near, metric, record.figure_path(metric.replace("/", "_")), labels=labels))
    mse = {"matched": features["mse_W_dec"].to_numpy(), "random": random_mse}
    paths.append(plot_mse_histogram(mse, record.figure_path("decoder_mse")))
    if {THETA, NORM} <= measured:
        paths.append(plot_theta(pairs, record.figure_path("theta"), theta=THETA, norm=NORM, labels=labels))
    if has_distances(pairs):
        paths.append(plot_composition(pairs, record.figure_path("composition"), labels=labels))
    if has_quantiles(pairs):
        paths.append(plot_quantiles(pairs, record.figure_path("quantiles"), labels=labels))
    if len(controls := control_frame("this job", metrics, labels)):
        paths.append(plot_controls(controls, record.figure_path("controls"), labels=labels))
    if (shown := pair_examples_of(record.directory)) is not None:
        paths.append(plot_pair_examples(*shown, record.figure_path("pairs")))
    return paths


FREE = tuple(Style(color, marker) for marker in "PX*h" for color in (SKY, GREY, PURPLE))
"""For controls and splices that have a label but no style; no built-in variant looks like these."""


def looks(evaluation: Evaluation) -> dict[str, Look]:
    """How the variants are called and drawn that have a label or style of their own: known ones, then further ones."""
    own: dict[str, Look] = {}
    free = cycle(FREE)
    owners: list[Control | Splice] = [*evaluation.controls.values(), *evaluation.all_splices]
    for owner in owners:
        if owner.name not in VARIANTS and (owner.style is not None or owner.label):
            style = owner.style or next(free)
            own[owner.name] = Look(*style, owner.label or owner.name.replace("_", " "))
    return {**VARIANTS, **own}


def few_variants(pairs: pd.DataFrame, controls: Collection[Control]) -> pd.DataFrame:
    """Without the controls beyond vanilla and random: a dozen curves tell nothing apart (pairs.csv has them all)."""
    more = [control.name for control in controls if not control.in_curves]
    return pairs[~pairs["variant"].isin(more + [f"{ENCODE_PERMUTE_DECODE}_{name}" for name in more])]


def mirror_record(
    mirror: Mirror,
    record: JobRecord,
    features: pd.DataFrame,
    metrics: dict[str, float],
    labels: Labels,
    min_count: int,
) -> None:
    """Send what the record holds, as it stands on disk, to the experiment tracker."""
    stored = read_pairs(record.directory / "pairs.csv")
    mirror.log_curves(LAYER, layer_curves(stored))
    mirror.log_curves(DISTANCE, distance_curves(stored))
    mirror.log_curves(QUANTILE, quantile_curves(stored))
    mirror.log_pair_table(stored)
    mirror.log_comparison(metrics)
    mirror.log_labels(labels.only(stored["metric"], stored["variant"]))
    histograms = {
        "mse_W_dec": features["mse_W_dec"].to_numpy(),
        "decoder_cosine": features["decoder_cosine"].to_numpy(),
    }
    if "matching_score" in features:
        # The features that matching_score_per_feature averages.
        histograms["matching_score"] = features.loc[features["active"] >= min_count, "matching_score"].to_numpy()
    mirror.log_histograms({name: values for name, values in histograms.items() if len(values)})
    mirror.log_figures(sorted((record.directory / "figures").glob("*.png")))
    mirror.summary(metrics)
    mirror.log_permutations(record.permutations)
