"""A tracked sweep: what W&B is given offline, what `wandb sync` brings to a server, and what never gets out.

The server is on loopback (`tests.record.wandb_server`); there is no account, and the keys are canaries.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from sae_match import UserError
from sae_match.app.build import build, register_schemas
from sae_match.experiment import run, steps
from sae_match.files import config_directory
from sae_match.record.configuration import COLUMN_PATHS
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.record.wandb_server import run_python, wandb_server
from tests.wandb_reader import inspect

pytestmark = pytest.mark.slow
"""Several jobs and W&B's own processes."""

TRACKED = (
    "tracking=wandb_offline",
    "tracking.detail=full",
    "evaluation.quantiles=[0.5,1]",
    "composition.max_distance=3",
)
CANARIES = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canarycanarycanarycanarycanary"}
JOBS = {"0": "folding=theta", "1": "folding=none"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, text_directory: Path) -> Iterator[Path]:
    """Directory of a sweep of two jobs, the second of which was interrupted once and then run again, and of one that
    cannot start; keys in the environment."""
    root = tmp_path_factory.mktemp("tracked")
    for layer in range(4):
        save_native(random_sae(width=24, d=8, seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
    save_native(random_sae(width=24, d=8, seed=9), root / "saes" / "layer_01_seed_1.safetensors")

    def job(name: str, *overrides: str) -> Study:
        fixed = [
            "sae=native", f"sae.root={root / 'saes'}",
            "sae.ceiling_filename='layer_{layer:02d}_seed_1.safetensors'", "model=local",
            f"model.path={model_directory}", "dataset=local",
            f"dataset.path={text_directory}", "dataset.documents=10", "dataset.window_tokens=12", "layers.first=0",
            "layers.last=3", "evaluation.bootstrap_samples=20", "device=cpu", "progress=false",
            f"paths.output_dir={root / 'sweep' / name}", f"paths.cache_dir={root / 'cache'}",
        ]  # fmt: skip
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            return build(compose("config", [*fixed, *TRACKED, *overrides]), Study)

    register_schemas()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        run(job("0", JOBS["0"]), group="sweep")
        with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
            broken.setattr(steps, "match_neighbors", interrupted)
            run(job("1", JOBS["1"]), group="sweep")
        run(job("1", JOBS["1"]), group="sweep")
        with pytest.raises(UserError):
            run(job("2", f"sae.root={root / 'nowhere'}"), group="sweep")
        run(job("main", JOBS["0"], "tracking.detail=main"), group="sweep")
        yield root / "sweep"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def attempts(job: Path, at: Path) -> list[dict[str, list[Any]]]:
    """What each attempt at a job has logged, oldest first."""
    found = []
    for directory in sorted(job.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_ctime_ns):
        alone = at / job.name / directory.name
        shutil.copytree(directory, alone / "wandb" / directory.name)
        found.append(inspect(alone))
    return found


def keys(logged: dict[str, list[Any]]) -> set[str]:
    """Names in the history."""
    return {name for entry in logged["history"] for name in entry["item"]}


def test_attempts_share_an_id_and_a_sweep_its_group(sweep: Path, tmp_path: Path) -> None:
    (first,), (broken, second) = attempts(sweep / "0", tmp_path), attempts(sweep / "1", tmp_path)
    ids = [logged["run"][0]["run_id"] for logged in (first, broken, second)]
    assert ids[1] == ids[2] != ids[0] and all(re.fullmatch("[0-9a-f]{16}", name) for name in ids)
    assert [logged["exit"][0]["exit_code"] for logged in (first, broken, second)] == [0, 130, 0]
    assert "history" not in broken
    assert {logged["run"][0]["run_group"] for logged in (first, broken, second)} == {"sweep"}
    columns = second["run"][0]["config"]["update"]
    assert (columns["folding"], columns["quantiles"], columns["max_distance"]) == ("none", "0.5, 1.0", 3)


def test_curves_of_layers_distances_and_quantiles_are_apart(sweep: Path, tmp_path: Path) -> None:
    logged = attempts(sweep / "0", tmp_path)[0]
    for axis, prefix, places in (
        ("layer", "per_layer/", [0, 1, 2, 3]),
        ("distance", "by_distance/", [1, 2, 3]),
        ("quantile", "by_quantile/", [0.5, 1]),
    ):
        steps = [entry["item"] for entry in logged["history"] if axis in entry["item"]]
        assert [step[axis] for step in steps] == places
        assert all(name.startswith((prefix, "_")) or name == axis for step in steps for name in step)
    names = keys(logged)
    assert "per_layer/matching_score/matched" in names and "by_quantile/delta_loss/mean" in names
    assert {"by_distance/agreement/composed/mean", "by_distance/matching_score/exact/layer_0"} <= names
    assert not any("composed" in name or "quantile_" in name for name in names if name.startswith("per_layer/"))
    record = json.loads((sweep / "0" / "metrics.json").read_text())
    far = [entry["item"] for entry in logged["history"] if entry["item"].get("distance") == 2]
    expected = record["composition/matching_score/composed/distance_2"]
    assert far[0]["by_distance/matching_score/composed/mean"] == pytest.approx(expected)
    summary = {name: value for entry in logged["summary"] for name, value in entry.get("update", {}).items()}
    assert {name: summary[name] for name in record} == record


def test_by_default_a_run_holds_what_jobs_are_compared_by(sweep: Path, tmp_path: Path) -> None:
    (logged,) = attempts(sweep / "main", tmp_path)
    record = json.loads((sweep / "main" / "metrics.json").read_text())
    updates = {name: value for entry in logged["summary"] for name, value in entry.get("update", {}).items()}
    summary = {name: value for name, value in updates.items() if name in record}
    assert summary == {name: record[name] for name in summary} and len(summary) <= 52 < len(record)
    main = {"matching_score", "matching_score/random", "delta_loss/layer_drop", "gap", "solver_seconds"}
    assert main <= set(summary) and "explained_variance/encode_permute_decode" in summary
    names = keys(logged)
    assert not any(name.endswith(("_low", "_high")) for name in [*summary, *names])
    assert {"per_layer/matching_score/matched", "by_distance/agreement/composed/mean"} <= names
    assert not any(name.startswith(("per_layer/tolerance", "per_layer/solver/")) for name in names)
    columns = logged["run"][0]["config"]["update"]
    assert columns["folding"] == "theta" and columns["evaluation.batch_windows"] == 8
    assert not any(name.startswith(("paths.", "tracking.")) or "_target_" in name for name in columns)


def test_no_key_is_written_anywhere(sweep: Path) -> None:
    """Records, caches, W&B's files and logs, and the traceback of a job that failed."""
    files = [path for path in sweep.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any(path.name == "error.log" for path in files)
    for path in files:
        content = path.read_bytes()
        for name, value in CANARIES.items():
            assert value.encode() not in content, f"{name} in {path}"


def test_wandb_sync_brings_a_sweep_to_a_server(sweep: Path, tmp_path: Path) -> None:
    with wandb_server() as server:
        done = run_python(
            server,
            tmp_path,
            "-m",
            "wandb",
            "sync",
            *sorted(str(path) for path in sweep.glob("[01]/wandb/offline-run-*")),
        )
        assert done.returncode == 0, done.stderr
        assert server.unknown == []
    first, second = (attempts(sweep / n, tmp_path)[-1]["run"][0]["run_id"] for n in JOBS)
    assert set(server.runs) == {first, second}
    for n, name in zip(JOBS, (first, second), strict=True):
        uploaded, record = server.runs[name], json.loads((sweep / n / "metrics.json").read_text())
        # Both attempts were uploaded, in order: the last one's end counts, and its numbers are the record's.
        assert uploaded.exit_code == 0
        assert {key: uploaded.summary[key] for key in record} == pytest.approx(record)
        assert [row["layer"] for row in uploaded.history if "layer" in row] == [0, 1, 2, 3]
        assert uploaded.fields["groupName"] == "sweep" and uploaded.fields["jobType"] == "match"
        assert uploaded.config["folding"]["value"] == JOBS[n].removeprefix("folding=")
        (output,) = [
            entry for entry in server.artifacts.values() if entry["type"] == "permutations" and entry["made_by"] == name
        ]
        assert "layer_00_to_01.safetensors" in output["files"]


def test_the_page_on_reading_a_sweep_names_what_jobs_log(sweep: Path, tmp_path: Path, repository: Path) -> None:
    page = (repository / "multirun" / "WANDB.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 120
    logged = attempts(sweep / "0", tmp_path)[0]
    history = {re.sub(r"\.(_type|path|sha256|size|values|bins).*", "", name) for name in keys(logged)}
    summary = {name for entry in logged["summary"] for name in entry.get("update", {})}
    summary = {name for name in summary if "." not in name or name.startswith("decoder_cosine")}
    columns = set(logged["run"][0]["config"]["update"])
    named = set(re.findall(r"`([A-Za-z_0-9./]+)`", page))
    curves = {name for name in named if name.startswith(("per_layer/", "by_", "histograms/", "figures/"))}
    assert len(curves) > 30 and curves <= history
    table = page[page.index("## Runs table") : page.index("## Panels to build")]
    factors, sorted_by = (set(re.findall(r"`([a-zA-Z_0-9./]+)`", part)) for part in table.split("3. Sort by"))
    of_other_options = {"rounding", "regularization", "sae_width", "sae_l0_near", "judge_model", "judge_overlap"}
    assert of_other_options.isdisjoint(columns)
    assert factors - {"Group", "tracking.group"} - of_other_options <= columns
    assert sorted_by - {"metrics.json", "_low", "_high"} <= summary
    # And every column there is: the page is the only list of them.
    assert set(COLUMN_PATHS) <= factors
    headline = {name for name in named - curves if re.search(r"[^/]/[^/]", name)}
    assert len(headline) > 6 and headline <= summary
