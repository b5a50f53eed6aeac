"""One `sae-match` job as a plain function: configuration in, record on disk (and its W&B mirror) out."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from sae_match.evaluation import differences
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment import delta_loss_step, evaluation_step, judging_step
from sae_match.experiment.activation_cache import ActivationCache
from sae_match.experiment.composition_headline import composition_headline
from sae_match.experiment.composition_step import compare_over_distance
from sae_match.experiment.document_step import document_sums, text_facts
from sae_match.experiment.feature_paths import path_table
from sae_match.experiment.headline import headline
from sae_match.experiment.job_key import job_key
from sae_match.experiment.matching_step import PairMatching, aside_rows, match_span
from sae_match.experiment.outputs import add_activation_columns, draw_figures, looks, mirror_record
from sae_match.experiment.saes_in_span import SpanSaes
from sae_match.experiment.top_tokens_step import top_tokens_table
from sae_match.files import check_writable, write_json
from sae_match.language_model import resolve_device
from sae_match.matching.similarity import DeadFeatures
from sae_match.metrics.metric import Metric
from sae_match.metrics.registry import described, with_built_in
from sae_match.plan.checks import check_model_facts
from sae_match.plan.plan import make_plan
from sae_match.record.contents import TEXT
from sae_match.record.job import JobRecord
from sae_match.record.labels import Labels
from sae_match.record.mirror import Mirror
from sae_match.record.run_identity import run_id
from sae_match.record.science import science_hash
from sae_match.record.wandb_mirror import open_mirror
from sae_match.store import Store
from sae_match.study import Rerun, Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a job found.

    Attributes:
        directory: the record.
        metrics: headline numbers, as in metrics.json.
        pairs: tidy table of every metric, pair and variant, as in pairs.csv.
        features: one row per matched feature, as in features.parquet.
        labels: what metrics and variants are called, as in labels.json.
    """

    directory: Path
    metrics: dict[str, float]
    pairs: pd.DataFrame
    features: pd.DataFrame
    labels: Labels


def run(study: Study, *, group: str | None = None) -> Result:
    """Match the span's adjacent pairs, evaluate them, and write the record into `study.paths.output_dir`.

    It always runs: `study.rerun` is for `experiment.rerun.decide`, which the command asks first.

    Args:
        study: a complete configuration (see `sae_match.app.build.build`).
        group: W&B group where the configuration names none; a sweep passes its directory's name.

    Raises:
        UserError: a configuration or input that cannot work; raised before long work wherever that can be known,
            and recorded in the job's status.
    """
    every = with_built_in(study.metrics)
    record = JobRecord(Path(study.paths.output_dir))
    record.key = job_key(study)
    record.write_config(yaml.safe_dump(study.config, sort_keys=False, allow_unicode=True))
    with record.guard():
        # rerun=all is asked for after a change of code or libraries, of which stored results know nothing.
        store = Store(study.paths.cache_dir, read=study.rerun is not Rerun.all, owner=science_hash(study.config))
        make_plan(study, store).require()
        passes = ActivationCache(store)
        check_writable(store.root, "paths.cache_dir")
        device = resolve_device(study.device).type
        options = _mirror_options(study, store, group)
        with open_mirror(record.directory, mode=study.tracking.mode.value, **options) as mirror:
            result = _run(store, study, record, passes, device, every)
            _mirror(mirror, record, result, study.evaluation.min_count)
        record.key = record.key or job_key(study)  # what had to be downloaded is here now
    passes.forget()
    return result


def _mirror(mirror: Mirror, record: JobRecord, result: Result, min_count: int) -> None:
    try:
        mirror_record(mirror, record, result.features, result.metrics, result.labels, min_count)
    except Exception:
        # The record on disk is complete: a tracker's trouble must not turn hours of work into a failure.
        logger.warning("the W&B run is incomplete; the record in %s is not", record.directory, exc_info=True)


def _mirror_options(study: Study, store: Store, group: str | None) -> dict[str, object]:
    if study.tracking.mode.value == "none":
        return {}
    directory = Path(study.paths.output_dir)
    return {
        "config": study.config,
        "run_id": run_id(study.config, directory if group is None else directory.parent),
        "cache_dir": store.scratch("wandb"),
        "project": study.tracking.project,
        "entity": study.tracking.entity,
        "group": study.tracking.group,
        "default_group": group,
        "tags": study.tracking.tags,
        "name": "-".join(
            str(getattr(study, group).name) for group in ("matching", "folding", "solver", "sae", "dataset")
        ),
    }


def _run(
    store: Store, study: Study, record: JobRecord, passes: ActivationCache, device: str, metrics: Mapping[str, Metric]
) -> Result:
    progress = sys.stderr.isatty() if study.progress is None else study.progress
    torch.manual_seed(study.seed)
    solver = study.solver.on(device, progress)
    saes = SpanSaes(study, device)
    full = study.evaluation.full
    # Some kilobytes of the model first: they tell a wrong, gated or unreachable one before gigabytes of SAEs come.
    d_model = check_model_facts(store, study) if full else None
    saes.preflight(solver, progress, d_model)
    # The model and the text come before the matching: what can fail on bad input fails before long work.
    evaluator = evaluation_step.prepare(store, study, saes, solver, passes, device, progress, metrics) if full else None
    record.clear_results()
    if evaluator is not None:
        write_json(record.directory / TEXT, text_facts(evaluator))
    aside: dict[int, torch.Tensor] = {}
    if evaluator is not None and study.matching.dead_features is DeadFeatures.exclude:
        aside = evaluation_step.dead_features(evaluator)
    fit = None if evaluator is None or evaluator.fit is None else evaluator.fit.streams
    matchings = match_span(store, study, saes, solver, record, progress, aside, fit, metrics)
    record.warn([warning for pair in matchings for warning in pair.warnings])
    rows = [row for pair in matchings for row in pair.rows] + aside_rows(aside)
    features = pd.concat([pair.features for pair in matchings], ignore_index=True)
    labels = Labels(metrics=described(metrics.values()), variants=looks(study.evaluation))
    _write_tables(record, labels, rows, features)
    if evaluator is not None:
        rows, features = _evaluate(evaluator, matchings, rows, record, labels)
        record.write_documents(document_sums(evaluator, rows))
    far, far_pairs = compare_over_distance(
        store, study, saes, solver, record, matchings, evaluator, aside, progress, metrics
    )
    _write_tables(record, labels, rows + far, features)
    for row in judging_step.judging_rows(store, study, saes, [*matchings, *far_pairs], record, evaluator, progress):
        (rows if row.layer_to - row.layer == 1 else far).append(row)
    table = _write_tables(record, labels, rows + far, features)
    if study.composition.paths:
        record.write_paths(path_table(features, saes.layers, saes.facts[saes.layers[0]].width))
        if evaluator is not None:
            record.write_top_tokens(top_tokens_table(evaluator, progress))
    rows, far = _defined(rows), _defined(far)
    # Averages over neighbours are not mixed with those over distance.
    numbers = headline(rows, labels) | composition_headline(rows + far, labels)
    record.write_metrics(numbers)
    draw_figures(
        record,
        table,
        features,
        np.concatenate([pair.random_mse for pair in matchings]),
        numbers,
        labels,
        study.evaluation.controls.values(),
    )
    return Result(record.directory, numbers, table, features, labels)


def _evaluate(
    evaluator: evaluation_step.Evaluator,
    matchings: list[PairMatching],
    known: list[MetricRow],
    record: JobRecord,
    labels: Labels,
) -> tuple[list[MetricRow], pd.DataFrame]:
    """The known rows and those of the full evaluation; tables are written after every pair and again at the end."""
    rows = list(known)
    features: list[pd.DataFrame] = []
    for pair in tqdm(matchings, desc="activations of layer pairs", disable=not evaluator.progress):
        logger.info("layers %d -> %d: activations and reconstructions", pair.layer, pair.layer_to)
        found, statistics = evaluation_step.evaluate_layer_pair(evaluator, pair)
        rows += found
        rows += evaluation_step.ceiling_rows(evaluator, pair.layer)
        rows += evaluation_step.layer_rows(evaluator, pair.layer, statistics, second=False)
        features.append(add_activation_columns(pair, statistics))
        if pair is matchings[-1]:
            rows += evaluation_step.ceiling_rows(evaluator, pair.layer_to)
            rows += evaluation_step.layer_rows(evaluator, pair.layer_to, statistics, second=True)
        table = pd.concat(features, ignore_index=True)
        _write_tables(record, labels, rows, table)
    for found in delta_loss_step.delta_loss_rows(evaluator, matchings).values():
        rows += found
    metrics = evaluator.metrics
    rows += differences.difference_rows(rows, metrics) + differences.ceiling_gap_rows(rows, metrics)
    evaluation_step.log_ceiling_gaps(rows, metrics)
    return rows, table


def _defined(rows: list[MetricRow]) -> list[MetricRow]:
    """Rows whose value is a number; the others are reported, since a missing row must not look like an oversight."""
    undefined = [row for row in rows if not math.isfinite(row.value)]
    for row in undefined:
        logger.warning(
            "%s (%s) at layers %d -> %d is undefined (nothing to average) and left out",
            row.metric, row.variant, row.layer, row.layer_to,
        )  # fmt: skip
    return [row for row in rows if math.isfinite(row.value)]


def _write_tables(record: JobRecord, labels: Labels, rows: list[MetricRow], features: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame([row.as_dict() for row in rows if math.isfinite(row.value)])
    record.write_pairs(table)
    record.write_labels(labels.only(table["metric"], table["variant"]))
    record.write_features(features)
    return table
