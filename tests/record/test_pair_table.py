"""The per-pair table: contract, precision, the view by layer; the factors of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_match.record import PAIR_COLUMNS, JobRecord, factors_of, flat_config, layer_rows, read_pairs
from sae_match.record.configuration import COLUMN_PATHS
from sae_match.record.pairs import write_pairs


def test_rows_are_sorted_and_columns_in_order(tmp_path: Path, pairs: pd.DataFrame) -> None:
    JobRecord(tmp_path).write_pairs(pairs[pairs.columns[::-1]])
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert lines[0] == ",".join(PAIR_COLUMNS)
    assert lines[1] == "11,11,ceiling,matching_score,0.5,,,"
    assert [line.split(",")[:3] for line in lines[2:]] == [
        ["11", "12", "matched"],
        ["11", "12", "random"],
        ["12", "13", "matched"],
        ["12", "13", "random"],
    ]


def test_variants_sort_before_metrics(tmp_path: Path, pairs: pd.DataFrame) -> None:
    write_pairs(tmp_path / "a.csv", pd.concat([pairs, pairs.assign(metric="l0")]))
    first = read_pairs(tmp_path / "a.csv").query("layer == 12")
    assert list(first["variant"]) == ["matched", "matched", "random", "random"]


def test_row_order_does_not_change_the_file(tmp_path: Path, pairs: pd.DataFrame) -> None:
    write_pairs(tmp_path / "a.csv", pairs)
    write_pairs(tmp_path / "b.csv", pairs.sample(frac=1, random_state=1))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@settings(max_examples=40, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False), low=st.none() | st.floats(-1, 1))
def test_numbers_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, value: float, low: float | None
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    row = {"layer": 0, "layer_to": 1, "variant": "none", "metric": "null", "value": value, "low": low}
    write_pairs(path, pd.DataFrame([row]))
    back = read_pairs(path).iloc[0]
    assert back["value"].hex() == np.float64(value).hex()
    assert np.isnan(back["low"]) if low is None else back["low"] == low
    assert (back["variant"], back["metric"]) == ("none", "null")


def test_a_value_that_is_no_number_is_named_and_the_file_is_there(tmp_path: Path, pairs: pd.DataFrame) -> None:
    pairs.loc[pairs["variant"] == "random", "value"] = np.nan
    with pytest.raises(ValueError, match="matching_score/random at 12->13"):
        JobRecord(tmp_path).write_pairs(pairs)
    assert read_pairs(tmp_path / "pairs.csv")["value"].notna().sum() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="value"), "missing columns.*value"),
        (lambda t: t.assign(lo=1), "unknown columns.*lo"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "given twice"),
        (lambda t: t.assign(high=np.inf), "infinite"),
        (lambda t: t.assign(variant=None), "every row"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused(
    tmp_path: Path, pairs: pd.DataFrame, change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        JobRecord(tmp_path).write_pairs(change(pairs))
    assert not (tmp_path / "pairs.csv").exists()


def test_layer_rows_hold_adjacent_pairs_and_the_ceiling(pairs: pd.DataFrame) -> None:
    far = pd.DataFrame([{"layer": 11, "layer_to": 14, "variant": "composed", "metric": "matching_score", "value": 0.2}])
    # Another matcher of two seeds does not take the place of that matcher's row of the adjacent pair.
    seeds = pd.DataFrame([{"layer": 11, "layer_to": 11, "variant": "random", "metric": "matching_score", "value": 0.9}])
    first, second = layer_rows(pd.concat([pairs, far, seeds]))
    assert first == {
        "layer": 11,
        "matching_score/ceiling": 0.5,
        "matching_score/matched": 2 / 7,
        "matching_score/matched_low": 2 / 7 - 0.1,
        "matching_score/matched_high": 2 / 7 + 0.1,
        "matching_score/random": 0.03,
        "matching_score/random_low": 0.03 - 0.1,
        "matching_score/random_high": 0.03 + 0.1,
    }
    assert second["layer"] == 12 and "matching_score/ceiling" not in second


def test_factors_stand_at_the_top_of_the_flat_configuration(config: dict[str, Any]) -> None:
    flat = flat_config(config)
    assert factors_of(config) == {
        "metric": "both",
        "folding": "theta",
        "include_bias": True,
        "splice_units": "as_folding",
        "solver": "dense",
        "sae": "tiny",
        "model": "toy",
        "dataset": "wiki",
        "layers_first": 11,
        "layers_last": 13,
        "evaluation": "full",
        "seed": 0,
    }
    assert flat["folding"] == flat["folding.name"] == "theta"
    assert (
        flat["matching.weights.W_enc"] == 1.0
        and flat["tracking.tags"] == []
        and flat["solver.memory_limit_gib"] is None
    )
    assert not any(isinstance(value, dict) for value in flat.values())


def test_whatever_an_experiment_sweeps_is_a_column(repository: Path) -> None:
    paths = {*COLUMN_PATHS.values(), "layers.pair"}  # short for layers.first and layers.last, which are columns
    files = sorted((repository / "conf" / "experiment").glob("*.yaml"))
    assert len(files) > 5
    for file in files:
        hydra = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("hydra", {})
        for key in hydra.get("sweeper", {}).get("params", {}):
            assert key in paths or any(path.startswith(f"{key}.") for path in paths), f"{file.name}: {key}"


def test_lists_are_columns_as_text(config: dict[str, Any]) -> None:
    given = {**config, "evaluation": {**config["evaluation"], "quantiles": [0.1, 0.5]}}
    assert flat_config(given)["quantiles"] == "0.1, 0.5" and flat_config(given)["evaluation.quantiles"] == [0.1, 0.5]


def test_a_key_that_a_factor_would_hide_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metric"):
        flat_config({**config, "metric": "something else"})
    with pytest.raises(ValueError, match="collide"):
        flat_config({"a.b": 1, "a": {"b": 2}})
