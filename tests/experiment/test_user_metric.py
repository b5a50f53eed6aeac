"""Metrics from a package outside the repository: in the record, its W&B mirror, and a report without that package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_match import UserError
from sae_match.experiment import run
from sae_match.experiment.rerun import job_key
from sae_match.metrics import Metric
from sae_match.metrics.registry import with_built_in
from sae_match.record.labels import LABELS, read_labels
from sae_match.report import read_record
from sae_match.report.cli import main
from sae_match.report.resampling import paired_difference
from sae_match.study import Study
from sae_match.sweep.table import SweepJob, table
from tests.wandb_reader import inspect

Configured = Callable[..., Study]
SOURCE = '''
"""Metrics of somebody else."""

import numpy as np

from sae_match.metrics import (
    ActivationMetric, Description, LayerMetric, LossMetric, Measured, ReconstructionMetric, WeightMetric,
)
from sae_match.options import option


@option
class Distance(WeightMetric):
    """Mean p-norm of the difference of matched decoder rows."""

    p: int = 2
    about = Description(name="mine/distance", label="my distance", unit="my unit", better="lower", headline=True)

    def value(self, pair):
        a, b = pair.parameters("W_dec")
        return np.linalg.norm(a - b, ord=self.p, axis=1).mean()


class Both(ActivationMetric):
    """Co-activations per token."""

    about = Description(name="both_fire", label="joint firing", unit="pairs/token", better="higher", headline=True,
                        difference=True, figure="record", statistic="ratio")

    def estimate(self, counts, bootstrap):
        return bootstrap.ratio(counts.together.sum(axis=1), counts.tokens)


class Lost(ReconstructionMetric):
    """Unexplained variance."""

    about = Description(name="lost", combine="max", better="lower", statistic="fvu", sums_of="explained_variance")


class Worst(LossMetric):
    """Largest increase of the loss on a window, averaged over documents."""

    about = Description(name="worst", unit="nats/token")

    def estimate(self, losses, bootstrap):
        worst = np.zeros(bootstrap.n_documents)
        np.maximum.at(worst, losses.document, (losses.spliced - losses.original).mean(axis=1))
        return bootstrap.ratio(worst, np.ones_like(worst))


class Spread(LayerMetric):
    """Standard deviation of the residual norms."""

    about = Description(name="norm_spread")
    reference = "model"

    def measure(self, layer, bootstrap):
        return Measured(float(layer.residual_norm.std()), layer.residual_norm.size)
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[dict[str, Metric]]:
    """The metrics of a package in a temporary directory, which only this fixture imports."""
    package = tmp_path / "elsewhere" / "metrics_of_somebody"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE)
    sys.path.insert(0, str(package.parent))
    module = import_module(package.name)
    yield {name: getattr(module, name)() for name in ("Distance", "Both", "Lost", "Worst", "Spread")}
    sys.path.remove(str(package.parent))
    sys.modules.pop(package.name, None)


def rows(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    return pairs[pairs.metric == metric].set_index(["layer", "layer_to", "variant"])


def forget(metrics: Mapping[str, Metric]) -> None:
    """As on a machine without the package."""
    sys.modules.pop(type(metrics["Both"]).__module__)


@pytest.mark.figures
def test_a_metric_from_elsewhere_is_in_the_record_the_mirror_and_the_report(
    configured: Configured,
    random_saes: Path,
    mine: dict[str, Metric],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(replace(configured(random_saes, "tracking=wandb_offline", output="jobs/0"), metrics=mine))
    run(replace(configured(random_saes, "matching=decoder", output="jobs/1"), metrics=mine))
    forget(mine)

    # The record: every kind, with intervals, differences and averages as the descriptions say.
    pairs = result.pairs
    assert (rows(pairs, "mine/distance")["value"] > 0).all()
    both, score = rows(pairs, "both_fire"), rows(pairs, "matching_score")
    assert set(both.index) == set(score.index) and both[["low", "high"]].notna().all(axis=None)
    difference = rows(pairs, "both_fire_difference").loc[(0, 1, "random"), "value"]
    assert difference == pytest.approx(both.loc[(0, 1, "matched"), "value"] - both.loc[(0, 1, "random"), "value"])
    assert rows(pairs, "lost")["value"].to_numpy() == pytest.approx(rows(pairs, "fvu")["value"].to_numpy())
    lost = rows(pairs, "lost").xs("layer_drop", level="variant")["value"]
    numbers = json.loads((result.directory / "metrics.json").read_text())
    assert numbers["lost/layer_drop"] == pytest.approx(lost.max())
    assert numbers["both_fire"] == pytest.approx(both.xs("matched", level="variant")["value"].mean())
    assert {"worst/encode_permute_decode", "norm_spread/model", "mine/distance", "both_fire_low"} <= numbers.keys()
    assert (result.directory / "figures" / "both_fire.png").is_file()
    assert not (result.directory / "figures" / "mine_distance.png").exists()

    # W&B: rows by layer, summary, and the labels.
    tracked = inspect(result.directory)
    logged = {name for step in tracked["history"] for name in step["item"]}
    assert {"per_layer/both_fire/matched", "per_layer/mine/distance/matched", "labels._type"} <= logged
    summary = {name: value for entry in tracked["summary"] for name, value in entry.get("update", {}).items()}
    assert summary["both_fire"] == numbers["both_fire"]

    # Another process reads names, units and directions from the record.
    labels = read_labels(result.directory / LABELS)
    assert labels.of_number("mine/distance/vanilla").axis == "my distance [my unit]"
    assert labels.metric("lost").reference == "encode_permute_decode"
    found = paired_difference(*(tmp_path / "jobs" / job for job in "01"), "both_fire")
    assert found.low <= found.value <= found.high
    assert main([str(tmp_path / "jobs")]) == 0
    text = capsys.readouterr().out
    assert "mine/distance: my distance [my unit]; both_fire: joint firing [pairs/token]" in text
    ablation = text[text.index("## Ablation") :]
    assert "mine/distance ↓" in ablation and "both_fire ↓" not in ablation and "| both_fire" in ablation
    drawn = (tmp_path / "jobs" / "report" / "mine_distance.svg").read_text()
    assert "my distance [my unit]" in drawn
    page = (tmp_path / "jobs" / "report" / "report.html").read_text()
    assert "joint firing [pairs/token]" in page
    (row,) = table([SweepJob(0, (), "run", read_record(result.directory))])
    assert row["mine/distance"] == numbers["mine/distance"] and row["both_fire"] == numbers["both_fire"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("matching_score", r"metrics\.mine: there is a metric named matching_score already"),
        ("gap", "named gap already"),
        ("solver/mine", "named solver/mine already"),
        ("x_low", "ends like that of a derived number"),
        ("x_difference", "ends like that of a derived number"),
        ("two words", "must be letters"),
        ("x/", "must be letters"),
    ],
)
def test_a_name_that_would_be_taken_for_another_is_refused(mine: dict[str, Metric], name: str, message: str) -> None:
    renamed = type("Renamed", (type(mine["Both"]),), {"about": replace(mine["Both"].about, name=name)})
    with pytest.raises(UserError, match=message):
        with_built_in({"mine": renamed()})


def test_an_argument_is_part_of_the_key(configured: Configured, random_saes: Path, mine: dict[str, Any]) -> None:
    distance = type(mine["Distance"])
    assert distance(p=1).key() != distance(p=2).key() == mine["Distance"].key()
    assert mine["Both"].key()["class"] == "metrics_of_somebody.Both"
    cfg = configured(random_saes)
    jobs = [
        job_key(replace(cfg, metrics=found))
        for found in ({}, {"a": distance(p=1)}, {"a": distance(p=2)}, {"b": distance(p=2)})
    ]
    assert None not in jobs and len(set(jobs)) == 3 and jobs[2] == jobs[3]
