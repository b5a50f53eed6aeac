"""What an SAE does not do on its layer is warned of before the matching, wherever a job's warnings are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match.experiment import run
from sae_match.report import find_records
from sae_match.report.report import Options, make_report, report_text
from sae_match.study import Study
from tests.wandb_reader import inspect


def test_saes_that_explain_nothing(
    configured: Callable[..., Study], random_saes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = run(configured(random_saes, "layers.last=2", "sae.ceiling_filename=null", "tracking=wandb_offline"))
    warnings = json.loads((result.directory / "status.json").read_text())["warnings"]
    assert [text.partition(" has an R² of ")[0] for text in warnings] == [f"layer {i}: the SAE" for i in range(3)]
    assert all("Likely cause: " in text for text in warnings)
    said = [record.getMessage() for record in caplog.records]
    matched = said.index(next(text for text in said if text.startswith("layers 0 -> 1: objective")))
    assert all(said.index(text) < matched for text in warnings[:1])
    assert all(text in said for text in warnings)
    report = report_text(make_report(find_records([result.directory]), Options()))
    assert all(f"Warning of out: {text}" in report for text in warnings)
    assert inspect(result.directory)["run"][-1]["notes"] == "\n".join(warnings)


def test_perfect_saes_give_no_warning(configured: Callable[..., Study], perfect_saes: Path) -> None:
    result = run(configured(perfect_saes, "layers.last=2", "sae.ceiling_filename=null"))
    assert json.loads((result.directory / "status.json").read_text())["warnings"] == []
