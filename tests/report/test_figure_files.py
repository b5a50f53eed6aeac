"""What stands beside a figure: its data as CSV, vector formats with stable bytes; many jobs in one figure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sae_match.report import Record, plot_layer_curves
from sae_match.report.canvas import PALETTE, also_written, factor_styles
from sae_match.report.figures import _same, effects_figure, write_overlays
from sae_match.report.records import find_records
from sae_match.report.report import Options, make_report, report_text, write_report
from tests.report.conftest import job_table
from tests.report.factorial import pair_rows

pytestmark = pytest.mark.figures

DRAW = "import sys; from tests.report.test_figure_files import draw; draw(sys.argv[1])"


def draw(folder: str) -> None:
    with also_written(["svg", "pdf"]):
        plot_layer_curves(job_table(), "matching_score", Path(folder) / "a.png", "title")


def test_vector_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    draw(str(tmp_path))
    subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / "other")], check=True, timeout=300)
    for kind in ("png", "svg", "pdf"):
        found = (tmp_path / f"a.{kind}").read_bytes()
        assert found == (tmp_path / "other" / f"a.{kind}").read_bytes()
        assert time.strftime("%Y-%m-%d").encode() not in found and b"CreationDate" not in found
    assert b"<svg" in (tmp_path / "a.svg").read_bytes() and (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_vector_formats_are_written_on_request_only(tmp_path: Path) -> None:
    plot_layer_curves(job_table(), "matching_score", tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="jpg"), also_written(["jpg"]):
        pass


def test_the_data_beside_a_figure_are_what_it_shows(sweep: Path, tmp_path: Path) -> None:
    write_overlays(find_records([sweep]), tmp_path)
    data = pd.read_csv(tmp_path / "matching_score.csv", dtype={"job": str})
    counts = data.groupby(["job", "variant"]).size().to_dict()
    own = {(job, "matched"): 3 for job in ("0", "1", "9")}
    assert counts == own | {("every job", "random"): 3, ("every job", "ceiling"): 1}
    assert data[data["job"] == "9"]["value"].tolist() == (job_table(-0.09).query(
        "metric == 'matching_score' and variant == 'matched'")["value"].tolist())  # fmt: skip
    assert set(pd.read_csv(tmp_path / "mean_theta.csv")["job"]) == {"every job"}


def many(count: int) -> list[Record]:
    """Jobs in three settings, each a little better than the one before."""
    pairs = [(layer, layer + 1) for layer in range(5)]
    return [
        Record(
            name=str(index),
            path=Path("nowhere") / str(index),
            state="failed" if index % 10 == 9 else "done",
            error="ValueError: no" if index % 10 == 9 else None,
            seconds=1.0,
            config={
                "matching": {"metric": ("both", "decoder", "encoder")[index % 3]},
                "folding": {"name": ("theta", "none")[index // 3 % 2]},
                "seed": index // 6,
            },
            metrics={} if index % 10 == 9 else {"matching_score": index / count, "weight_mse/W_dec": 1 - index / count},
            pairs=None if index % 10 == 9 else pair_rows(pairs, {
                "matching_score/matched": [index / count] * 5, "matching_score/random": [0.01] * 5,
                "weight_mse/W_dec/matched": [2 - index / count] * 5,
            }).assign(low=float("nan"), high=float("nan"), n=1),
        )
        for index in range(count)
    ]  # fmt: skip


def test_of_many_jobs_the_best_are_drawn_and_the_others_counted(tmp_path: Path) -> None:
    records = many(40)
    figures = {figure.path.stem: figure for figure in write_overlays(records, tmp_path, most=5)}
    assert "best 5 of 36 jobs" in figures["matching_score"].note.lower()
    jobs = set(pd.read_csv(tmp_path / "matching_score.csv", dtype={"job": str})["job"]) - {"every job"}
    assert jobs == {"38", "37", "36", "35", "34"}
    # Of an error the smallest are the best: again the last jobs.
    assert set(pd.read_csv(tmp_path / "weight_mse_W_dec.csv", dtype={"job": str})["job"]) == jobs


def test_hundreds_of_jobs(tmp_path: Path) -> None:
    records = many(300)
    text = write_report(records, tmp_path, Options())
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert text.startswith("# SAE Match: 270 of 300 jobs done") and text.count("| **failed** |") == 30
    page = (tmp_path / "report.html").read_text("utf-8")
    assert len(page) < 3_000_000 and page.count('class="bad"') >= 30
    report = make_report(records, Options())
    drawn = [*write_overlays(records, tmp_path), *effects_figure(report.frames["effects.csv"], tmp_path)]
    assert text == report_text(report, drawn)


def test_colors_tell_a_factor_when_there_are_more_jobs_than_colors() -> None:
    settings = {f"{a}{b}": (a, b) for a in "abcd" for b in "xyz"}
    looks = factor_styles(settings)
    assert {looks[f"a{b}"].color for b in "xyz"} == {PALETTE[0]}
    assert len({look.color for look in looks.values()}) == 4
    assert len({look[:3] for look in looks.values()}) == 12
    few = factor_styles({name: (name,) for name in "abc"})
    assert len({look.color for look in few.values()}) == 3


def test_curves_are_common_only_where_every_job_has_them() -> None:
    table = job_table()
    rows = table[table["metric"] == "matching_score"]
    assert _same(pd.concat([rows, rows]), "random", 2)
    assert not _same(pd.concat([rows, rows[rows["layer"] != 12]]), "random", 2)
    moved = rows.assign(layer=rows["layer"] + 1, layer_to=rows["layer_to"] + 1)
    assert not _same(pd.concat([rows, moved]), "random", 2)
    assert not _same(pd.concat([rows, rows.assign(value=rows["value"] * 1.001)]), "random", 2)


@pytest.mark.parametrize(("backend", "left"), [("module://not_installed.backend_inline", "None"), ("svg", "svg")])
def test_a_notebooks_backend_that_is_not_installed_here(backend: str, left: str) -> None:
    code = "import os, sae_match.report, matplotlib; print(os.environ.get('MPLBACKEND'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, left), done.stderr
