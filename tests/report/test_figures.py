"""Figures: what is drawn on the axes, and that files appear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from PIL import Image

from sae_match.report import (
    plot_layer_curves,
    plot_mse_histogram,
    plot_overlay,
    plot_overview,
    plot_theta,
)
from sae_match.report.canvas import (
    DPI,
    LEGEND_LINE_INCHES,
    MARKERS,
    PALETTE,
    axis_label,
    new_figure,
    references,
    styles,
)
from sae_match.report.curves import draw_changes, draw_groups, draw_layer_curves, draw_relative
from sae_match.report.features import draw_histogram
from sae_match.style import VARIANTS, Look

pytestmark = pytest.mark.figures


@pytest.fixture
def ax() -> Axes:
    """Empty axes."""
    return new_figure().subplots()


def labels_of(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def line(ax: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(each for each in ax.get_lines() if each.get_label() == label)
    return list(found.get_xdata()), list(found.get_ydata())


def test_layer_curves_put_pairs_between_their_layers(ax: Axes, table: pd.DataFrame) -> None:
    draw_layer_curves(ax, table, "matching_score")
    assert line(ax, "matched") == ([11.5, 12.5, 13.5], [0.4, 0.45, 0.5])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["11→12", "12→13", "13→14"]
    assert list(ax.get_xticks()) == [11.5, 12.5, 13.5]
    assert ax.get_xlabel() == "layer pair" and ax.get_ylabel() == "matching score [probability]"
    assert labels_of(ax) == ["matched", "random", "two seeds of the layer (reference)"]


def test_the_band_is_the_interval(ax: Axes, table: pd.DataFrame) -> None:
    draw_layer_curves(ax, table, "matching_score", ["matched"])
    (band,) = ax.collections
    corners = {(round(x, 9), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    assert {(11.5, 0.38), (11.5, 0.42), (13.5, 0.48), (13.5, 0.52)} <= corners


def test_without_an_interval_there_is_no_band(ax: Axes, table: pd.DataFrame) -> None:
    draw_layer_curves(ax, table, "explained_variance")
    assert len(ax.get_lines()) == 4 and not ax.collections


def test_a_single_pair_gets_error_bars(ax: Axes, table: pd.DataFrame) -> None:
    draw_layer_curves(ax, table[table["layer"] == 11], "matching_score", ["matched"])
    (bars,) = ax.collections
    ((bottom, top),) = bars.get_segments()
    assert (bottom[1], top[1]) == pytest.approx((0.38, 0.42))


def test_ceilings_of_several_layers_stand_at_their_layers(ax: Axes, table: pd.DataFrame) -> None:
    second = pd.DataFrame(
        [{"layer": 13, "layer_to": 13, "metric": "matching_score", "variant": "ceiling", "value": 0.6}]
    )
    draw_layer_curves(ax, pd.concat([table, second]), "matching_score")
    assert line(ax, VARIANTS["ceiling"].label) == ([12.0, 13.0], [0.55, 0.6])


@pytest.mark.parametrize("style", [None, references(["ceiling"]), {"ceiling": Look("#000000", "D", "--", "old")}])
def test_two_seeds_are_a_marker_at_their_layer(ax: Axes, table: pd.DataFrame, style: dict[str, Look] | None) -> None:
    """No line says anything of the layers between, whatever style the record was written with."""
    draw_layer_curves(ax, table, "matching_score", ["matched", "ceiling"], style)
    (seeds,) = [each for each in ax.get_lines() if list(each.get_ydata()) == [0.55]]
    assert (seeds.get_linestyle(), list(seeds.get_xdata())) == ("None", [12.0])
    (bars,) = [each for each in ax.collections if isinstance(each, LineCollection)]
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.54, 0.56])
    assert not [each for each in ax.get_lines() if len(each.get_xdata()) == 2]


@pytest.mark.parametrize(("value", "drawn"), [(-1.3, False), (0.2, True)])
def test_a_splice_along_a_control_is_drawn_or_said(ax: Axes, table: pd.DataFrame, value: float, drawn: bool) -> None:
    """On one axis with a random permutation's explained variance all others would look alike."""
    own = table.query("metric == 'explained_variance' and variant == 'layer_drop'")
    far = own.assign(variant="encode_permute_decode_random", value=value)
    draw_layer_curves(ax, pd.concat([table, far]), "explained_variance")
    there = [each for each in ax.get_lines() if value in list(each.get_ydata())]
    assert bool(there) == drawn
    assert f"encode permute decode random{'' if drawn else ': -1.3, off the axis'}" in labels_of(ax)


def test_long_labels_have_two_lines_and_legends_take_no_room_from_the_axes(tmp_path: Path, table: pd.DataFrame) -> None:
    assert axis_label("matching score [probability]") == "matching score [probability]"
    assert axis_label("MSE of decoder rows [folded units²]") == "MSE of decoder rows\n[folded units²]"
    heights = []
    for metric in ("residual_norm", "delta_loss"):  # one curve, and four with long names
        with Image.open(plot_layer_curves(table, metric, tmp_path / "a.png")) as image:
            heights.append(image.size[1])
    assert heights[1] - heights[0] == round(2 * LEGEND_LINE_INCHES * DPI)


def test_rows_without_a_value_are_not_drawn(ax: Axes, table: pd.DataFrame) -> None:
    table.loc[(table["layer"] == 12) & (table["variant"] == "random"), "value"] = np.nan
    draw_layer_curves(ax, table, "matching_score")
    assert line(ax, "random")[0] == [11.5, 13.5]


def test_a_metric_that_is_not_there_is_an_error_that_lists_what_is(ax: Axes, table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"'nope'.*delta_loss"):
        draw_layer_curves(ax, table, "nope")


def test_many_pairs_are_labelled_with_a_stride(ax: Axes) -> None:
    rows = [{"layer": a, "layer_to": a + 1, "metric": "l0", "variant": "matched", "value": a} for a in range(31)]
    draw_layer_curves(ax, pd.DataFrame(rows), "l0")
    shown = [text.get_text() for text in ax.get_xticklabels()]
    assert shown[0] == "0→1" and sum(map(len, shown)) <= 42
    assert len(line(ax, "matched")[0]) == 31


def test_units_and_scales_come_with_the_metric(table: pd.DataFrame) -> None:
    loss, weights = new_figure().subplots(1, 2)
    draw_layer_curves(loss, table, "delta_loss")
    draw_layer_curves(weights, table, "weight_mse/W_dec")
    assert "nats/token" in loss.get_ylabel() and loss.get_yscale() == "linear"
    assert "folded units" in weights.get_ylabel() and weights.get_yscale() == "log"


def test_histogram_counts_every_feature_and_marks_medians(ax: Axes) -> None:
    values = {"matched": np.geomspace(1e-3, 1e-1, 101), "random": np.full(7, 0.05)}
    draw_histogram(ax, values, bins=10)
    assert labels_of(ax) == ["matched (median 0.01, n = 101)", "random (median 0.05, n = 7)"]
    filled = [patch for patch in ax.patches if patch.get_fill()]
    assert [int(patch.get_data().values.sum()) for patch in filled] == [101, 7]
    assert [each.get_xdata()[0] for each in ax.get_lines()] == pytest.approx([0.01, 0.05])
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "features"


def test_histogram_with_exact_zeros_is_linear(ax: Axes) -> None:
    draw_histogram(ax, {"matched": np.array([0.0, 0.1, 0.2])})
    assert ax.get_xscale() == "linear"
    assert sum(patch.get_data().values.sum() for patch in ax.patches if patch.get_fill()) == 3


@pytest.mark.parametrize("values", [{}, {"matched": np.empty(0)}, {"matched": np.array([1.0, np.nan])}])
def test_histogram_refuses_what_it_cannot_count(ax: Axes, values: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        draw_histogram(ax, values)


def test_theta_and_norm_are_relative_to_the_first_layer(ax: Axes, table: pd.DataFrame) -> None:
    looks = {
        "mean_theta": VARIANTS["matched"]._replace(label="a"),
        "residual_norm": VARIANTS["vanilla"]._replace(label="b"),
    }
    draw_relative(ax, table, looks)
    assert line(ax, "a (2 → 5)") == ([11, 12, 13, 14], [1.0, 1.5, 2.0, 2.5])
    assert line(ax, "b (100 → 400)") == ([11, 12, 13, 14], [1.0, 2.0, 3.0, 4.0])
    assert ax.get_xlabel() == "layer" and ax.get_ylabel() == "relative to the first layer"


def test_groups_show_the_mean_over_pairs(ax: Axes, table: pd.DataFrame) -> None:
    metrics = ["weight_mse/W_enc", "weight_mse/b_enc", "weight_mse/W_dec"]
    draw_groups(ax, table, metrics)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["W_enc", "b_enc", "W_dec"]
    assert line(ax, "matched")[1] == pytest.approx([1.0, 10.0, 0.1])
    assert line(ax, VARIANTS["vanilla"].label)[1] == pytest.approx([2.0, 20.0, 0.2])


def test_styles_are_told_apart_by_more_than_color() -> None:
    names = [*VARIANTS, *(f"unknown {i}" for i in range(4))]
    looks = styles(names)
    assert list(looks)[: len(VARIANTS)] == list(VARIANTS)
    assert len({look[:3] for look in looks.values()}) == len(names) - 1  # matched has the look of its splice
    for family in (["matched", "vanilla", "random", "ceiling"], list(VARIANTS)[3:-1]):
        assert len({looks[name].color for name in family}) == len(family)
        assert len({looks[name].marker for name in family}) == len(family)
    many = styles([str(i) for i in range(20)])
    assert len({look[:3] for look in many.values()}) == 20
    assert {look.color for look in many.values()} == set(PALETTE) and len(PALETTE) == len(MARKERS)
    assert {to_hex(look.color) for look in references(["random", "layer_drop"]).values()} == {"#7f7f7f"}


def test_files_appear_at_print_size(tmp_path: Path, table: pd.DataFrame) -> None:
    values = {"matched": np.geomspace(1e-3, 1, 50), "random": np.geomspace(1e-1, 1, 50)}
    paths = [
        plot_layer_curves(table, "matching_score", tmp_path / "figures" / "a.png", "title"),
        plot_mse_histogram(values, tmp_path / "b.png", "title"),
        plot_theta(table, tmp_path / "c.png"),
        plot_overview(table, tmp_path / "d.png", "title"),
        plot_overlay({"x": table, "y": table}, "delta_loss", "encode_permute_decode", tmp_path / "e.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.size[0] >= 700 and round(image.info["dpi"][0]) == 200
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "c.png", "d.png", "e.png", "figures"]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path, table: pd.DataFrame) -> None:
    first = plot_overview(table, tmp_path / "a.png").read_bytes()
    assert plot_overview(table.sample(frac=1, random_state=3), tmp_path / "b.png").read_bytes() == first


def test_overview_leaves_out_what_was_not_measured(tmp_path: Path, table: pd.DataFrame) -> None:
    weights = table[table["metric"].str.startswith("weight_mse")]
    paths = plot_overview(weights, tmp_path / "w.png"), plot_overview(table, tmp_path / "all.png")
    with Image.open(paths[0]) as small, Image.open(paths[1]) as full:
        assert small.size[0] < full.size[0] and small.size[1] < full.size[1]
    with pytest.raises(ValueError, match="mean_theta"):
        plot_overview(table[table["metric"] == "mean_theta"], tmp_path / "none.png")


def test_changes_from_layer_to_layer(ax: Axes, table: pd.DataFrame, tmp_path: Path) -> None:
    """theta 2, 3, 4, 5 and norms 100, 200, 300, 400: steps of +50, 33, 25 % against +100, 50, 33 %."""
    draw_changes(ax, table, "residual_norm", "mean_theta")
    (points,) = [np.column_stack(line.get_data()) for line in ax.lines if line.get_marker() == "o"]
    assert points == pytest.approx(np.array([(100.0, 50.0), (50.0, 100 / 3), (100 / 3, 25.0)]))
    assert {text.get_text() for text in ax.texts} == {"11→12", "12→13", "13→14"}


def test_of_many_changes_those_far_from_the_others_are_named(ax: Axes) -> None:
    """Steps of 1 to 20 %, and one of 300 %."""
    values = np.cumprod([1.0, *(1 + 0.01 * np.arange(1, 21)), 4.0])
    rows = [(layer, layer, "sae", name, v, v, v, 1) for name in ("a", "b") for layer, v in enumerate(values)]
    draw_changes(
        ax,
        pd.DataFrame(rows, columns=["layer", "layer_to", "variant", "metric", "value", "low", "high", "n"]),
        "a",
        "b",
    )
    named = [text.get_text() for text in ax.texts]
    assert len(named) == 8 and named[0] == "20→21"


def test_changes_stand_beside_the_curves_where_there_are_decoder_norms(table: pd.DataFrame, tmp_path: Path) -> None:
    norms = table[table["metric"] == "mean_theta"].assign(metric="decoder_norm")
    both = plot_theta(pd.concat([table, norms]), tmp_path / "both.png")
    with Image.open(both) as two, Image.open(plot_theta(table, tmp_path / "one.png")) as one:
        assert two.width > 1.5 * one.width
