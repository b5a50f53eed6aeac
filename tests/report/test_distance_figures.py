"""Figures over distance and over quantiles: what is drawn, and what the per-layer figures leave out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sae_match.errors import UserError
from sae_match.record import JobRecord
from sae_match.record.pairs import distance_rows, near_rows
from sae_match.report import find_records, plot_composition, plot_quantiles
from sae_match.report.axes import draw_distances, draw_quantiles, quantile_rows
from sae_match.report.canvas import new_figure
from sae_match.report.curves import per_layer_rows
from sae_match.report.figures import write_overlays


@pytest.fixture
def composed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with distances 2 and 3 over layers 11..14, and quantiles."""
    rows = []
    for layer, layer_to in ((11, 13), (11, 14), (12, 14)):
        distance = layer_to - layer
        for variant, value in (("composed", 0.4 / distance), ("exact", 0.4), ("random", 0.03)):
            for metric in ("matching_score", "explained_variance"):
                rows.append((layer, layer_to, metric, variant, value))
        rows.append((layer, layer_to, "agreement", "composed", 1 / distance))
    for layer in (11, 12, 13):
        for q in (0, 0.5, 1):
            rows += [
                (layer, layer + 1, metric, f"quantile_{q:g}", q + layer)
                for metric in ("explained_variance", "delta_loss")
            ]
    more = pd.DataFrame(rows, columns=["layer", "layer_to", "metric", "variant", "value"])
    return pd.concat([table, more], ignore_index=True)


def test_a_line_per_start_and_the_means(composed: pd.DataFrame) -> None:
    ax = new_figure().subplots()
    rows = distance_rows(composed)
    draw_distances(ax, rows[rows["metric"] == "matching_score"], "matching_score")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    labels = ax.get_legend_handles_labels()[1]
    starts = [points for label, points in drawn.items() if label not in labels]
    assert sorted(starts) == [[[1, 0.4], [2, 0.2], [3, 0.4 / 3]], [[1, 0.45], [2, 0.2]]]
    assert np.ravel(drawn["composed, mean (thin: each start)"]) == pytest.approx([1, 0.425, 2, 0.2, 3, 0.4 / 3])
    assert np.ravel(drawn["composed random permutations, mean"]) == pytest.approx([1, 0.03, 2, 0.03, 3, 0.03])
    assert [y for _, y in drawn["solved exactly, mean"]] == pytest.approx([0.425, 0.4, 0.4])


def test_quantiles_are_numbers_on_the_axis(composed: pd.DataFrame) -> None:
    ax = new_figure().subplots()
    rows = quantile_rows(composed)
    draw_quantiles(ax, rows[rows["metric"] == "delta_loss"], "delta_loss")
    *pairs, mean = [line.get_xydata().tolist() for line in ax.get_lines()]
    assert pairs == [[[0, layer], [0.5, layer + 0.5], [1, layer + 1]] for layer in (11, 12, 13)]
    assert mean == [[0, 12], [0.5, 12.5], [1, 13]]


@pytest.mark.figures
def test_figures_appear_and_need_rows(tmp_path: Path, table: pd.DataFrame, composed: pd.DataFrame) -> None:
    for draw, rows in ((plot_composition, distance_rows), (plot_quantiles, near_rows)):
        path = draw(rows(composed), tmp_path / "figure.png")
        with Image.open(path) as image:
            assert image.size[0] > 700
        with pytest.raises(ValueError, match="no "):
            draw(rows(table), tmp_path / "none.png")


def test_per_layer_figures_see_only_neighbors(composed: pd.DataFrame, table: pd.DataFrame) -> None:
    assert per_layer_rows(composed).equals(table)


def test_reports_of_one_and_of_several_jobs(tmp_path: Path, composed: pd.DataFrame, table: pd.DataFrame) -> None:
    for name, pairs in (("0", composed), ("1", table), ("2", composed)):
        record = JobRecord(tmp_path / "jobs" / name)
        record.write_config("seed: 0\n")
        with record.guard():
            record.write_metrics({})
            record.write_pairs(pairs)
    one = write_overlays(find_records([tmp_path / "jobs" / "0"]), tmp_path / "one")
    assert {"composition.png", "quantiles.png"} <= {figure.path.name for figure in one}
    several = {figure.path.name for figure in write_overlays(find_records([tmp_path / "jobs"]), tmp_path / "several")}
    assert {"composition_0.png", "composition_1.png", "quantiles_0.png", "quantiles_1.png"} <= several
    assert "agreement.png" not in several


def test_only_the_figures_asked_for(tmp_path: Path, composed: pd.DataFrame) -> None:
    record = JobRecord(tmp_path / "job")
    record.write_config("seed: 0\n")
    with record.guard():
        record.write_metrics({})
        record.write_pairs(composed)
    records = find_records([tmp_path / "job"])
    names = [
        figure.path.name for figure in write_overlays(records, tmp_path / "few", only=["composition", "matching_score"])
    ]
    assert names == ["composition.png", "matching_score.png"]
    assert {path.name for path in (tmp_path / "few").glob("*.png")} == set(names)
    with pytest.raises(UserError, match=r"no such figure\. There are .*matching_score"):
        write_overlays(records, tmp_path / "none", only=["pairs"])
