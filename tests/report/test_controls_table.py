"""The controls' table and figure: which jobs, which rows, which numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from sae_match.report import canvas
from sae_match.report.bars import plot_controls
from sae_match.report.controls import controls_frame, drawn_rows
from sae_match.report.figures import write_overlays
from sae_match.report.records import Record
from sae_match.report.report import Options, write_report
from sae_match.report.tables import controls_table
from tests.report.conftest import job_table

SPLICE = "encode_permute_decode"


def with_interval(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


METRICS: dict[str, Any] = {
    **with_interval("matching_score", 0.45, 0.01),
    **with_interval("matching_score/random", 0.05, 0.01),
    **with_interval("matching_score/greedy", 0.40, 0.01),
    **with_interval("matching_score_difference/greedy", 0.05, 0.004),
    **with_interval(f"explained_variance/{SPLICE}", 0.5, 0.02),
    **with_interval(f"explained_variance/{SPLICE}_random", -1.3, 0.02),
    **with_interval(f"explained_variance/{SPLICE}_greedy", 0.6, 0.02),
    **with_interval(f"explained_variance_difference/{SPLICE}_greedy", -0.1, 0.03),
    **with_interval("explained_variance/linear_map", 0.9, 0.02),
    **with_interval("explained_variance_difference/linear_map", -0.4, 0.01),
    "weight_mse/W_dec/greedy": 0.1,
}  # fmt: skip


def record(name: str = "0", state: str = "done", **more: Any) -> Record:
    return Record(name=name, path=Path(name), state=state, config={"seed": int(name)}, metrics=METRICS | more)


def test_rows_by_hand() -> None:
    frame = controls_frame([record()])
    assert list(dict.fromkeys(frame["control"])) == ["matched", "random", "greedy", "linear_map"]
    found = frame.set_index(["control", "metric"])
    assert found.loc[("greedy", "matching_score"), "difference"] == 0.05
    assert found.loc[("greedy", "explained_variance"), "difference_low"] == pytest.approx(-0.13)
    assert found.loc[("linear_map", "explained_variance"), "value"] == 0.9
    assert found["value"].isna().sum() == 1  # a map pairs no features; no delta loss was measured
    assert found.loc["matched", "difference"].isna().all()


def test_the_table_leaves_out_what_nobody_measured() -> None:
    text = controls_table(controls_frame([record()])).markdown
    header, _, *rows = text.splitlines()
    assert "delta_loss" not in header and header.count("matched less control") == 2
    cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]
    assert cells[:4] == ["0", "linear_map", "–", "–"] and cells[4].startswith("0.900 [") and "-0.400 [" in cells[5]


@pytest.mark.parametrize(
    "other",
    [
        record(state="failed"),
        Record(name="0", path=Path("0"), state="done", config={}, metrics={
            "matching_score": 0.4, "matching_score/random": 0.03, "weight_mse/W_dec/greedy": 0.1}),
    ],
    ids=["failed", "only the usual ones"],
)  # fmt: skip
def test_other_jobs_have_no_table(other: Record) -> None:
    assert controls_frame([other]).empty


@pytest.mark.figures
def test_the_figure_is_the_same_bytes_and_shows_no_splice_of_a_random_permutation(tmp_path: Path) -> None:
    frame = controls_frame([record()])
    shown = drawn_rows(frame)
    assert set(shown.loc[shown["control"] == "random", "metric"]) == {"matching_score"}
    one, two = (plot_controls(frame, tmp_path / f"{name}.png", "job 0") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert plot_controls(frame, tmp_path / "d.png", "path=$a_{$ and $R^2$").is_file()  # no formula
    incomplete = frame.assign(low=float("nan"))
    assert plot_controls(incomplete, tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.figures
def test_a_value_off_the_axis_is_written_at_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: drawn.append(figure))
    frame = controls_frame([record()])
    plot_controls(frame, tmp_path / "a.png")
    score, variance = drawn[0].axes
    assert [label.get_text() for label in score.get_yticklabels()] == ["matched", "random", "greedy", "linear map"]
    assert not score.texts
    assert [(text.get_text(), text.get_position()) for text in variance.texts] == [("◀ -1.3", (0.02, 1))]
    # On the axis it is a dot like any other.
    near = frame.assign(value=frame["value"].where(frame["value"] > 0, 0.2))
    assert "explained_variance" in set(drawn_rows(near).query("control == 'random'")["metric"])


def test_the_report_has_section_table_and_figures(tmp_path: Path) -> None:
    given = record("0"), record("1", **{"matching_score/greedy": 0.3})
    jobs = [replace(job, path=tmp_path / job.name, pairs=job_table()) for job in given]
    text = write_report(jobs, tmp_path / "report", Options(only=["controls"], formats=()))
    assert "## Controls" in text and text.count("| linear_map") == 2
    stored = pd.read_csv(tmp_path / "report" / "controls_table.csv", dtype={"job": str})
    assert stored.groupby("job").size().to_dict() == {"0": 8, "1": 8}
    assert {path.name for path in (tmp_path / "report").glob("controls_[01].png")} == {
        "controls_0.png",
        "controls_1.png",
    }
    assert 'id="controls-table"' in (tmp_path / "report" / "report.html").read_text()
    (few,) = write_overlays(jobs, tmp_path / "few", most=1, only=["controls"])
    assert "first 1 of 2" in few.note
