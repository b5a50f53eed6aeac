"""The ablation table: hand-computed ranks, ties from paired differences, failed cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sae_match.record.labels import BUILT_IN_LABELS
from sae_match.report.ablation import ablation_frame, compared_metrics, rank, ranking_note, resample
from sae_match.report.records import find_records
from sae_match.report.report import Options, make_report, report_text
from sae_match.report.tables import Table, ablation_table
from tests.report.factorial import design, job, pair_rows, ratio_sums, stored

SCORE, LOSS, MSE = "matching_score", "delta_loss/encode_permute_decode", "weight_mse/W_dec"
NAMES = [SCORE, LOSS, MSE]


def rankings(records: list) -> dict:
    return {name: rank(records, name, resample(records, NAMES)) for name in NAMES}


def table_of(records: list, frame: pd.DataFrame, names: list[str]) -> Table:
    return ablation_table(records, frame, names, BUILT_IN_LABELS, Path())


def ranks(name: str) -> list[int]:
    found = rank(design(), name, resample(design(), NAMES))
    assert not found.paired
    return [found.ranks[place] for place in range(4)]


def test_ranks_know_which_way_is_better() -> None:
    assert ranks(SCORE) == [2, 4, 1, 3]
    assert ranks(LOSS) == [2, 3, 1, 4]
    assert ranks(MSE) == [2, 2, 4, 1]  # the same value, the same rank
    names = (*NAMES, "explained_variance/layer_drop", "delta_loss_difference/random")
    assert [BUILT_IN_LABELS.of_number(name).better for name in names] == ["higher", "lower", "lower", "higher", "lower"]


def test_jobs_over_other_layers_are_not_ranked_against_each_other() -> None:
    layers = [{"first": 3, "last": 6}] * 2 + [{"first": 0, "last": 29}] * 2
    records = [replace(one, config={**one.config, "layers": span}) for one, span in zip(design(), layers, strict=True)]
    found = rankings(records)
    assert found[SCORE].ranks == {0: 1, 1: 2, 2: 1, 3: 2} and "over the same layers" in ranking_note(found)
    assert rankings(records[1:])[SCORE].ranks == {1: 1, 2: 2}
    assert "same layers" not in ranking_note(rankings(records[2:]))
    alone = rankings(records[1:3])
    assert alone[SCORE].ranks == {} and "fewer than" not in ranking_note(alone)
    assert "plain values" not in ranking_note(alone)


def test_a_row_per_combination_with_value_interval_and_rank() -> None:
    records = [*design(), job("4", "encoder", "theta", "failed", "ValueError: no\nmore")]
    records[0] = job("0", "both", "theta", score=0.50, loss=1.0, mse=0.10, matching_score_low=0.4,
                     matching_score_high=0.6)  # fmt: skip
    frame = ablation_frame(records, rankings(records))
    assert list(frame.columns[:4]) == ["job", "state", "metric", "folding"]
    first = frame.iloc[0]
    assert (first[SCORE], first[f"{SCORE}_low"], first[f"{SCORE}_high"], first[f"{SCORE}_rank"]) == (0.5, 0.4, 0.6, 2)
    table = table_of(records, frame, NAMES)
    cells = [[cell.text for cell in row] for row in table.rows]
    assert cells[0] == ["both", "theta", "0.500 [0.400, 0.600] #2", "1.000 #2", "0.100 #2", "0"]
    assert cells[4] == ["encoder", "theta", "failed", "failed", "failed", "4"]
    lines = table.markdown.splitlines()
    assert [text.strip() for text in lines[0].split("|")[1:-1]] == [
        "metric", "folding", SCORE, f"{LOSS} ↓", f"{MSE} ↓", "job",
    ]  # fmt: skip
    assert len(lines) == 7 and "plain values" in ranking_note(rankings(records))


def test_a_refused_job_is_no_cell_of_the_design() -> None:
    """The fifth combination cannot work: listed with its reason, in no ablation, no effect and no count of partners."""
    refusal = "UserError: solver=soft needs\nPOT"
    report = make_report([*design(), job("4", "encoder", "theta", "failed", refusal)], Options())
    assert report.frames["ablation.csv"]["job"].tolist() == ["0", "1", "2", "3"]
    assert set(report.frames["effects.csv"]["level"]) == {"decoder", "none"}
    assert len(report.tables["ablation"].rows) == 4
    assert [row[1].text for row in report.tables["jobs"].rows] == ["done"] * 4 + ["refused"]
    text = report_text(report)
    assert "refused: they are in no ablation and no effect\n\n- **4** refused: UserError: solver=soft needs POT" in text
    failed = make_report([*design(), job("4", "encoder", "theta", "failed", "ValueError: NaN")], Options())
    assert len(failed.tables["ablation"].rows) == 5 and "## Jobs that did not finish\n\n- **4** failed" in report_text(
        failed
    )


def test_only_numbers_in_which_jobs_differ_are_ranked() -> None:
    records = [job("0", "both", "theta", score=0.5, mse=0.1), job("1", "both", "none", score=0.5, mse=0.2)]
    assert compared_metrics(records) == [MSE]
    assert compared_metrics(records, ["matching_score", "nothing"]) == []
    assert compared_metrics(records[:1]) == []


def paired_jobs(tmp_path: Path, documents: list[np.ndarray]) -> list:
    """Jobs 0, 1, ... with the given matching score in each document."""
    for index, values in enumerate(documents):
        config = {"matching": {"metric": str(index)}, "seed": 0}
        mean = float(values.mean())
        pairs = pair_rows([(0, 1)], {"matching_score/matched": [mean]})
        stored(tmp_path / str(index), config, pairs, {SCORE: mean}, ratio_sums(list(values)))
    return find_records([tmp_path])


def test_jobs_share_a_rank_where_the_paired_interval_holds_0(tmp_path: Path) -> None:
    base = np.linspace(0.2, 0.8, 40)
    noise = np.where(np.arange(40) % 2, 0.05, -0.05)
    # Job 1 is a little better than job 0 in every document; job 2 better on average, but not beyond noise.
    records = paired_jobs(tmp_path, [base, base + 0.01, base + 0.012 + noise])
    found = rank(records, SCORE, resample(records, [SCORE]))
    assert found.paired
    assert found.ranks == {0: 2, 1: 1, 2: 1}
    note = ranking_note({SCORE: found})
    assert "paired" in note and "plain values" not in note


def test_a_job_without_sums_makes_plain_ranks(tmp_path: Path) -> None:
    records = paired_jobs(tmp_path, [np.full(9, 0.5), np.full(9, 0.6)])
    (tmp_path / "1" / "documents.parquet").unlink()
    found = rank(records, SCORE, resample(records, [SCORE]))
    assert not found.paired and found.ranks == {0: 2, 1: 1}


def test_a_difference_equals_the_bootstrap_by_hand(tmp_path: Path) -> None:
    first, second = np.array([0.1, 0.5, 0.9, 0.3]), np.array([0.2, 0.4, 0.9, 0.6])
    records = paired_jobs(tmp_path, [first, second])
    first_mean, second_mean = (found[SCORE] for found in resample(records, [SCORE]).values())
    difference = second_mean.less(first_mean)
    assert difference is not None
    counts = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=1000)
    by_hand = (counts @ (second - first)) / 4
    assert difference.value == pytest.approx((second - first).mean())
    assert difference.interval == pytest.approx(tuple(np.quantile(by_hand, (0.025, 0.975))))


def test_too_few_documents_for_an_interval_decide_nothing(tmp_path: Path) -> None:
    records = paired_jobs(tmp_path, [np.array([0.1, 0.2, 0.3]), np.array([0.7, 0.8, 0.9])])
    found = rank(records, SCORE, resample(records, [SCORE]))
    assert found.paired and found.ranks == {}
    assert f"No ranks of {SCORE}: fewer than 4 documents" in ranking_note({SCORE: found})
    frame = ablation_frame(records, {SCORE: found})
    rows = table_of(records, frame, [SCORE]).rows
    assert [row[1].text for row in rows] == ["0.200 (no interval)", "0.800 (no interval)"]
