"""The saved W&B view: its specification, and that a server on loopback gets it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from sae_match.errors import UserError
from sae_match.record import JobRecord
from sae_match.record.configuration import COLUMN_PATHS
from sae_match.report.cli import main
from sae_match.tracking.workspace import make_view
from tests.record.wandb_server import run_python, wandb_server
from tests.report.conftest import job_table


def section_of(*varied: str) -> dict[str, Any]:
    """The view's specification as JSON."""
    pytest.importorskip("wandb_workspaces")
    model = make_view("team/sae-match", varied)._to_model()
    assert (model.entity, model.project, model.display_name) == ("team", "sae-match", "SAE Match")
    content: dict[str, Any] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return content["section"]


def panels(section: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The panels of a section of the view."""
    (found,) = [each for each in section["panelBankConfig"]["sections"] if each["name"] == name]
    return list(found["panels"])


def test_the_runs_table_is_pinned_sorted_and_of_matchings() -> None:
    (runs,) = section_of("folding", "metric", "matching.weights.W_enc", "sae_l0")["runSets"]
    pinned = runs["runFeed"]["columnOrder"]
    assert pinned[:6] == ["run:displayName", "run:group", "run:state", "config:metric.value", "config:folding.value",
                          "config:sae_l0.value"]  # fmt: skip
    assert pinned[6:8] == ["summary:matching_score", "summary:matching_score/random"]
    assert set(runs["runFeed"]["columnPinned"]) == set(pinned)
    (order,) = runs["sort"]["keys"]
    assert (order["key"], order["ascending"]) == ({"section": "summary", "name": "matching_score"}, False)
    (kept,) = runs["filters"]["filters"]
    assert (kept["key"]["name"], kept["op"], kept["value"]) == ("jobType", "=", "match")


def test_curves_have_their_own_axis() -> None:
    section = section_of()
    for name, axis, prefix in (("Per layer", "layer", "per_layer/"), ("Quantiles", "quantile", "by_quantile/")):
        for panel in panels(section, name):
            assert panel["config"]["xAxis"] == axis and all(y.startswith(prefix) for y in panel["config"]["metrics"])
    assert {panel["config"].get("xAxis") for panel in panels(section, "Composition")} == {"distance", None}
    bars = panels(section_of("metric"), "Comparison")[0]["config"]
    assert (bars["metrics"], bars["groupBy"]) == (["matching_score"], "metric.value")


def test_every_name_is_one_that_the_page_has(repository: Path) -> None:
    """Another test holds the names of that page to what jobs log."""
    page = (repository / "multirun" / "WANDB.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`([A-Za-z_0-9./]+)`", page))
    section = section_of()
    columns = {name.split(":", 1)[1].removesuffix(".value") for name in section["runSets"][0]["runFeed"]["columnOrder"]}
    named = columns - {"displayName", "group", "state"}
    for each in section["panelBankConfig"]["sections"]:
        for panel in each["panels"]:
            config = panel["config"]
            named |= {*config.get("metrics", []), *config.get("mediaKeys", [])}
            named |= {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config}
    assert len(named) > 40 and named - known == set()
    shown = json.dumps(panels(section, "Comparison"))
    assert all(f'"val": "{table}"' in shown for table in ("comparison", "example_pairs", "labels"))


def test_the_command_saves_the_view(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    for folding in ("theta", "none"):
        record = JobRecord(tmp_path / "sweep" / folding)
        record.write_config(yaml.safe_dump({"folding": {"name": folding}, "matching": {"metric": "both"}}))
        with record.guard():
            record.write_metrics({"matching_score": 0.5})
            record.write_pairs(job_table())
    with wandb_server() as server:
        command = ["-m", "sae_match.report.cli", "--wandb-workspace", "tester/mine"]
        done = run_python(server, tmp_path, *command, str(tmp_path / "sweep"), "--no-figures")
        assert done.returncode == 0, done.stderr
    (saved,) = server.views
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("tester", "mine", "SAE Match")
    assert "/tester/mine?nw=" in done.stderr and (tmp_path / "sweep" / "report" / "report.html").is_file()
    order = json.loads(saved["spec"])["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert [name for name in order if name.startswith("config:")] == ["config:folding.value"]


@pytest.mark.parametrize("trouble", [wandb.errors.CommError("HTTP 404"), wandb.errors.UsageError("no API key")])
def test_what_wandb_refuses_is_the_users_to_mend(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")

    def refuses(_: object) -> None:
        raise trouble

    monkeypatch.setattr(workspaces.Workspace, "save", refuses)
    assert main(["--wandb-workspace", "tester/mine"]) == 2
    assert f"--wandb-workspace tester/mine: W&B did not save the view: {trouble}. It" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["mine", "a/b/c", "/b", "a/", "a b/c"])
def test_a_place_is_an_entity_and_a_project(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--wandb-workspace", place]) == 2
    assert "expected ENTITY/PROJECT" in capsys.readouterr().err


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'sae-match\[workspace\]'"):
        make_view("a/b")


def test_neither_jobs_nor_a_view_is_a_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "directory of a job or of a sweep" in capsys.readouterr().err


def test_all_settings_of_the_view_are_columns() -> None:
    (runs,) = section_of(*COLUMN_PATHS)["runSets"]
    assert sum(name.startswith("config:") for name in runs["runFeed"]["columnOrder"]) == len(COLUMN_PATHS)
