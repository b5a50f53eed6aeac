"""A span split over jobs: merged as one job over all of it would be, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_match.metrics.bootstrap import Bootstrap, Estimate
from sae_match.report.merge import merge_spans
from sae_match.report.records import Record, find_records
from tests.report.factorial import pair_rows, ratio_sums, stored

OURS, DROP = "delta_loss/encode_permute_decode", "delta_loss/layer_drop"


def part(folder: Path, first: int, last: int, scores: list[float], metric: str = "both", **more: Any) -> Path:
    """A job over layers first..last with the given matching scores; theta of layer t is t."""
    pairs = [(layer, layer + 1) for layer in range(first, last)]
    table = pair_rows(pairs, {"matching_score/matched": scores, "solver_seconds/matched": [2.0] * len(pairs),
                              "gap/matched": [0.1 * layer for layer, _ in pairs], OURS: scores,
                              DROP: [0.5 * score for score in scores],
                              "delta_loss_difference/layer_drop": [0.5 * score for score in scores]})  # fmt: skip
    layers = range(first, last + 1)
    table = pd.concat([table, pair_rows([(t, t) for t in layers], {"mean_theta/sae": [float(t) for t in layers]})])
    config = {"matching": {"metric": metric}, "layers": {"first": first, "last": last}, "seed": 3,
              "evaluation": {"bootstrap_samples": 200}, "paths": {"output_dir": str(folder)}}  # fmt: skip
    sums = None
    if more.get("documents") is not None:
        sums = {}
        for pair, values in zip(pairs, more["documents"], strict=True):
            sums |= ratio_sums(list(values), [pair])
    metrics = {"matching_score": float(np.mean(scores)), "matching_score_low": 0.0, "matching_score_high": 1.0,
               **more.get("metrics", {})}  # fmt: skip
    return stored(folder, config, table, metrics, sums)


def merged(root: Path) -> tuple[list[Record], list[str]]:
    found = merge_spans(find_records([root]))
    return found.records, found.notes


def test_means_are_over_pairs_not_over_jobs(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 12, [0.1])
    part(tmp_path / "1", 12, 14, [0.4, 0.7])
    (record,), (note,) = merged(tmp_path)
    assert record.name == "0 + 1" and [source.name for source in record.sources] == ["0", "1"]
    assert record.metrics["matching_score"] == pytest.approx(0.4)  # the mean of the jobs' means would be 0.325
    assert record.metrics["solver_seconds"] == 6.0 and record.metrics["gap"] == pytest.approx(1.3)
    assert record.metrics["mean_theta/sae"] == pytest.approx(12.5)  # layer 12 is in both jobs, and counts once
    assert record.metrics["delta_loss_difference/layer_drop"] == pytest.approx(0.2)
    assert (record.config["layers"], record.factors["layers_last"]) == ({"first": 11, "last": 14}, 14)
    assert "matching_score_low" not in record.metrics and "95 % intervals of matching_score" in note
    assert "layers 11 to 14, from 2 jobs" in note


def test_intervals_are_those_of_a_single_job(tmp_path: Path) -> None:
    documents = np.random.default_rng(1).random((3, 8))
    scores = documents.mean(axis=1).tolist()
    part(tmp_path / "0", 11, 13, scores[:2], documents=documents[:2])
    part(tmp_path / "1", 13, 14, scores[2:], documents=documents[2:])
    (record,), (note,) = merged(tmp_path)
    bootstrap = Bootstrap(8, 200, 3)
    whole = Estimate.mean([bootstrap.ratio(values, np.ones(8)) for values in documents])
    ends = record.metrics["matching_score_low"], record.metrics["matching_score_high"]
    assert record.metrics["matching_score"] == pytest.approx(whole.value)
    assert ends == pytest.approx(whole.interval)
    assert "95 % intervals" not in note


def test_jobs_that_differ_in_anything_else_stay_apart(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 12, [0.1])
    part(tmp_path / "1", 12, 13, [0.2], metric="decoder")
    assert [record.name for record in merged(tmp_path)[0]] == ["0", "1"]


def test_the_same_pair_with_other_values_is_refused(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 13, [0.1, 0.2])
    part(tmp_path / "1", 12, 14, [0.3, 0.4])
    records, (note,) = merged(tmp_path)
    assert [record.name for record in records] == ["0", "1"]
    assert "Not merged: 0 and 1 have different values of" in note and "12→13" in note


def test_the_same_pair_with_the_same_values_counts_once(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 13, [0.1, 0.2])
    part(tmp_path / "1", 12, 14, [0.2, 0.6])
    (record,), _ = merged(tmp_path)
    assert record.metrics["matching_score"] == pytest.approx(0.3)


def test_a_span_within_another_stays_apart(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 14, [0.1, 0.2, 0.6])
    part(tmp_path / "1", 12, 14, [0.2, 0.6])
    records, notes = merged(tmp_path)
    assert [record.name for record in records] == ["0", "1"] and notes == []


def test_repetitions_of_one_span_stay_apart(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 12, [0.1])
    part(tmp_path / "1", 11, 12, [0.1])
    records, notes = merged(tmp_path)
    assert len(records) == 2 and notes == []


def test_a_failed_part_stays_visible_and_its_pairs_are_named(tmp_path: Path) -> None:
    for index in range(3):
        part(tmp_path / str(index), 11 + index, 12 + index, [0.1 * (index + 1)])
    status = tmp_path / "1" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    records, (note,) = merged(tmp_path)
    assert [(record.name, record.state) for record in records] == [("0 + 2", "done"), ("1", "failed")]
    assert "No job has the pairs 12→13" in note
    assert records[0].metrics["matching_score"] == pytest.approx(0.2)


def test_numbers_that_only_a_job_can_compute_are_left_out_and_named(tmp_path: Path) -> None:
    part(tmp_path / "0", 11, 12, [0.1], metrics={"composition/reach": 3.0})
    part(tmp_path / "1", 12, 13, [0.2])
    (record,), (note,) = merged(tmp_path)
    assert "composition/reach" not in record.metrics and "composition" in note


def test_the_order_of_the_jobs_does_not_matter(tmp_path: Path) -> None:
    for place, (index, folder) in enumerate([(0, "a"), (1, "b"), (2, "c"), (3, "d")]):
        part(tmp_path / folder, 11 + index, 12 + index, [0.1 * place])
    one = merge_spans(find_records([tmp_path]))
    other = merge_spans(list(reversed(find_records([tmp_path]))))
    assert one.records[0].metrics == other.records[0].metrics
    assert one.records[0].name == "a + b + … + d (4 jobs)"
    shutil.rmtree(tmp_path / "a")
    assert "layers 12 to 15, from 3 jobs" in merged(tmp_path)[1][0]
