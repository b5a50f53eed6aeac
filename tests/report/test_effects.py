"""Factor effects: hand-computed, with all other factors held fixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sae_match.report.ablation import effects_frame, effects_note, factors, resample
from sae_match.report.bars import contrasts, draw_effects, effect_metrics, plot_effects
from sae_match.report.figures import effects_figure
from sae_match.report.records import Record, find_records
from sae_match.report.tables import effects_table
from tests.report.factorial import design, job, pair_rows, ratio_sums, stored

SCORE, LOSS = "matching_score", "delta_loss/encode_permute_decode"


def frame_of(records: list[Record]) -> dict[tuple[str, str, str], dict]:
    frame = effects_frame(records, [SCORE, LOSS], resample(records, [SCORE, LOSS]))
    return {(row["factor"], row["level"], row["metric"]): row for row in frame.to_dict("records") if not row["where"]}


def test_effects_by_hand() -> None:
    rows = frame_of(design())
    decoder = rows["metric", "decoder", SCORE]
    assert decoder["effect"] == pytest.approx((0.06 + 0.04) / 2)
    assert (decoder["smallest"], decoder["largest"]) == pytest.approx((0.04, 0.06))
    assert (decoder["cells"], decoder["unmatched"], decoder["reference"]) == (2, 0, "both")
    assert decoder["jobs"] == "2 - 0; 3 - 1"
    none = rows["folding", "none", LOSS]
    assert none["effect"] == pytest.approx((1.0 + 3.5) / 2)
    assert (none["smallest"], none["largest"]) == pytest.approx((1.0, 3.5))
    assert len(rows) == 4


def test_a_failed_cell_is_counted_not_guessed() -> None:
    records = design()
    records[3] = job("3", "decoder", "none", "failed", "ValueError")
    rows = frame_of(records)
    assert rows["metric", "decoder", SCORE]["effect"] == pytest.approx(0.06)
    assert (rows["metric", "decoder", SCORE]["cells"], rows["metric", "decoder", SCORE]["unmatched"]) == (1, 1)
    frame = effects_frame(records, [SCORE], resample(records, [SCORE]))
    assert "1 (+1 without partner)" in effects_table(frame, [SCORE]).markdown


def test_a_level_without_any_partner_keeps_its_row() -> None:
    records = [job("0", "both", "theta", "failed"), job("1", "decoder", "theta", score=1.0), job("2", "both", "none")]
    rows = frame_of(records)
    lonely = rows["metric", "decoder", SCORE]
    assert (lonely["cells"] == 0 and lonely["effect"] is None) or np.isnan(lonely["effect"])
    assert "–" in effects_table(effects_frame(records, [SCORE], resample(records, [SCORE])), [SCORE]).markdown


def test_settings_that_move_together_are_one_factor() -> None:
    records = [
        Record(
            name=f"{n}{seed}",
            path=Path(f"{n}{seed}"),
            state="done",
            config={"sae": {"name": n}, "model": {"name": n}, "seed": seed},
        )
        for n in ("a", "b")
        for seed in (0, 1)
    ]
    assert factors(records) == [("sae", "model"), ("seed",)]
    frame = effects_frame(records, [SCORE], resample(records, [SCORE]))
    assert frame[["factor", "level"]].to_numpy().tolist() == [["sae + model", "b, b"], ["seed", "1"]]
    assert frame["jobs"].tolist() == ["b0 - a0; b1 - a1", "a1 - a0; b1 - b0"]


def test_the_interval_is_that_of_the_mean_over_cells(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    documents = {}
    for index, (metric, folding) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]):
        values = documents[metric, folding] = generator.random(12)
        config = {"matching": {"metric": metric}, "folding": {"name": folding}, "seed": 0}
        pairs = pair_rows([(0, 1)], {"matching_score/matched": [float(values.mean())]})
        stored(tmp_path / str(index), config, pairs, {SCORE: float(values.mean())}, ratio_sums(list(values)))
    frame = effects_frame(records := find_records([tmp_path]), [SCORE], resample(records, [SCORE]))
    row = frame[frame["factor"] == "metric"].iloc[0]
    per_document = ((documents["b", "x"] - documents["a", "x"]) + (documents["b", "y"] - documents["a", "y"])) / 2
    counts = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=1000)
    assert row["effect"] == pytest.approx(per_document.mean())
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(counts @ per_document / 12, (0.025, 0.975))))
    assert "95 % interval" in effects_note(frame) and "no interval" not in effects_note(frame)


def test_without_sums_the_note_says_so() -> None:
    frame = effects_frame(design(), [SCORE], resample(design(), [SCORE]))
    assert "no interval" in effects_note(frame) and "resampled" not in effects_note(frame)
    assert "(0.0400 … 0.0600)" in effects_table(frame, [SCORE]).markdown


def test_exact_numbers_depend_where_signs_differ_or_one_is_more_than_twice_another() -> None:
    frame = effects_frame(design(), [SCORE, LOSS], {record.path: {} for record in design()})
    rows = frame.set_index(["factor", "level", "where", "metric"]).sort_index()
    # Losses by metric, folding: 1.0, 2.0, 0.5, 4.0. Scores: 0.50, 0.40, 0.56, 0.44.
    assert rows.loc[("metric", "decoder", "", LOSS), "depends_on"] == "folding"
    assert rows.loc[("folding", "none", "", LOSS), "depends_on"] == "metric"
    assert set(frame.loc[frame["metric"] == SCORE, "depends_on"]) == {""}
    for where, loss, score, jobs in (("theta", -0.5, 0.06, "2 - 0"), ("none", 2.0, 0.04, "3 - 1")):
        at = rows.loc[("metric", "decoder", f"folding={where}")]
        assert at["effect"].to_dict() == pytest.approx({LOSS: loss, SCORE: score})
        assert (at.loc[LOSS, "cells"], at.loc[LOSS, "jobs"]) == (1, jobs)
    table = effects_table(frame, [SCORE, LOSS])
    cells = [[cell.text for cell in row] for row in table.rows]
    assert [row[:4] for row in cells] == [
        ["metric", "decoder − both", "all", "2"],
        ["metric", "decoder − both", "folding=theta", "1"],
        ["metric", "decoder − both", "folding=none", "1"],
        ["folding", "none − theta", "all", "2"],
        ["folding", "none − theta", "metric=both", "1"],
        ["folding", "none − theta", "metric=decoder", "1"],
    ]
    assert [row[5].endswith(" *") for row in cells] == [True, False, False] * 2
    assert not any(row[4].endswith("*") for row in cells) and "no one effect" in effects_note(frame)


@pytest.mark.parametrize(("interaction", "depends"), [(0.004, ""), (0.2, "folding")])
def test_an_effect_depends_where_the_interval_of_the_interaction_excludes_0(
    tmp_path: Path, interaction: float, depends: str
) -> None:
    noise = np.random.default_rng(3).normal(0, 0.05, (4, 40))
    for index, (metric, folding) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]):
        values = 0.4 + 0.1 * (metric == "b") + interaction * (metric == "b") * (folding == "y") + noise[index]
        config = {"matching": {"metric": metric}, "folding": {"name": folding}, "seed": 0}
        pairs = pair_rows([(0, 1)], {"matching_score/matched": [float(values.mean())]})
        stored(tmp_path / str(index), config, pairs, {SCORE: float(values.mean())}, ratio_sums(list(values)))
    frame = effects_frame(records := find_records([tmp_path]), [SCORE], resample(records, [SCORE]))
    rows = frame[frame["factor"] == "metric"].set_index("where")
    assert rows.loc["", "depends_on"] == depends
    assert set(rows.index) == ({"", "folding=x", "folding=y"} if depends else {""})
    if depends:
        # By hand: the interval of document means of (by - ay) - (bx - ax), which is what was planted beside the noise.
        counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=1000)
        low, high = np.quantile(counts @ (interaction + noise[3] - noise[1] - noise[2] + noise[0]) / 40, (0.025, 0.975))
        assert low > 0 and rows.loc["folding=y", "effect"] - rows.loc["folding=x", "effect"] == pytest.approx(
            interaction + (noise[3] - noise[1] - noise[2] + noise[0]).mean()
        )
        assert rows.loc["folding=y", "low"] > rows.loc["folding=x", "high"] and high > low


def test_three_levels_are_compared_in_pairs_with_a_correction(tmp_path: Path) -> None:
    """At 95 % each the levels 0 and 2 of folding would differ; for all three pairs together they do not."""
    steps = np.linspace(-1, 1, 41) * 0.3
    for f, shift in enumerate((0.0, 0.02825, 0.0565)):
        for metric in ("a", "b"):
            values = 0.5 + (metric == "b") * (shift + (f - 1) * steps / 2)
            config = {"matching": {"metric": metric}, "folding": {"name": str(f)}, "seed": 0}
            folder = tmp_path / f"{f}{metric}"
            pairs = pair_rows([(0, 1)], {"matching_score/matched": [float(values.mean())]})
            stored(folder, config, pairs, {SCORE: float(values.mean())}, ratio_sums(list(values)))
    records = find_records([tmp_path])
    frame = effects_frame(records, [SCORE], resample(records, [SCORE]))
    assert set(frame.loc[frame["factor"] == "metric", "depends_on"]) == {""}
    counts = np.random.default_rng(0).multinomial(41, np.full(41, 1 / 41), size=1000)
    interaction = counts @ (0.0565 + steps) / 41
    assert np.quantile(interaction, 0.025) > 0 > np.quantile(interaction, 0.025 / 3)


@pytest.mark.figures
def test_the_figure_shows_what_the_table_has(tmp_path: Path) -> None:
    frame = effects_frame(design(), [SCORE, LOSS], {record.path: {} for record in design()})
    rows = contrasts(frame)
    ax = Figure().subplots()
    draw_effects(ax, frame[frame["metric"] == LOSS], rows)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in dots] == pytest.approx([0.75, -0.5, 2.0, 2.25, 1.0, 3.5])
    assert [line.get_markerfacecolor() == "white" for line in dots] == [True, False, False] * 2
    assert effect_metrics(frame) == [SCORE, LOSS]
    assert plot_effects(frame, tmp_path / "effects.png").stat().st_size > 5000
    drawn = effects_figure(frame, tmp_path)
    assert [figure.title for figure in drawn] == ["effect of each factor"]
    assert len(pd.read_csv(tmp_path / "effects.csv")) == len(frame)
