"""One `sae-match` job as a plain function: a study in, a record on disk (and its W&B mirror) out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from sae_match.experiment import passes
from sae_match.experiment.outputs import draw_figures, mirror_results
from sae_match.experiment.rerun import known_key
from sae_match.experiment.steps import prepare_steps
from sae_match.files import check_writable
from sae_match.plan.plan import make_plan
from sae_match.record.job import JobRecord
from sae_match.record.labels import Labels
from sae_match.store import Store
from sae_match.study import Rerun, Study
from sae_match.tracking.wandb_mirror import job_mirror


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


def run(study: Study, *, key: str | None = None, group: str | None = None) -> Result:
    """Match the span's adjacent pairs, evaluate them, and write the record into `study.paths.output_dir`.

    It always runs: `study.rerun` is for `experiment.rerun.decide`, which the command asks first.

    Args:
        study: a complete configuration (see `sae_match.app.build.build`).
        key: the job's content key; None = it is found when all that the job reads is here.
        group: W&B group where the configuration names none; a sweep passes its directory's name.

    Raises:
        UserError: a configuration or input that cannot work; raised before long work wherever that can be known,
            and recorded in the job's status.
    """
    record = JobRecord(Path(study.paths.output_dir))
    record.key = key
    record.write_config(yaml.safe_dump(study.config, sort_keys=False, allow_unicode=True))
    with record.guard():
        # rerun=all is asked for after a change of code or libraries, of which stored results know nothing.
        store = Store(study.paths.cache_dir, read=study.rerun is not Rerun.all, owner=record.science)
        plan = make_plan(study, store)
        plan.require()
        check_writable(store.root, "paths.cache_dir")
        with job_mirror(study, store, group) as mirror:
            steps = prepare_steps(plan, store, record)
            record.key = key or known_key(study, plan.pairs)  # what had to be downloaded is here now
            results = steps.run()
            draw_figures(results, study.evaluation.controls.values())
            if mirror is not None:
                mirror_results(mirror, results, study.evaluation.min_count, study.tracking.full)
    store.forget(passes.KIND)
    return Result(record.directory, results.numbers, results.pairs, results.features, results.labels)
