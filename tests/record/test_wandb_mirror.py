"""The W&B mirror: what an offline run holds, read back with W&B's own inspector, equals the record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from matplotlib.figure import Figure

from sae_match.errors import UserError
from sae_match.matching import Permutation
from sae_match.record import JobRecord, flat_config, layer_rows
from sae_match.record.labels import BUILT_IN_LABELS
from sae_match.record.pairs import read_pairs, tidy_pairs
from sae_match.store import Store
from sae_match.tracking import Tracking, TrackingMode
from sae_match.tracking.wandb_mirror import WandbMirror, checked_tags, open_mirror
from tests.wandb_reader import inspect

METRICS = ("both", "decoder", "encoder")
PROVENANCE = {"layer_a": 11, "layer_b": 12, "sae_a": "aa11", "sae_b": "bb12"}
SUMMARY = {
    "matching_score": 1 / 3,
    "matching_score_low": 0.25,
    "pairs_matched": 2,
}


EXAMPLES = pd.DataFrame(
    {"kind": ["best"], "feature": [1], "active": [float("nan")], "decoder_cosine": [0.5], "contexts": ["NA «x»"]}
)


def log_job(record: JobRecord, config: dict[str, Any], pairs: pd.DataFrame, cache: Path) -> None:
    record.write_pairs(pairs)
    record.write_metrics({**SUMMARY, "not_measured": None})
    Permutation(torch.arange(3), 3, PROVENANCE).save(record.permutation_path(11, 12))
    Figure().savefig(record.figure_path("overview"))
    with WandbMirror(
        record.directory, mode="offline", config=config, cache_dir=cache, group="sweep-1", tags=["demo"]
    ) as mirror:
        mirror.log_curves("layer", layer_rows(pairs))
        mirror.log_table("pairs", tidy_pairs(pairs))
        mirror.log_comparison(SUMMARY)
        mirror.log_table("example_pairs", EXAMPLES)
        mirror.log_labels(BUILT_IN_LABELS.only(pairs["metric"], pairs["variant"]))
        mirror.log_histograms({"mse/11_to_12": np.arange(128.0)})
        mirror.log_figures([record.figure_path("overview")])
        mirror.log_permutations(record.permutations)
        mirror.summary({**SUMMARY, "not_measured": None})


def test_three_jobs_in_one_process_are_three_runs_that_equal_their_records(
    tmp_path: Path, config: dict[str, Any], pairs: pd.DataFrame, capfd: pytest.CaptureFixture[str]
) -> None:
    configs = [{**config, "matching": {**config["matching"], "metric": metric}} for metric in METRICS]
    shifted = [pairs.assign(value=pairs["value"] + 0.01 * job) for job in range(3)]
    for job in range(3):
        log_job(JobRecord(tmp_path / str(job)), configs[job], shifted[job], tmp_path / "cache")
    assert capfd.readouterr() == ("", "")

    runs = [inspect(tmp_path / str(job)) for job in range(3)]
    assert len({run["run"][0]["run_id"] for run in runs}) == 3
    for job, run in enumerate(runs):
        check_identity(run, configs[job])
        check_history(run, shifted[job])
        check_content(run, tmp_path / str(job), shifted[job])


def check_identity(run: dict[str, list[Any]], config: dict[str, Any]) -> None:
    (header,) = run["run"]
    assert header["run_group"] == "sweep-1" and header["job_type"] == "match" and header["tags"] == ["demo"]
    stored = {key: value for key, value in header["config"]["update"].items() if key != "_wandb"}
    assert stored == flat_config(config)
    assert [entry["exit_code"] for entry in run["exit"]] == [0]
    by_layer = {entry.get("name", entry.get("glob_name")): entry.get("step_metric") for entry in run["metric"]}
    assert by_layer == {
        "layer": None,
        "distance": None,
        "quantile": None,
        "per_layer/*": "layer",
        "by_distance/*": "distance",
        "by_quantile/*": "quantile",
    }
    # Neither last nor smallest nor largest values of curves pass for headline numbers.
    assert all(entry.get("summary") == {"none": True} for entry in run["metric"])


def check_history(run: dict[str, list[Any]], pairs: pd.DataFrame) -> None:
    steps = [entry["item"] for entry in run["history"]]
    logged = [{k: v for k, v in step.items() if not k.startswith("_")} for step in steps if "layer" in step]
    expected = [
        {key if key == "layer" else f"per_layer/{key}": value for key, value in row.items()}
        for row in layer_rows(pairs)
    ]
    assert logged == expected
    histogram = next(step for step in steps if "histograms/mse/11_to_12._type" in step)
    assert histogram["histograms/mse/11_to_12.bins"] == pytest.approx(np.linspace(0, 127, 65))
    assert histogram["histograms/mse/11_to_12.values"] == [2] * 64


def check_content(run: dict[str, list[Any]], job: Path, pairs: pd.DataFrame) -> None:
    summary: dict[str, Any] = {}
    for entry in run["summary"]:
        summary |= entry.get("update", {})
    numbers = {
        key: value
        for key, value in summary.items()
        if not key.startswith(("_", "pairs.", "comparison.", "example_pairs.", "labels.", "histograms/", "figures/"))
    }
    record = json.loads((job / "metrics.json").read_text())
    assert numbers == {key: value for key, value in record.items() if value is not None} == SUMMARY

    files = next(iter(job.glob("wandb/offline-run-*/files")))
    table = json.loads((files / summary["pairs.path"]).read_text())
    stored = pd.DataFrame(table["data"], columns=table["columns"]).astype({"n": "Int64"})
    written = read_pairs(job / "pairs.csv")
    pd.testing.assert_frame_equal(stored, written, check_exact=True, check_dtype=False)

    assert (files / summary["figures/overview.path"]).read_bytes() == (job / "figures" / "overview.png").read_bytes()
    artifact = next(entry for entry in run["artifact"] if entry["type"] == "permutations")
    assert artifact["name"] == f"permutations-{run['run'][0]['run_id']}"
    (content,) = artifact["manifest"]["contents"]
    assert content["path"] == "layer_11_to_12.safetensors"
    # `wandb sync` reads the staged copy: it must lie with the job, not in a cache.
    assert Path(content["local_path"]).is_relative_to(job)
    assert (
        Path(content["local_path"]).read_bytes() == (job / "permutations" / "layer_11_to_12.safetensors").read_bytes()
    )

    shown = json.loads((files / summary["example_pairs.path"]).read_text())
    assert shown["columns"] == list(EXAMPLES.columns) and shown["data"] == [["best", 1, None, 0.5, "NA «x»"]]

    comparison = json.loads((files / summary["comparison.path"]).read_text())
    rows = {row[-4]: dict(zip(comparison["columns"], row, strict=True)) for row in comparison["data"]}
    assert set(rows) == {"matching_score", "pairs_matched"}
    assert (rows["matching_score"]["value"], rows["matching_score"]["low"], rows["matching_score"]["high"]) == (
        1 / 3,
        0.25,
        None,
    )
    assert rows["matching_score"]["folding"] == "theta"


def test_a_failed_job_closes_its_run_as_failed_and_restores_the_environment(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", "/the/users/own")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    with (
        pytest.raises(ZeroDivisionError),
        WandbMirror(tmp_path / "job", mode="offline", config=config, cache_dir=tmp_path, run_id="stable-id") as mirror,
    ):
        assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path / "job")
        mirror.log_curves("layer", [{"layer": 0, "a": 1.0}])
        raise ZeroDivisionError
    assert wandb.run is None
    assert os.environ["WANDB_CACHE_DIR"] == "/the/users/own" and "WANDB_DATA_DIR" not in os.environ
    run = inspect(tmp_path / "job")
    assert [entry["exit_code"] for entry in run["exit"]] == [1]
    assert run["run"][0]["run_id"] == "stable-id"

    # What is not a number never gets there, and a refused call logs none of its rows.
    assert [entry["item"]["layer"] for entry in run["history"]] == [0]


def test_a_run_that_the_caller_has_open_stays_open(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "notebook").mkdir()
    mine = wandb.init(project="notebook", mode="offline", dir=str(tmp_path / "notebook"))
    with WandbMirror(tmp_path / "job", mode="offline", config=config, cache_dir=tmp_path / "c") as mirror:
        assert mirror.run.id != mine.id
        mirror.summary({"matching_score": 1.0})
    mine.log({"own": 2})
    assert wandb.run is mine
    mine.finish()
    logged, own = inspect(tmp_path / "job"), inspect(tmp_path / "notebook")
    assert not any("own" in entry["item"] for entry in logged.get("history", []))
    assert [entry["item"]["own"] for entry in own["history"]] == [2]


def test_a_curve_with_a_dot_in_its_name_leaves_no_summary(tmp_path: Path, config: dict[str, Any]) -> None:
    with WandbMirror(tmp_path, mode="offline", config=config, cache_dir=tmp_path / "c") as mirror:
        mirror.log_curves("layer", [{"layer": n, "cosine_above_0.7/matched": n / 10} for n in (1, 2)])
        mirror.summary({"cosine_above_0.7": 0.5})
    run = inspect(tmp_path)
    summary = {name: value for entry in run["summary"] for name, value in entry.get("update", {}).items()}
    assert {name: value for name, value in summary.items() if not name.startswith("_")} == {"cosine_above_0.7": 0.5}
    assert [entry["item"]["per_layer/cosine_above_0.7/matched"] for entry in run["history"]] == [0.1, 0.2]


def test_numbers_that_are_not_finite_are_refused_before_anything_is_logged(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    nan = float("nan")
    with WandbMirror(tmp_path, mode="offline", config=config, cache_dir=tmp_path / "c") as mirror:
        with pytest.raises(ValueError, match="per_layer/score"):
            mirror.log_curves("layer", [{"layer": 0, "score": 0.1}, {"layer": 1, "score": nan}])
        with pytest.raises(ValueError, match="delta_loss"):
            mirror.summary({"ok": 1.0, "delta_loss": np.float64("inf")})
        with pytest.raises(ValueError, match="mse"):
            mirror.log_histograms({"mse": np.array([0.1, nan])})
        with pytest.raises(TypeError, match="recipe"):
            mirror.summary({"ok": 1.0, "recipe": "abc"})
        with pytest.raises(ValueError, match="no permutations"):
            mirror.log_permutations(tmp_path / "none")
    run = inspect(tmp_path)
    assert "history" not in run
    assert not any("ok" in entry.get("update", {}) for entry in run["summary"])


def test_tags() -> None:
    assert checked_tags(["b", "a", "b", "x" * 64]) == ("b", "a", "x" * 64)
    for wrong in ("x" * 65, ""):
        with pytest.raises(UserError, match=r"tracking\.tags.*64"):
            checked_tags(["fine", wrong])


def test_no_account_is_the_users_to_mend(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    mirror = WandbMirror(tmp_path, mode="online", config=config, cache_dir=tmp_path)
    with pytest.raises(UserError, match="tracking=wandb_offline"), mirror:
        pytest.fail("must not start")
    assert "WANDB_DATA_DIR" not in os.environ


def test_no_network_is_the_users_to_mend(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**_: object) -> None:
        raise wandb.errors.CommError("Timed out: no such host\nConsider increasing the init_timeout setting")

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    mirror = WandbMirror(tmp_path, mode="online", config=config, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"no such host\. Use tracking=wandb_offline"), mirror:
        pytest.fail("must not start")


def test_without_tracking_there_is_no_mirror(tmp_path: Path, config: dict[str, Any]) -> None:
    store = Store(tmp_path / "cache")
    with open_mirror(tmp_path / "job", Tracking(mode=TrackingMode.none), store, config=config) as mirror:
        assert mirror is None
    assert list(tmp_path.iterdir()) == []


VARIABLES = {"PROJECT": "p", "ENTITY": "e", "RUN_GROUP": "g", "TAGS": "a,b", "NAME": "n", "JOB_TYPE": "t"}


def test_wandbs_own_variables_fill_in_what_is_left_open(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    given: dict[str, Any] = {"project": "mine", "group": "ours", "tags": ["c"]}
    for folder, options in (("open", {"name": "auto", "default_group": "sweep"}), ("given", given)):
        with WandbMirror(tmp_path / folder, mode="offline", config=config, cache_dir=tmp_path / "cache", **options):
            pass
    keys = ("project", "entity", "run_group", "tags", "display_name", "job_type")
    runs = [inspect(tmp_path / folder)["run"][0] for folder in ("open", "given")]
    assert [runs[0][key] for key in keys] == ["p", "e", "g", ["a", "b"], "n", "t"]
    assert [runs[1][key] for key in keys[:4]] == ["mine", "e", "ours", ["c"]]


@pytest.mark.parametrize("mode", [TrackingMode.offline, TrackingMode.online])
def test_wandb_that_is_disabled_writes_no_run(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: TrackingMode
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_mirror(tmp_path / "job", Tracking(mode=mode), Store(tmp_path / "cache"), config=config) as mirror:
        assert mirror is None
    assert list(tmp_path.iterdir()) == []
