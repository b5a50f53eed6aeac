"""Tables: what varies, what is shared, how numbers are written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sae_match.record.labels import BUILT_IN_LABELS
from sae_match.report import Record, comparison_frame, find_records, summary_table
from sae_match.report.records import comparison_keys, job_labels
from sae_match.report.tables import format_value, markdown_table


def record(name: str, state: str = "done", metrics: dict[str, object] | None = None, **config: object) -> Record:
    return Record(name=name, path=Path(name), state=state, config=config, metrics=metrics or {}, seconds=1.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.45678, 0.4, 0.5), "0.457 [0.400, 0.500]"),
        ((0.03,), "0.0300"),
        ((12.3456, 11.0, 13.0), "12.35 [11.00, 13.00]"),
        ((1234.5,), "1234"),
        ((1.5e-7,), "1.500e-07"),
        ((-0.25,), "-0.250"),
        ((0.0,), "0.000"),
        ((7,), "7"),
        ((True,), "True"),
        (("dense",), "dense"),
        ((None,), "–"),
        ((float("nan"),), "–"),
    ],
)
def test_numbers(arguments: tuple[object, ...], text: str) -> None:
    assert format_value(*arguments) == text


def test_one_row_per_job_in_natural_order(sweep: Path) -> None:
    rows = [line.split("|")[1:-1] for line in summary_table(find_records([sweep])).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["job", "state", "metric", "folding", "matching_score", "seconds"]
    assert [row[:5] for row in cells[2:]] == [
        ["0", "done", "both", "theta", "0.456 [0.400, 0.500]"],
        ["1", "done", "both", "none", "0.446 [0.400, 0.500]"],
        ["9", "done", "decoder", "theta", "0.366 [0.400, 0.500]"],
        ["10", "**failed**", "decoder", "none", "failed"],
    ]


def test_what_is_the_same_everywhere_is_said_once(sweep: Path) -> None:
    settings, same = summary_table(find_records([sweep])).split("\n\n")[:2]
    assert settings == "Settings of every job: `include_bias=True`, `dataset=wiki`, `seed=0`."
    assert same == "Same in every finished job: matching_score/random 0.0300, delta_loss/layer_drop 0.100."


def test_a_single_job_keeps_its_numbers_in_the_table() -> None:
    text = summary_table([record("0", metrics={"matching_score": 0.5, "matching_score/random": 0.1}, seed=0)])
    assert "Same in every" not in text and "matching_score/random" in text.splitlines()[2]


def test_columns_may_be_chosen(sweep: Path) -> None:
    header = next(line for line in summary_table(find_records([sweep]), ["other"]).splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "job",
        "state",
        "metric",
        "folding",
        "other",
        "seconds",
    ]


def test_cells_cannot_break_the_table() -> None:
    text = markdown_table(["a", "b"], [["x|y", "two\nlines"]], right=["b"])
    assert text.splitlines() == ["| a    | b         |", "| ---- | --------: |", "| x\\|y | two lines |"]


def test_a_setting_that_is_no_factor_still_tells_jobs_apart() -> None:
    records = [record(str(n), dataset={"name": "wiki", "documents": n}, paths={"output_dir": str(n)}) for n in (3, 5)]
    assert comparison_keys(records) == ["dataset.documents"]
    assert job_labels(records) == ["documents=3", "documents=5"]


def test_a_factor_speaks_for_the_settings_of_its_group() -> None:
    records = [
        record(name, dataset={"name": name, "repo_id": name}, matching={"metric": "both", "weights": {"W_enc": weight}})
        for name, weight in [("wiki", 1.0), ("wiki", 0.5), ("news", 1.0)]
    ]
    assert comparison_keys(records) == ["dataset", "matching.weights.W_enc"]


def test_jobs_that_look_alike_are_labelled_by_name() -> None:
    assert job_labels([record("a", seed=0), record("b", seed=0)]) == ["(a)", "(b)"]


def test_the_wide_table_holds_everything(sweep: Path) -> None:
    frame = comparison_frame(find_records([sweep]))
    assert list(frame["job"]) == ["0", "1", "9", "10"]
    assert list(frame["folding"]) == ["theta", "none", "theta", "none"]
    assert frame["matching_score"].tolist()[:3] == pytest.approx([0.4563, 0.4463, 0.3663])
    assert pd.isna(frame["matching_score"].iloc[3]) and frame["error"].iloc[3].startswith("ValueError: b_enc")
    assert "l0" in frame.columns and frame.columns.is_unique


def test_the_solvers_own_numbers_get_no_figure() -> None:
    def drawn(metric: str) -> bool:
        return BUILT_IN_LABELS.metric(metric).figure != "none"

    assert all(map(drawn, ("matching_score", "gap", "solver_seconds", "a metric of somebody else's")))
    assert not any(map(drawn, ("solver/seconds/auction", "tolerance", "matching_score_difference", "x_to_ceiling")))
