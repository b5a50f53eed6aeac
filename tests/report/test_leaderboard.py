"""The leaderboard of matchers: ratios and areas by hand, planted ranks, paired intervals, the report's section."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_match.errors import UserError
from sae_match.metrics import Bootstrap
from sae_match.metrics.functional import FUNCTIONAL, PartnerEffects
from sae_match.report import find_records, leaderboard
from sae_match.report.functional import RATIOS, Scores, quality_curve, read_tests, spearman
from sae_match.report.leaderboard_tables import Leaderboard
from sae_match.report.report import Options, write_report
from tests.report.functional_records import MATCHERS, write_job

HAND = {
    # feature: 0 has no contexts, 1 a partner, 2 a silent partner, 3 no partner
    "layer": [1] * 4, "layer_to": [2] * 4, "role": ["adjacent"] * 4, "variant": ["matched"] * 4,
    "feature": [0, 1, 2, 3], "partner": [5, 6, 7, -1], "quartile": [1, 2, 3, 4], "contexts": [0, 4, 4, 4],
    "confidence": [0.9, 0.8, 0.8, np.nan], "decoder_cosine": [0.1, 0.2, 0.3, np.nan],
    "drop": [0.9, 0.75, np.nan, np.nan], "silent": [False, False, True, False], "rank": [1, 2, 40, 0],
    "kl_ablated": [9.0, 2.0, 1.0, 0.0], "kl_substituted": [0.0, 0.5, 2.0, 0.0],
    "fingerprint": [0.9, 0.5, 0.1, np.nan], "fingerprint_rank": [1, 1, 4, 0],
}  # fmt: skip


def scores(directory: Path, role: str = "adjacent", **how: Any) -> Scores:
    tests = read_tests(find_records([directory]))
    assert tests is not None
    return Scores(tests.features[tests.features["role"] == role], **how)


def by_hand(directory: Path, table: dict[str, list[Any]]) -> Scores:
    write_job(directory, {"matched": MATCHERS["matched"]}, n=8)
    pd.DataFrame(table).to_parquet(directory / "functional.parquet")
    return scores(directory, samples=10)


def test_every_number_by_hand(tmp_path: Path) -> None:
    found = by_hand(tmp_path / "0", HAND)
    expected = {
        "deactivation": 0.75 / 3, "deactivation_top1": 0.0, "deactivation_mrr": (1 / 2 + 1 / 40) / 3,
        "deactivation_silent": 1 / 3, "substitution": 1 - (0.5 + 2) / (2 + 1), "fingerprint": 0.6 / 3,
        "fingerprint_mrr": 1.25 / 3, "ausqc": np.mean([1 - 0.5 / 2, 1 - 2.5 / 3]),
    }  # fmt: skip
    assert {name: found.estimate(name, "matched").value for name in expected} == pytest.approx(expected)


def test_the_same_numbers_as_the_metrics_of_a_pair(tmp_path: Path) -> None:
    """Two implementations: on arrays of one pair in the job, on the table of all pairs in the report."""
    write_job(tmp_path / "0", {"matched": MATCHERS["matched"], "mutual": MATCHERS["mutual"]}, n=60)
    path = tmp_path / "0" / "functional.parquet"
    rng = np.random.default_rng(0)
    table = pd.read_parquet(path).query("layer == 11 and variant == 'mutual'").reset_index(drop=True)
    table["silent"] = silent = (rng.random(60) < 0.2) & (table["partner"] >= 0)
    table["drop"] = table["drop"].mask(silent, 0.0).fillna(0.0)
    table["fingerprint"] = np.where(table["partner"] >= 0, rng.random(60), 0.0)
    table["fingerprint_rank"] = table["rank"]
    table["confidence"] = table["confidence"].round(1)
    table.to_parquet(path)
    column = {name: table[name].to_numpy() for name in table}
    clean = np.where(silent | (column["partner"] < 0), 0.0, 2.0)
    effects = PartnerEffects(
        column["partner"], column["quartile"], np.arange(60), np.arange(60) % 5, clean=clean,
        ablated=clean * (1 - column["drop"]),
        **{name: column[name] for name in ("rank", "kl_ablated", "kl_substituted", "fingerprint", "fingerprint_rank",
                                           "confidence")},
    )  # fmt: skip
    of_pair = {metric.about.name: metric.measured(effects, Bootstrap(5, 10)) for metric in FUNCTIONAL}
    found = scores(tmp_path, samples=10)
    for name in (*RATIOS, "ausqc"):
        measured = of_pair[name]
        assert measured is not None and found.estimate(name, "mutual").value == pytest.approx(measured.value), name


def test_a_test_that_was_not_run_has_no_numbers(tmp_path: Path) -> None:
    gone = ("drop", "silent", "rank", "fingerprint", "fingerprint_rank", "confidence")
    found = by_hand(tmp_path / "0", {name: values for name, values in HAND.items() if name not in gone})
    numbers = {name: found.estimate(name, "matched").value for name in ("deactivation", "fingerprint", "ausqc")}
    assert np.isnan(list(numbers.values())).all()
    assert np.isfinite(found.estimate("substitution", "matched").value)


def test_area_with_ties_and_ablations_without_effect(tmp_path: Path) -> None:
    """Order: 4 (most confident, no effect), then 2 and 3 by index, then 1; the first point is undefined."""
    four = {name: values[:1] * 4 for name, values in HAND.items()}
    table = four | {
        "feature": [1, 2, 3, 4], "contexts": [1] * 4, "confidence": [0.1, 0.5, 0.5, 0.9],
        "kl_ablated": [1.0, 2.0, 4.0, 0.0], "kl_substituted": [3.0, 1.0, 0.0, 0.5],
    }  # fmt: skip
    found = by_hand(tmp_path / "0", table)
    curve = [1 - 1.5 / 2, 1 - 1.5 / 6, 1 - 4.5 / 7]
    assert found.estimate("ausqc", "matched").value == pytest.approx(np.mean(curve))
    tests = read_tests(find_records([tmp_path]))
    assert tests is not None
    drawn = quality_curve(tests.features)
    assert drawn["substitution"].tolist() == pytest.approx(curve) and drawn["share"].tolist() == [0.5, 0.75, 1.0]


def test_planted_ranks_and_intervals(tmp_path: Path) -> None:
    twin = MATCHERS["greedy"]._replace(parts=None)
    write_job(tmp_path / "0", {**MATCHERS, "zz_twin": twin}, noise=0.1, n=400)
    frame = leaderboard(tmp_path).set_index("variant")
    assert frame["rank"].dropna().to_dict() == {
        "cosine": 1, "cosine_nearest": 2, "matched": 3, "greedy": 4, "zz_twin": 4, "mutual": 6, "random": 7,
    }  # fmt: skip
    assert list(frame.index[-4:]) == ["most_affected", "hard_negative", "coactive_partner", "random_partner"]
    assert frame.loc["matched", "matcher"] == "paper's weights, folded (matched)"
    assert frame.loc["random_partner", "matcher"] == "random partner"
    for name in ("cosine", "greedy", "random"):
        row = frame.loc[name]
        assert row["deactivation_low"] < MATCHERS[name].drop < row["deactivation_high"]
        half = 1.96 * np.hypot(0.1, 0.025) / np.sqrt(row["features"])
        assert (row["deactivation_high"] - row["deactivation_low"]) / 2 == pytest.approx(half, rel=0.15)
    assert frame["ausqc"].isna().sum() == 5 and frame.loc["cosine", "ausqc"] > frame.loc["cosine", "substitution"]
    assert frame.loc["mutual", ["coverage", "delta_loss", "matching_score"]].tolist() == [0.6, 0.5, 0.25]


def test_differences_are_paired_and_on_common_features(tmp_path: Path) -> None:
    write_job(tmp_path / "0", n=400)
    found = scores(tmp_path)
    difference, own = found.difference("deactivation", "cosine", "matched"), found.estimate("deactivation", "cosine")
    # Both have an independent part of a quarter of the features' own spread.
    ratio = (difference.high - difference.low) / (own.high - own.low)
    assert ratio == pytest.approx(np.sqrt(2) * 0.25 / np.hypot(1, 0.25), rel=0.15)
    rows = read_tests(find_records([tmp_path])).features  # type: ignore[union-attr]
    table = rows.set_index(["variant", "cluster"])
    common = table.loc["mutual"].index[table.loc["mutual", "substitution"].notna()]
    parts = [table.loc[name].loc[common] for name in ("mutual", "matched")]
    values = [part["substitution"].sum() / part["ablated"].sum() for part in parts]
    assert found.difference("substitution", "mutual", "matched").value == pytest.approx(values[0] - values[1])


def test_jobs_that_share_saes_share_the_draws(tmp_path: Path) -> None:
    """The same measurement twice is no more certain than once; other SAEs are."""
    few = {name: MATCHERS[name] for name in ("matched", "cosine")}
    write_job(tmp_path / "one" / "0", few)
    for name, kind in {"twice": "tiny", "other": "large"}.items():
        write_job(tmp_path / name / "0", few)
        write_job(tmp_path / name / "1", few, config={"sae": {"name": kind}})
    one, twice, other = (
        scores(tmp_path / name).estimate("substitution", "cosine") for name in ("one", "twice", "other")
    )
    assert tuple(twice) == pytest.approx(tuple(one))
    assert other.value == pytest.approx(one.value)
    assert other.high - other.low < 0.85 * (one.high - one.low)


def test_the_jobs_own_matching_by_role_and_description(tmp_path: Path) -> None:
    write_job(tmp_path / "0", roles=("adjacent", "seeds"))
    frame = leaderboard(tmp_path, samples=100)
    seeds = frame[frame["role"] == "seeds"]
    assert "matched" in set(seeds["variant"]) and set(seeds["main"]) == {"substitution"}
    assert seeds["deactivation"].isna().all() and seeds["coverage"].notna().all()
    few = {"matched": MATCHERS["matched"], "cosine": MATCHERS["cosine"]}
    described = ("paper's weights", "both", "none", "certified")
    write_job(tmp_path / "1", few | {"matched": MATCHERS["matched"]._replace(parts=described)})
    names = leaderboard(tmp_path, samples=10)["matcher"]
    assert {name for name in names if name.endswith("(matched)")} == {
        "paper's weights, folded: both, folded, certified (matched)",
        "paper's weights: both, certified (matched)",
    }


def test_similarity_and_assignment(tmp_path: Path) -> None:
    write_job(tmp_path / "0", n=400)
    tests = read_tests(find_records([tmp_path]))
    assert tests is not None
    board = Leaderboard(tests)
    found = board.decomposition.set_index("variant")
    assert found.index.tolist() == ["matched", "greedy", "mutual", "cosine", "cosine_nearest"]
    assert found["objective_loss"].tolist() == pytest.approx([0, 5, np.nan, 0, -2], nan_ok=True)
    greedy = found.loc["greedy"]
    assert greedy["deactivation_difference_low"] < -0.05 < greedy["deactivation_difference_high"] < 0
    assert np.isnan(found.loc["matched", "deactivation_difference"])
    mutual = found.loc["mutual"]  # the pairs it has are as good; those that it lacks count 0
    assert mutual["substitution_difference_low"] < 0 < mutual["substitution_difference_high"]
    assert mutual["deactivation_difference"] == pytest.approx(-0.2, abs=0.03)
    similar = tests.numbers[tests.numbers["metric"] == "objective"].assign(metric="mean_similarity")
    similar["value"] = similar["matcher"].map({"cosine": 0.8, "cosine_nearest": 0.6})
    numbers = pd.concat([tests.numbers, similar.dropna()], ignore_index=True)
    with_similarity = Leaderboard(replace(tests, numbers=numbers)).decomposition.set_index("variant")
    assert with_similarity.loc["cosine_nearest", "objective_loss"] == pytest.approx(25)


def test_spearman_with_ties_and_without_variation() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 300).astype(float)
    rows = pd.DataFrame({"x": x, "y": x + rng.normal(0, 2, 300), "z": 1.0, "cluster": range(300), "stratum": 0})
    found = spearman(rows, "x", "y", 400)
    assert found.value == pytest.approx(rows["x"].corr(rows["y"], method="spearman"))
    again = [rows.iloc[rng.integers(300, size=300)] for _ in range(400)]
    ends = np.quantile([part["x"].corr(part["y"], method="spearman") for part in again], (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=0.02)
    assert np.isnan(spearman(rows, "x", "z", 10)).all()


@pytest.mark.figures
def test_the_report(tmp_path: Path) -> None:
    label = "a | <b>\u202ename</b> of $x$ and $y$"
    few = {name: MATCHERS[name] for name in ("matched", "greedy", "random_partner")}
    few["cosine"] = MATCHERS["cosine"]._replace(parts=(label, "decoder_cosine", "none", "certified"))
    write_job(tmp_path / "jobs" / "0", few, ("adjacent", "seeds"), 40)
    jobs = find_records([tmp_path / "jobs"])
    only = ["leaderboard", "quality_curve", "geometry"]
    texts = [
        write_report(jobs, tmp_path / folder, Options(figures=bool(names), only=names, formats=()))
        for folder, names in {"a": only, "b": only[:1], "c": []}.items()
    ]
    assert texts[0].startswith(texts[2]) and "## Which matcher finds the feature that does the same?" in texts[2]
    drawn = {path.name for path in (tmp_path / "a").glob("*.png")}
    assert drawn == {f"{name}_{role}.png" for name in only for role in ("adjacent", "seeds")} - {"geometry_seeds.png"}
    again = list((tmp_path / "b").glob("*.png"))
    assert len(again) == 2 and all(path.read_bytes() == (tmp_path / "a" / path.name).read_bytes() for path in again)
    frame = pd.read_csv(tmp_path / "a" / "leaderboard.csv")
    assert frame["rank"].notna().sum() == 2 * 3 and set(frame["main"]) == {"deactivation", "substitution"}
    assert len(pd.read_csv(tmp_path / "a" / "decomposition.csv")) == 2 * 3
    page = (tmp_path / "a" / "report.html").read_text()
    assert all(f'id="{name}-table"' in page for name in ("leaderboard", "decomposition"))
    assert "<b>" not in page and "\u202e" not in page


def test_jobs_without_functional_tests(tmp_path: Path, sweep: Path) -> None:
    assert "Which matcher" not in write_report(find_records([sweep]), tmp_path / "report", Options(figures=False))
    with pytest.raises(UserError, match="no finished job holds functional tests"):
        leaderboard(sweep)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("functional.parquet", b"PAR1"),
        ("matchers.json", b'{"matched": {"label": "x"}}'),
        ("matchers.json", b'["matched"]'),
        ("matchers.json", json.dumps({"matched": {"label": "x" * 2**22}}).encode()),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes) -> None:
    write_job(tmp_path / "0", n=8)
    (tmp_path / "0" / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        leaderboard(tmp_path)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path / "0", n=8).drop(columns="partner").to_parquet(tmp_path / "0" / "functional.parquet")
    with pytest.raises(UserError, match="partner"):
        leaderboard(tmp_path)
