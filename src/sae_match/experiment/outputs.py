"""What is shown of a finished record: its figures, and the W&B run that holds the same. Both subscribe to `Results`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from itertools import cycle
from pathlib import Path

import pandas as pd

from sae_match.evaluation.controls import Control, Matcher
from sae_match.evaluation.settings import Evaluation
from sae_match.evaluation.splices import Splice
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.metrics.description import CEILING, MATCHED, SPLICED
from sae_match.pairs import EXACT
from sae_match.record.contents import EXAMPLES, PAIRS, STABILITY, STEERING
from sae_match.record.labels import Labels
from sae_match.record.pairs import (
    DISTANCE,
    LAYER,
    QUANTILE,
    distance_curves,
    distance_rows,
    is_quantile,
    layer_curves,
    near_rows,
    quantile_curves,
    read_pairs,
)
from sae_match.record.results import Results
from sae_match.report import (
    plot_composition,
    plot_layer_curves,
    plot_mse_histogram,
    plot_overview,
    plot_quantiles,
    plot_theta,
)
from sae_match.report.bars import plot_controls
from sae_match.report.controls import control_frame
from sae_match.report.curves import NORM, THETA
from sae_match.report.examples import read_examples
from sae_match.report.features import pair_examples_of, plot_pair_examples, plot_stability
from sae_match.report.flow import flow_rows, plot_flow
from sae_match.report.steering import effects_rows, plot_steering
from sae_match.saes.folding import FoldingKind
from sae_match.study import Study
from sae_match.style import GREY, PURPLE, SKY, VARIANTS, Look, Style
from sae_match.tracking.wandb_mirror import WandbMirror

logger = logging.getLogger(__name__)

FREE = tuple(Style(color, marker) for marker in "PX*h" for color in (SKY, GREY, PURPLE))
"""For controls and splices that have a label but no style; no built-in variant looks like these."""


def draw_figures(results: Results, controls: Collection[Control] = ()) -> list[Path]:
    """The record's figures: overview, per-layer curves, decoder MSE histogram, theta against the residual norm; scores
    over distance and over quantiles, controls and seeds, where they were asked for; example pairs of a single pair.

    Curves leave out the controls beyond vanilla and random: a dozen tell nothing apart (pairs.csv has them all)."""
    pairs, features, labels, record = results.pairs, results.features, results.labels, results.record
    measured = set(pairs["metric"])
    paths: list[Path] = []
    if (record.directory / STABILITY).is_file():
        paths.append(plot_stability(pd.read_parquet(record.directory / STABILITY), record.figure_path("stability")))
    if features.empty:  # of a single layer
        return paths
    near, distances = near_rows(pairs), distance_rows(pairs)
    layers = near[~is_quantile(near)]
    more = [control.name for control in controls if not control.in_curves]
    curves = layers[~layers["variant"].isin(more + [f"{SPLICED}_{name}" for name in more])]
    paths.append(plot_overview(curves, record.figure_path("overview"), labels=labels))
    for metric, about in labels.metrics.items():
        if about.figure == "record" and metric in measured:
            paths.append(plot_layer_curves(curves, metric, record.figure_path(metric.replace("/", "_")), labels=labels))
    mse = {"matched": features["mse_W_dec"].to_numpy(), "random": results.random_mse}
    paths.append(plot_mse_histogram(mse, record.figure_path("decoder_mse")))
    if {THETA, NORM} <= measured:
        paths.append(plot_theta(pairs, record.figure_path("theta"), labels=labels))
    if len(distances):
        paths.append(plot_composition(distances, record.figure_path("composition"), labels=labels))
    if len(layers) < len(near):
        paths.append(plot_quantiles(near, record.figure_path("quantiles"), labels=labels))
    if len(table := control_frame("this job", results.numbers, labels)):
        paths.append(plot_controls(table, record.figure_path("controls"), labels=labels))
    if (record.directory / STEERING).is_file():
        effects = effects_rows("this job", pd.read_parquet(record.directory / STEERING))
        paths.append(plot_steering(effects, record.figure_path("steering")))
    if len(flow := flow_rows(layers)):
        paths.append(plot_flow(flow, record.figure_path("flow"), labels=labels))
    if (shown := pair_examples_of(record.directory)) is not None:
        paths.append(plot_pair_examples(*shown, record.figure_path("pairs")))
    return paths


def looks(evaluation: Evaluation) -> dict[str, Look]:
    """How the variants are called and drawn that have a label or style of their own: known ones, then further ones."""
    own: dict[str, Look] = {}
    free = cycle(FREE)
    owners: list[Control | Splice] = [*evaluation.controls.values(), *evaluation.all_splices]
    for owner in owners:
        if owner.name not in VARIANTS and (owner.style is not None or owner.label):
            style = owner.style or next(free)
            own[owner.name] = Look(*style, owner.label or owner.name.replace("_", " "))
    known = {**VARIANTS, **own}
    for control in evaluation.matchers:  # the splice along a permutation looks like the permutation
        if (look := known.get(control.name)) is not None:
            known[f"{SPLICED}_{control.name}"] = look._replace(label=f"encode-permute-decode ({control.name})")
    return known


def matcher_labels(study: Study) -> dict[str, dict[str, str]]:
    """What every matcher of a job is: label, similarity, folding and assignment, by variant."""

    def of(label: str, similarity: Comparison, folding: FoldingKind, solver: Solver) -> dict[str, str]:
        kind = folding if similarity.reads_folding else FoldingKind.none
        return {"label": label, "similarity": similarity.name, "folding": kind.value, "assignment": solver.name}

    own = of("the job's own matching", study.matching, study.folding.name, study.solver)
    found = {MATCHED: own, EXACT: own, CEILING: own}
    for control in study.evaluation.matchers:
        if isinstance(control, Matcher):
            label, folding = control.label or control.name.replace("_", " "), control.folding or study.folding.name
            found[control.name] = of(label, control.similarity, folding, control.solver)
    return found


def mirror_results(mirror: WandbMirror, results: Results, min_count: int, full: bool = False) -> None:
    """Send what the record holds, as it stands on disk, to the experiment tracker.

    The record on disk is complete: a tracker's trouble is a warning, since it must not turn hours of work into a
    failure.

    Args:
        min_count: features that fire less often have no score of their own in the histogram of scores.
        full: every number and curve, not only what jobs are compared by.
    """
    try:
        _mirror(mirror, results, min_count, full)
    except Exception:
        directory = results.record.directory
        logger.warning("the W&B run is incomplete; the record in %s is not", directory, exc_info=True)


def _mirror(mirror: WandbMirror, results: Results, min_count: int, full: bool) -> None:
    record, features, numbers, labels = results.record, results.features, results.numbers, results.known_labels
    examples = read_examples(record.directory / EXAMPLES) if (record.directory / EXAMPLES).is_file() else None
    stored = read_pairs(record.directory / PAIRS)
    for axis, curves in ((LAYER, layer_curves), (DISTANCE, distance_curves), (QUANTILE, quantile_curves)):
        rows = curves(stored)
        if not full:  # of curves over distance and quantiles the mean over starts
            mean = "" if axis == LAYER else "/mean"
            rows = [
                {name: value for name, value in row.items() if name == axis or _is_main(labels, name, mean)}
                for row in rows
            ]
        mirror.log_curves(axis, rows)
    mirror.log_table("pairs", stored)
    mirror.log_comparison(numbers)
    if examples is not None:
        mirror.log_table("example_pairs", examples)
    mirror.log_labels(labels)
    histograms: Mapping[str, pd.Series[float]] = {
        name: features[name] for name in ("mse_W_dec", "decoder_cosine") if name in features
    }
    if "matching_score" in features:
        # The features that matching_score_per_feature averages.
        counted = features.loc[features["active"] >= min_count, "matching_score"]
        histograms = {**histograms, "matching_score": counted}
    mirror.log_histograms({name: values.to_numpy() for name, values in histograms.items() if len(values)})
    mirror.log_figures(sorted((record.directory / "figures").glob("*.png")))
    if len(features):
        mirror.log_permutations(record.permutations)
    if results.warnings:
        mirror.note("\n".join(results.warnings))
    mirror.summary({name: value for name, value in numbers.items() if full or labels.is_main(name)})


def _is_main(labels: Labels, curve: str, end: str) -> bool:
    return curve.endswith(end) and labels.is_main(curve.removesuffix(end))
