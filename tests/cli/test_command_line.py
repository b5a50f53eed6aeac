"""The real command: weights-only jobs and sweeps over small SAEs, and every kind of user error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_match import Permutation, SparseAutoencoder, app, fold, load_sae, match, train_app
from sae_match.report.cli import main as report_main
from sae_match.saes import save_native
from tests.builders import permuted, random_sae
from tests.command import Completed, run_command
from tests.wandb_reader import inspect


def run_in(cwd: Path, *arguments: str, command: Callable[[], object] = app.main) -> Completed:
    """The command in a directory, with a cache of its own there."""
    return run_command(*arguments, cwd=cwd, env={"SAE_MATCH_CACHE": str(cwd / "cache")}, command=command)


@pytest.fixture
def sae_directory(tmp_path: Path) -> Path:
    """Layers 0..2: layer 1 is layer 0 permuted, layer 2 is independent."""
    root = tmp_path / "saes"
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    for layer, sae in enumerate([random_sae(seed=1), permuted(random_sae(seed=1), order), random_sae(seed=2)]):
        save_native(sae, root / f"layer_{layer:02d}.safetensors")
    return root


def weights_only(root: Path, *more: str) -> list[str]:
    return ["sae=native", f"sae.root={root}", "layers.first=0", "layers.last=2", "evaluation=weights_only", *more]


@pytest.mark.drawn
def test_one_job_writes_a_complete_record(tmp_path: Path, sae_directory: Path) -> None:
    done = run_in(tmp_path, *weights_only(sae_directory, "tracking=none", "paths.output_dir=out", "matching=decoder"))
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    stored = load_file(out / "permutations" / "layer_01_to_02.safetensors")["permutation"]
    a, b = (load_sae(sae_directory / f"layer_{i:02d}.safetensors") for i in (1, 2))
    matching = match(a, b, "decoder")
    assert torch.equal(stored, matching.permutation.indices)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["objective"] == pytest.approx(matching.objective)  # the planted pair costs nothing
    assert metrics["gap"] == 0.0
    for name in ("config.yaml", "pairs.csv", "features.parquet", "figures/overview.png", "figures/decoder_mse.png"):
        assert (out / name).stat().st_size > 0, name
    assert not (out / "wandb").exists()
    assert (tmp_path / "multirun" / "single").is_dir()


def test_sweep_makes_one_record_and_one_run_per_job(tmp_path: Path, sae_directory: Path) -> None:
    done = run_in(
        tmp_path,
        "-m",
        *weights_only(sae_directory, "matching=both,decoder,encoder", "folding=theta"),
        "tracking.detail=full",
    )
    assert done.code == 0, done.err
    (sweep,) = (tmp_path / "multirun" / "sweeps").iterdir()
    jobs = sorted(p.parent for p in sweep.glob("*/status.json"))
    assert [job.name for job in jobs] == ["0", "1", "2"]
    runs = [inspect(job) for job in jobs]
    headers = [run["run"][0] for run in runs]
    assert len({header["run_id"] for header in headers}) == 3
    assert {header["run_group"] for header in headers} == {sweep.name}
    for job, run, header, metric in zip(jobs, runs, headers, ("both", "decoder", "encoder"), strict=True):
        config = header["config"]["update"]
        assert (config["metric"], config["folding"], config["layers_last"]) == (metric, "theta", 2)
        assert f"metric: {metric}" in (job / "config.yaml").read_text()
        summary: dict[str, object] = {}
        for entry in run["summary"]:
            summary |= entry.get("update", {})
        record = json.loads((job / "metrics.json").read_text())
        assert {name: summary[name] for name in record} == record
        layers = [entry["item"]["layer"] for entry in run["history"] if "layer" in entry["item"]]
        assert layers == [0, 1]


def test_the_baselines_experiment_compares_eight_solvers(tmp_path: Path, sae_directory: Path) -> None:
    done = run_in(tmp_path, "experiment=baselines", *weights_only(sae_directory, "tracking=none"))
    assert done.code == 0, done.err
    (sweep,) = (tmp_path / "multirun" / "sweeps").iterdir()
    metrics = [json.loads((sweep / str(job) / "metrics.json").read_text()) for job in range(8)]
    names = ["certified", "greedy", "cosine", "soft", "mutual", "nearest", "random", "vanilla"]
    objective = {name: job["objective"] for name, job in zip(names, metrics, strict=True)}
    assert all(objective["certified"] <= objective[name] for name in ("greedy", "cosine", "soft", "random", "vanilla"))
    assert objective["mutual"] <= objective["nearest"] <= objective["certified"]
    assert [name for name, job in zip(names, metrics, strict=True) if "gap" in job] == ["certified"]
    report = run_in(tmp_path, "multirun", "--output", "report", command=report_main)
    assert report.code == 0, report.err
    assert all(name in report.out for name in names)


def test_a_baseline_end_to_end_with_its_run(tmp_path: Path, sae_directory: Path) -> None:
    done = run_in(
        tmp_path, "solver=nearest", *weights_only(sae_directory, "paths.output_dir=out"), "tracking.detail=full"
    )
    assert done.code == 0, done.err
    assert "no bound" in done.err
    assert "WARNING" not in (next((tmp_path / "multirun" / "single").glob("*/sae_match.log"))).read_text()
    log = (tmp_path / "out" / "sae_match.log").read_text()
    assert log.count("no bound") > 0 and log.count("sae_match.app.main: record:") == 1
    stored = Permutation.load(tmp_path / "out" / "permutations" / "layer_01_to_02.safetensors")
    a, b = (load_sae(sae_directory / f"layer_{i:02d}.safetensors") for i in (1, 2))
    assert torch.equal(stored.indices, torch.cdist(*(rows(sae).double() for sae in (a, b))).argmin(dim=1))
    assert stored.many_to_one
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    summary: dict[str, object] = {}
    for entry in inspect(tmp_path / "out")["summary"]:
        summary |= entry.get("update", {})
    assert {name: summary[name] for name in record} == record
    assert not {"gap", "lower_bound"} & set(summary)


def rows(sae: SparseAutoencoder) -> torch.Tensor:
    """The folded parameters that metric=both compares, feature by feature."""
    folded = fold(sae)
    return torch.cat([folded.W_enc.T, folded.b_enc[:, None], folded.W_dec], dim=1)


def test_a_local_directory_in_the_hubs_layout(tmp_path: Path) -> None:
    """Gemma Scope files and nothing else: no model, no text, no network."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(6))
    saes = {10: random_sae(seed=1), 11: permuted(random_sae(seed=1), order), 12: random_sae(seed=2)}
    for (layer, sae), l0 in zip(saes.items(), (77, 80, 82), strict=True):
        folder = tmp_path / "scope" / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **{name: t.numpy() for name, t in sae.parameters().items()})
    span = ["layers.first=10", "layers.last=12", "evaluation=weights_only", "tracking=none", "paths.output_dir=out"]
    done = run_in(tmp_path, "sae=gemma_scope_2b", "sae.root=scope", "sae.d_model=8", *span)
    assert done.code == 0, done.err
    planted = load_file(tmp_path / "out" / "permutations" / "layer_10_to_11.safetensors")["permutation"]
    assert torch.equal(order[planted], torch.arange(24))
    assert (tmp_path / "out" / "permutations" / "layer_11_to_12.safetensors").is_file()


def test_a_failing_job_does_not_stop_a_sweep_and_is_loud(tmp_path: Path, sae_directory: Path) -> None:
    arguments = weights_only(sae_directory, "tracking=none")
    arguments[3] = "layers.last=7,2"  # layer 7 has no file
    done = run_in(tmp_path, "-m", *arguments)
    assert done.code != 0
    assert "Traceback" not in done.err
    assert "no SAE for layer 3" in done.err
    states = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "multirun").rglob("status.json")}
    assert {name: status["state"] for name, status in states.items()} == {"0": "failed", "1": "done"}
    assert states["0"]["error"]["type"] == "UserError"
    (log,) = (tmp_path / "multirun").rglob("0/sae_match.log")
    assert "job 0 failed: no SAE for layer 3" in log.read_text()
    report = run_in(tmp_path, "multirun", "--output", "report", command=report_main)
    assert report.code == 1
    assert "refused" in report.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["matching.foo=1"], "unknown configuration key: matching.foo"),
        (["matching=neither"], "Available options in 'matching'"),
        (["matching.metric=neither"], "neither"),
        (["sae.root=absent"], "absent/layer_00.safetensors does not exist"),
        (["solver.memory_limit_gib=1e-9"], "solver=certified needs"),
        (["solver=soft", "solver.memory_limit_gib=1e-9"], "solver=soft needs"),
        (["solver=greedy", "matching.n_pairs=3"], "solver=greedy knows no such limit"),
        (["matching.dead_features=exclude"], "dead_features=exclude needs activations"),
        (["device=cuda"], "cuda"),
        (["paths.output_dir=file/out"], "Choose another directory with paths.output_dir=DIR"),
    ],
)
def test_mistakes_get_one_screen_and_a_non_zero_exit(
    tmp_path: Path, sae_directory: Path, change: list[str], message: str
) -> None:
    if torch.cuda.is_available() and change == ["device=cuda"]:
        pytest.skip("this machine has the GPU that the test expects to be missing")
    (tmp_path / "file").write_text("in the way")
    done = run_in(tmp_path, *weights_only(sae_directory, "tracking=none", "paths.output_dir=out"), *change)
    assert done.code not in (0, None)
    assert message in done.err + done.out
    assert "Traceback" not in done.err + done.out
    assert len(done.err.splitlines()) < 25


def test_span_beyond_the_saes_at_hand(tmp_path: Path) -> None:
    done = run_in(tmp_path, "layers.last=35", "tracking=none")
    assert done.code == 2
    assert "cover layers 0..29" in done.err


def test_help_is_grouped_and_shows_the_sweep() -> None:
    done = run_in(Path.cwd(), "--help")
    assert done.code == 0
    for part in ("matching: both, correlation, decoder, decoder_cosine, descriptions, encoder", "folding: none, theta",
                 "evaluation: full, weights_only",
                 "-m matching=both,decoder,encoder folding=theta,none", "sae.root=DIR"):  # fmt: skip
        assert part in done.out


def test_training_help() -> None:
    done = run_in(Path.cwd(), "--help", command=train_app.main)
    assert done.code == 0
    assert "target_l0" in done.out


def test_the_module_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Without torch, which takes seconds to import: a mistake is told at once."""
    code = (
        "import sys, sae_match.app as app\nsys.argv[1:] = ['layers.frist=1']\n"
        "try: app.main()\nfinally: print('torch' in sys.modules)"
    )
    for arguments in (["-m", "sae_match", "layers.frist=1"], ["-c", code]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 2
        assert done.stderr == "error: unknown configuration key: layers.frist (did you mean layers.first?)\n"
    assert done.stdout == "False\n"
    assert list(tmp_path.iterdir()) == []
