"""Figures in the paper's form: which jobs they are drawn of, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_match.record import JobRecord
from sae_match.record.contents import FEATURES, TOP_TOKENS
from sae_match.report import find_records
from sae_match.report.axes import draw_sparsity, sparsity_rows
from sae_match.report.bars import draw_bars, draw_dots, of_one_pair
from sae_match.report.curves import weight_mse_rows
from sae_match.report.features import draw_mse_by_level, pair_examples, pair_examples_of, write_pair_figures
from sae_match.report.figures import write_overlays
from sae_match.style import VARIANTS
from tests.report.conftest import job_table


@pytest.fixture
def ax() -> Iterator[Axes]:
    yield Figure().subplots()


def one_pair(table: pd.DataFrame, l0: tuple[float, float] = (30.0, 34.0)) -> pd.DataFrame:
    """The rows of layers 12 -> 13, with the L0 of both."""
    kept = table[(table["layer"].isin((12, 13))) & (table["layer_to"].isin((12, 13)))]
    known = [
        {
            "layer": layer,
            "layer_to": layer,
            "metric": "l0",
            "variant": "sae",
            "value": value,
            "low": value,
            "high": value,
        }
        for layer, value in zip((12, 13), l0, strict=True)
    ]
    return pd.concat([kept, pd.DataFrame(known)], ignore_index=True)


def write_sweep(root: Path, l0s: dict[str, tuple[float, float]]) -> None:
    for i, (l0, measured) in enumerate(l0s.items()):
        record = JobRecord(root / str(i))
        record.write_config(f"sae: {{name: s, l0: '{l0}'}}\nfolding: {{name: theta}}\n")
        with record.guard():
            record.write_pairs(one_pair(job_table(0.01 * i), measured))
            record.write_metrics({"matching_score": 0.5})


def test_weight_mse_has_vanilla_once_and_both_foldings(table: pd.DataFrame) -> None:
    rows = weight_mse_rows({"a": "theta", "b": "none"}, {"a": table, "b": job_table(0.5)})
    assert rows is not None
    decoder = rows[rows["metric"] == "weight_mse/W_dec"].groupby("variant")["value"].mean()
    assert decoder.to_dict() == pytest.approx({"vanilla": 0.2, "theta": 0.1, "none": 0.15})
    assert len(rows) == 3 * 3 * 3  # groups x pairs x variants
    assert weight_mse_rows({"a": "theta", "b": "theta"}, {"a": table, "b": table}) is None
    assert weight_mse_rows({"a": "theta"}, {"a": table}) is None


def test_bars_show_each_jobs_value_interval_and_two_seeds(ax: Axes, table: pd.DataFrame) -> None:
    score = table[table["metric"] == "matching_score"]
    tables = {"x": one_pair(score), "y": one_pair(job_table(0.1)).query("metric == 'matching_score'")}
    assert of_one_pair(tables)
    assert not of_one_pair({"x": score, "y": score})
    draw_bars(ax, tables, "matched")
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.45, 0.55])  # type: ignore[attr-defined]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]
    seeds = [line for line in ax.lines if line.get_marker() == VARIANTS["ceiling"].marker]
    assert [line.get_xdata()[0] for line in seeds] == pytest.approx([0.55, 0.55])  # type: ignore[index]


def test_of_many_jobs_on_few_pairs_each_has_a_row_of_dots(ax: Axes, tmp_path: Path) -> None:
    tables = {str(n): job_table(n / 100).query("metric == 'matching_score'") for n in range(2)}
    draw_dots(ax, tables, "matched")
    dots = {str(line.get_label()): line for line in ax.lines if line.get_marker() in ("o", "s", "^")}
    assert list(dots) == ["11→12", "12→13", "13→14"]
    assert list(dots["12→13"].get_xdata()) == pytest.approx([0.45, 0.46])
    assert list(dots["12→13"].get_ydata()) == [0, 1] and len(ax.collections) == 6
    for n in range(9):
        record = JobRecord(tmp_path / "jobs" / str(n))
        record.write_config(f"folding: {{name: f{n}}}\n")
        with record.guard():
            record.write_metrics({})
            record.write_pairs(job_table(n / 100))
    (figure,) = write_overlays(find_records([tmp_path / "jobs"]), tmp_path / "out", only=["matching_score"])
    stored = pd.read_csv(figure.path.with_suffix(".csv"), dtype={"job": str})
    assert set(stored.loc[stored["job"] == "3", "variant"]) == {"matched", "ceiling"}


def test_sparsity_is_the_mean_l0_of_one_pair(ax: Axes) -> None:
    jobs = {name: (name, one_pair(job_table(), l0)) for name, l0 in {"64": (60.0, 70.0), "8": (8.0, 10.0)}.items()}
    rows = sparsity_rows(jobs)
    assert rows is not None
    score = rows[(rows["metric"] == "matching_score") & (rows["variant"] == "matched")]
    assert score["mean_l0"].tolist() == [9.0, 65.0]
    assert "encode_permute_decode" in set(rows[rows["metric"] == "delta_loss"]["variant"])
    draw_sparsity(ax, rows[rows["metric"] == "matching_score"], "matching_score")
    matched = next(line for line in ax.lines if line.get_label() == "matched")
    assert np.asarray(matched.get_xdata()).tolist() == [9.0, 65.0]
    assert np.asarray(matched.get_ydata()).tolist() == pytest.approx([0.45, 0.45])


def test_unequal_or_single_sparsities_and_whole_spans_are_not_drawn_against_l0(table: pd.DataFrame) -> None:
    even, uneven = one_pair(table), one_pair(table, (16.0, 64.0))
    assert sparsity_rows({"a": ("32", even), "b": ("16/64", uneven)}) is None
    assert sparsity_rows({"a": ("32", even), "b": ("32", even)}) is None
    assert sparsity_rows({"a": ("32", table), "b": ("64", table)}) is None


@pytest.mark.figures
def test_a_report_of_a_sparsity_sweep(tmp_path: Path) -> None:
    write_sweep(tmp_path / "jobs", {"8": (8.0, 8.5), "32": (32.0, 33.0), "64": (64.0, 66.0)})
    names = [figure.path.name for figure in write_overlays(find_records([tmp_path / "jobs"]), tmp_path / "report")]
    assert {"sparsity.png", "matching_score.png", "delta_loss.png", "l0.png"} <= set(names)
    assert "weight_mse.png" not in names
    first = (tmp_path / "report" / "sparsity.png").read_bytes()
    write_overlays(find_records([tmp_path / "jobs"]), tmp_path / "again")
    assert (tmp_path / "again" / "sparsity.png").read_bytes() == first


def pair_record(root: Path, layers: tuple[int, ...] = (12,), text: str = "Most activating tokens: {}") -> Path:
    """A job of 40 features whose MSE grows with the number; the judge calls the first half the same."""
    record = JobRecord(root)
    n = np.arange(40)
    parts = [
        pd.DataFrame(
            {"layer": a, "layer_to": a + 1, "feature": n, "partner": n[::-1], "mse_W_dec": 0.01 * (n + 1),
             "matching_score": 1 - n / 40}
        )
        for a in layers
    ]  # fmt: skip
    record.write_table(FEATURES, pd.concat(parts, ignore_index=True))
    tokens = [(layer, i, f"${layer}_{i}") for layer in (12, 13) for i in n if i != 20]
    record.write_table(TOP_TOKENS, pd.DataFrame(tokens, columns=["layer", "feature", "token"]))
    lines = [
        {"layer": 12, "layer_to": to, "variant": variant, "feature": int(i), "partner": int(39 - i), "level": level,
         "text_a": text.format(i), "text_b": text.format(39 - i)}
        for to, variant in ((13, "matched"), (13, "random"), (14, "matched"))
        for i in n
        for level in [("same" if i < 20 else "different") if (to, variant) == (13, "matched") else "maybe"]
    ]  # fmt: skip
    record.add_judgements(lines)
    return root


def test_examples_are_spread_over_the_ranking_and_have_tokens(tmp_path: Path) -> None:
    found = pair_examples_of(pair_record(tmp_path))
    assert found is not None
    features, examples = found
    assert features.groupby("judge")["feature"].agg(["min", "max"]).values.tolist() == [[20, 39], [0, 19]]
    assert examples["mark"].tolist() == list("ABCDEFGH")
    assert examples["mse_W_dec"].is_monotonic_increasing
    assert (examples["feature"].min(), examples["feature"].max()) == (1, 38)
    assert not {20} & set(examples["feature"]) and not {20} & set(examples["partner"])
    assert (examples["feature"] + examples["partner"] == 39).all()
    first = examples.iloc[0]
    assert (first["tokens"], first["partner_tokens"]) == ("$12_1", "$13_38")
    assert pair_examples(features.head(1), {})["mark"].tolist() == ["A"]


def test_explanations_take_the_place_of_tokens(tmp_path: Path) -> None:
    found = pair_examples_of(pair_record(tmp_path, text="words about {}"))
    assert found is not None
    assert found[1].iloc[0][["tokens", "partner_tokens"]].tolist() == ["words about 1", "words about 38"]


@pytest.mark.figures
def test_the_figure_and_its_examples_are_written(tmp_path: Path) -> None:
    root = pair_record(tmp_path / "jobs")
    (root / "status.json").write_text(json.dumps({"state": "running"}), encoding="utf-8")
    (figure,) = write_pair_figures(find_records([tmp_path / "jobs"]), tmp_path)
    assert (figure.name, figure.stat().st_size > 10_000) == ("pairs.png", True)
    assert pd.read_csv(tmp_path / "pairs.csv")["mark"].tolist() == list("ABCDEFGH")


def test_a_span_or_a_record_without_meanings_has_no_examples(tmp_path: Path) -> None:
    assert pair_examples_of(pair_record(tmp_path / "span", (12, 13))) is None
    bare = pair_record(tmp_path / "bare")
    for name in ("top_tokens.parquet", "judgements.jsonl"):
        (bare / name).unlink()
    assert pair_examples_of(bare) is None


def test_mse_by_level_shows_every_judged_pair_and_medians(ax: Axes, tmp_path: Path) -> None:
    found = pair_examples_of(pair_record(tmp_path))
    assert found is not None
    draw_mse_by_level(ax, found[0])
    points = [line for line in ax.lines if line.get_marker() == "."]
    assert [len(np.asarray(line.get_xdata())) for line in points] == [20, 20]
    medians = [np.asarray(line.get_ydata())[0] for line in ax.lines if line.get_marker() != "."]
    assert medians == pytest.approx([0.105, 0.305])
