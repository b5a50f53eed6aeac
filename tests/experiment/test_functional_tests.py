"""Functional tests as a step of a job: rows, tables, what is stored, and what does not depend on what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae_match.errors import UserError
from sae_match.experiment import functional, run
from sae_match.saes.formats.native import save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.tiny_setting import D_MODEL

Configured = Callable[..., Study]
TESTS = [
    "evaluation/functional=all", "evaluation.functional.features=8", "evaluation.functional.contexts=2",
    "evaluation.functional.context_tokens=10", "evaluation.functional.checked=4",
]  # fmt: skip
ONE_PAIR = ["layers.first=0", "layers.last=1"]


def effects(directory: Path) -> pd.DataFrame:
    return pd.read_parquet(directory / "functional.parquet")


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the effects that are computed, one for each call."""
    calls: list[str] = []
    for name in ("deactivate", "substitute", "fingerprints", "ablation_check"):
        own = getattr(functional, name)

        def counted(*arguments: object, name: str = name, own: Callable[..., object] = own) -> object:
            calls.append(name)
            return own(*arguments)

        monkeypatch.setattr(functional, name, counted)
    return calls


def test_every_matcher_of_every_pair_is_tested(configured: Configured, random_saes: Path) -> None:
    result = run(
        configured(
            random_saes, *TESTS, "layers.last=2", "evaluation/controls=[random,nearest]", "composition.max_distance=2"
        )
    )
    table, pairs = effects(result.directory), result.pairs
    variants = table.groupby(["layer", "layer_to"])["variant"].unique()
    partners = {"random_partner", "coactive_partner", "hard_negative"}
    adjacent = {"matched", "random", "nearest", *partners, "most_affected"}
    assert set(variants[0, 1]) == set(variants[1, 2]) == adjacent
    assert set(variants[0, 2]) == {"composed", "exact", "random", *partners, "most_affected"}
    assert set(variants[1, 1]) == {"ceiling", "random", "nearest", *partners}
    assert set(table["role"]) == {"adjacent", "distant", "seeds"}
    per_variant = table.groupby(["layer", "layer_to", "variant"]).size()
    assert per_variant.nunique() == 1 and 1 <= per_variant.iloc[0] <= 8
    # The averages are those of the table.
    # Neither drawn control is the partner itself.
    wide = table.pivot_table(index=["layer", "layer_to", "feature"], columns="variant", values="partner")
    for control in ("coactive_partner", "hard_negative"):
        assert (wide[control] != wide["matched"].fillna(wide["exact"]).fillna(wide["ceiling"]))[
            wide[control] >= 0
        ].all()
    value = pairs.set_index(["layer", "layer_to", "variant", "metric"])["value"]
    for (layer, layer_to, variant), rows in table.groupby(["layer", "layer_to", "variant"]):
        at = layer, layer_to, variant
        removed, replaced = rows["kl_ablated"].sum(), rows["kl_substituted"].sum()
        if removed > 0:
            np.testing.assert_allclose(value[*at, "substitution"], 1 - replaced / removed)
        np.testing.assert_allclose(value[*at, "fingerprint"], rows["fingerprint"].mean())
        if layer != layer_to:
            np.testing.assert_allclose(value[*at, "deactivation"], rows["drop"].mean())
            np.testing.assert_allclose(value[*at, "deactivation_top1"], (rows["rank"] == 1).mean())
        else:
            assert rows["drop"].isna().all()
    assert value[0, 1, "matched", "coverage"] == 1
    of_neighbors = [value[*at, "random", "deactivation"] for at in ((0, 1), (1, 2))]
    assert result.metrics["deactivation/random"] == pytest.approx(np.mean(of_neighbors))
    of_neighbors = [value[*at, "random", "matching_score"] for at in ((0, 1), (1, 2))]
    assert result.metrics["matching_score/random"] == pytest.approx(np.mean(of_neighbors)), "not that of two seeds"
    matchers = json.loads((result.directory / "matchers.json").read_text(encoding="utf-8"))
    assert matchers["nearest"]["assignment"] == "nearest" and matchers["matched"]["assignment"] == "certified"
    own = table[(table["variant"] == "matched") & (table["layer"] == 0)]
    features = result.features[result.features["layer"] == 0].set_index("feature")
    np.testing.assert_allclose(features.loc[own["feature"], "drop"], own["drop"])
    assert features["drop"].notna().sum() == len(own)


def test_effects_are_computed_once_and_shared(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(monkeypatch)
    job = [*TESTS, *ONE_PAIR]
    first = run(configured(random_saes, *job, "evaluation/controls=[random]", output="first"))
    once = len(calls)
    again = run(configured(random_saes, *job, "evaluation/controls=[random]", output="again"))
    assert len(calls) == once > 0
    pd.testing.assert_frame_equal(effects(first.directory), effects(again.directory))
    calls.clear()
    more = run(configured(random_saes, *job, "evaluation/controls=[random,nearest]", output="more"))
    assert set(calls) <= {"substitute"}, "only what the new partners need"
    ours, theirs = (
        table[table["variant"] == "matched"].reset_index(drop=True)
        for table in (effects(first.directory), effects(more.directory))
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3)
    calls.clear()
    run(configured(random_saes, *job, "evaluation/controls=[random]", "rerun=all", output="all"))
    assert len(calls) == once


def test_one_test_alone(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, *TESTS, *ONE_PAIR, "evaluation.functional.tests=[fingerprint]"))
    table = effects(result.directory)
    assert "fingerprint" in table and not {"drop", "kl_ablated"} & set(table)
    assert not result.pairs["metric"].isin(["deactivation", "substitution", "ausqc"]).any()


def test_functional_tests_need_the_model(configured: Configured, random_saes: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.functional runs the model, and needs evaluation=full"):
        configured(random_saes, *TESTS, "evaluation=weights_only")


def test_contexts_of_sink_positions_alone_are_refused(configured: Configured, random_saes: Path) -> None:
    with pytest.raises(UserError, match=r"context_tokens=2: must be more than model\.sink_positions=2"):
        run(configured(random_saes, *TESTS, "evaluation.functional.context_tokens=2", "model.sink_positions=2"))


def test_features_that_never_fire_are_no_crash(
    configured: Configured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for layer in (0, 1):
        sae = random_sae(width=24, d=D_MODEL, seed=layer)
        quiet = sae.replace(threshold=torch.full_like(sae.threshold, 1e6)) if layer == 0 else sae
        save_native(quiet, tmp_path / "quiet" / f"layer_{layer:02d}.safetensors")
    result = run(configured(tmp_path / "quiet", *TESTS, *ONE_PAIR, "sae.ceiling_filename=null"))
    assert not (result.directory / "functional.parquet").exists()
    assert "no feature fires in any context" in caplog.text


def test_ranks_by_lost_activation() -> None:
    removed = {
        "columns": np.array([2, 5, 7]),
        "clean": np.array([[4.0, 1.0, 1.0]]),
        "ablated": np.array([[1.0, 0.0, 2.0]]),
    }
    ranks = [functional._rank(removed, partner, 10) for partner in (2, 5, 0, 7, -1)]
    # Lost: 3, 1, -1, and 0 for the other seven, which share the last of their places.
    assert ranks == [1, 2, 9, 10, 0]
    nothing = {"columns": np.zeros(0, int), "clean": np.zeros((1, 0)), "ablated": np.zeros((1, 0))}
    assert functional._rank(nothing, 3, 10) == 10 and functional._most_affected(nothing) == -1


def test_half_precision_is_warned_of(
    configured: Configured, random_saes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(configured(random_saes, *TESTS, *ONE_PAIR, "model.dtype=bfloat16", "sae.ceiling_filename=null"))
    status = json.loads((result.directory / "status.json").read_text(encoding="utf-8"))
    (warning,) = [one for one in status["warnings"] if "computes" in one]
    assert "the model computes in bfloat16" in warning and "model.dtype=float32" in warning


def test_the_same_test_twice_is_refused(configured: Configured, random_saes: Path) -> None:
    with pytest.raises(UserError, match="name each test once"):
        configured(random_saes, *TESTS, "evaluation.functional.tests=[fingerprint,fingerprint]")
