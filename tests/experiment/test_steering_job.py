"""Interventions along flows as a step of a job: rows, tables, continuations, and the report on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_match.errors import UserError
from sae_match.experiment import run
from sae_match.experiment.headline import summary_lines
from sae_match.plan.show import render
from sae_match.report.cli import main
from sae_match.saes.formats.native import save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.tiny_setting import D_MODEL, planned

Configured = Callable[..., Study]
STEER = ["evaluation/steering=flows", "evaluation.steering.flows=6", "evaluation.steering.scales=[0,2]"]
KEYS = ["flow", "kind", "scale", "layer"]


@pytest.mark.drawn
def test_every_layer_and_scale_of_flows_and_random_flows(
    configured: Configured, random_saes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = configured(random_saes, *STEER)
    assert "interventions along flows" in render(planned(study))
    result = run(study)
    table = pd.read_parquet(result.directory / "steering.parquet")
    n = table["flow"].nunique()
    assert 4 <= n <= 6 and len(table) == n * 2 * 2 * 5 and not table.duplicated(KEYS).any()
    assert set(table["quartile"]) == {1, 2, 3, 4}
    # A flow is the chain of matched partners, and its random one has other features of the same layers.
    steps = {(row.layer, row.feature): row.partner for row in result.features.itertuples()}
    whole = table[table["layer"].isna() & (table["scale"] == 0)].set_index(["flow", "kind"])["features"]
    for flow in set(table["flow"]):
        chain = [flow]
        for layer in range(3):
            chain.append(steps[layer, chain[-1]])
        assert whole[flow, "flow"] == " ".join(f"{layer}/{feature}" for layer, feature in enumerate(chain))
        others = whole[flow, "random"].split()
        assert [one.split("/")[0] for one in others] == list("0123") and not {*others} & {*whole[flow, "flow"].split()}
    # The averages are those of the table.
    value = result.pairs.set_index(["metric", "variant", "layer"])["value"]
    for (kind, scale), rows in table.groupby(["kind", "scale"]):
        at, kl = f"{kind}_x{scale:g}", rows.set_index(["layer", "flow"])["kl"]
        every = rows[rows["layer"].isna()]["kl"].mean()
        assert value["steering/kl_all", at, 0] == pytest.approx(every)
        assert value["steering/kl", at, 2] == pytest.approx(kl.loc[2].mean())
        assert value["steering/all_over_first", at, 0] == pytest.approx(every / kl.loc[0].mean())
        assert value["steering/all_over_sum", at, 0] == pytest.approx(
            every * n / rows["kl"][rows["layer"].notna()].sum()
        )
        assert value["steering/later", at, 1] == pytest.approx(rows.loc[rows["layer"] == 1, "later"].mean())
    whole = table[table["layer"].isna()].groupby(["scale", "kind"])["kl"].mean()
    assert result.metrics["steering/flow_over_random/flow_x2"] == pytest.approx(whole[2, "flow"] / whole[2, "random"])
    assert "steering/kl_all/flow_x0_low" in result.metrics
    examples = json.loads((result.directory / "steering_examples.json").read_text(encoding="utf-8"))
    assert [one["scale"] for one in examples] == [0] * 3 + [2] * 3
    top = table[table["layer"].isna() & (table["kind"] == "flow") & (table["scale"] == 2)]["kl"].max()
    assert examples[3]["kl"] == pytest.approx(top)
    assert {len(text.split()) for one in examples for text in one["continuations"].values()} == {8}
    assert (result.directory / "figures" / "steering.png").is_file()
    main([str(result.directory), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Interventions along flows" in text and examples[0]["prompt"].split()[-1] in text
    frame = pd.read_csv(tmp_path / "report" / "steering.csv")
    row = frame[(frame["metric"] == "all_over_sum") & (frame["kind"] == "flow") & (frame["scale"] == 0)].iloc[0]
    assert row["value"] == pytest.approx(value["steering/all_over_sum", "flow_x0", 0]) and row["low"] < row["high"]
    assert (tmp_path / "report" / "steering.png").is_file()


def test_the_same_job_gives_the_same_numbers_and_reaches_the_tracker(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = [*STEER, "evaluation.steering.flows=4", "layers.last=1"]
    first = run(configured(random_saes, *job, output="first"))
    with caplog.at_level(logging.WARNING):
        again = run(configured(random_saes, *job, "tracking=wandb_offline", output="again"))
    tables = [pd.read_parquet(one.directory / "steering.parquet") for one in (first, again)]
    pd.testing.assert_frame_equal(*tables)
    assert "incomplete" not in caplog.text
    assert again.labels.is_main("steering/kl_all/flow_x0") and not again.labels.is_main("steering/kl_all/flow_x0_low")
    (line,) = [one for one in summary_lines(again.metrics, again.labels) if "sum of single layers" in one]
    assert f"random_x0 {again.metrics['steering/all_over_sum/random_x0']:.4g}" in line


def test_what_never_fires_is_warned_of(configured: Configured, tmp_path: Path) -> None:
    for layer in (0, 1):
        sae = random_sae(width=24, d=D_MODEL, seed=layer)
        quiet = sae.replace(threshold=torch.full_like(sae.threshold, 1e6))
        save_native(quiet, tmp_path / "quiet" / f"layer_{layer:02d}.safetensors")
    result = run(configured(tmp_path / "quiet", *STEER, "layers.last=1", "sae.ceiling_filename=null"))
    assert not (result.directory / "steering.parquet").exists()
    warnings = json.loads((result.directory / "status.json").read_text(encoding="utf-8"))["warnings"]
    assert "no feature of layer 0 begins a flow and fires in enough contexts" in warnings


def test_a_partner_that_never_fires_changes_nothing(configured: Configured, tmp_path: Path) -> None:
    for layer in (0, 1):
        sae = random_sae(width=24, d=D_MODEL, seed=layer)
        loud = sae.replace(threshold=torch.full_like(sae.threshold, 1e6)) if layer == 1 else sae
        save_native(loud, tmp_path / "half" / f"layer_{layer:02d}.safetensors")
    result = run(configured(tmp_path / "half", *STEER, "layers.last=1", "sae.ceiling_filename=null"))
    table = pd.read_parquet(result.directory / "steering.parquet")
    kl = table.set_index(["layer", "flow", "kind", "scale"])["kl"]
    assert kl.loc[1].max() < 1e-9 < kl.loc[0].min()
    assert result.metrics["steering/all_over_first/flow_x0"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation=weights_only", "evaluation.steering runs the model, and needs evaluation=full"),
        ("evaluation.steering.scales=[2,2]", "name each scale once"),
        ("evaluation.steering.scales=[-1]", "scales"),
    ],
)
def test_what_cannot_be_steered_is_refused(
    configured: Configured, random_saes: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        configured(random_saes, *STEER, override)
