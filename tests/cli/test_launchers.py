"""The same small sweep under every launcher: the local launcher's results, byte for byte."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli import fake_slurm
from tests.command import Completed, run_command
from tests.wandb_reader import inspect

pytestmark = pytest.mark.slow

MEASURED = ("seconds", "peak_memory_gib")


def arguments(root: Path, launcher: str, layers: str = "2,7") -> list[str]:
    """Two jobs over layers 0..2 and 0..7, of which the second fails: there is no layer 3."""
    return ["-m", f"launcher={launcher}", "sae=native", f"sae.root={root / 'saes'}", "layers.first=0",
            f"layers.last={layers}", "evaluation=weights_only", "tracking=none",
            f"hydra.sweep.dir={root / launcher}"]  # fmt: skip


def sweep(root: Path, launcher: str, *more: str, **environment: str) -> Completed:
    """The sweep, launched from this process; what starts others is up to the launcher."""
    variables = {"SAE_MATCH_CACHE": str(root / f"cache_{launcher}"), **environment}
    return run_command(*arguments(root, launcher), *more, cwd=root, env=variables)


def sweep_in_a_process(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Launched as a user does it: what processes of the launcher's print is seen as well."""
    return subprocess.run(
        [sys.executable, "-m", "sae_match", *words], cwd=root, env={**os.environ, "SAE_MATCH_CACHE": str(root / "own")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SAEs and the local launcher's sweep of them."""
    root = tmp_path_factory.mktemp("launchers")
    for layer in range(3):
        save_native(random_sae(seed=layer), root / "saes" / f"layer_{layer:02d}.safetensors")
    done = sweep(root, "local")
    assert done.code != 0 and state(root / "local" / "0") == "done", done.err
    (root / "local.txt").write_text(done.err)
    return root


def state(job: Path) -> str:
    return str(json.loads((job / "status.json").read_text())["state"])


def pairs(job: Path) -> list[list[str]]:
    """The cells of pairs.csv as text, without what the machine's speed and memory decide."""
    with (job / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if not any(word in cell for cell in row for word in MEASURED)]


def permutation(path: Path) -> tuple[bytes, dict[str, object]]:
    """The data of a permutation's file byte for byte, and its header without the time that the solver took."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:end])["__metadata__"]
    provenance = json.loads(metadata.pop("provenance"))
    del provenance["seconds"]
    return content[end:], {**metadata, **provenance}


def assert_same_sweep(found: Path, expected: Path) -> None:
    assert state(found / "0") == "done"
    names = sorted(path.name for path in (expected / "0" / "permutations").iterdir())
    assert len(names) == 2
    for name in names:
        one, other = (permutation(side / "0" / "permutations" / name) for side in (found, expected))
        assert one == other, name
    assert pairs(found / "0") == pairs(expected / "0") and len(pairs(found / "0")) > 5
    assert "gap 0.0e+00" in (found / "0" / "sae_match.log").read_text()
    assert state(found / "1") == "failed"
    assert "no SAE for layer 3" in (found / "1" / "error.log").read_text()
    assert "no SAE for layer 3" in (found / "1" / "sae_match.log").read_text()


def test_a_sweep_says_where_it_stands(root: Path) -> None:
    """Also in what is no terminal: there are no bars, so these lines are all that one sees."""
    shown = (root / "local.txt").read_text()
    assert re.search(r"^job 1 of 2$", shown, flags=re.M)
    assert re.search(r"^job 2 of 2, about \d+ (s|min) left$", shown, flags=re.M)
    assert "%|" not in shown


def test_joblib(root: Path) -> None:
    done = sweep_in_a_process(root, *arguments(root, "joblib", layers="2,7,1"), "tracking=wandb_offline")
    assert done.returncode != 0
    assert "no SAE for layer 3" in done.stderr
    assert_same_sweep(root / "joblib", root / "local")
    # Lines of jobs that run side by side say which job they are of.
    assert "[0] layers 0 -> 1: objective" in done.stderr and "[2] layers 0 -> 1: objective" in done.stderr
    headers = [inspect(root / "joblib" / job)["run"][0] for job in ("0", "2")]
    assert [header["run_group"] for header in headers] == ["joblib", "joblib"]
    assert len({header["run_id"] for header in headers}) == 2


def test_a_ray_cluster_on_this_machine(root: Path) -> None:
    """Only where its plugin is installed, which constraints.txt rules out (conf/launcher/ray.yaml says why)."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher.ray_launcher", reason="needs an environment of its own")
    done = sweep(root, "ray")
    assert done.code != 0
    assert "no SAE for layer 3" in done.err
    assert_same_sweep(root / "ray", root / "local")


def test_submitits_local_executor(root: Path) -> None:
    done = sweep(root, "submitit_local")
    assert done.code != 0
    assert "no SAE for layer 3" in done.err
    assert_same_sweep(root / "submitit_local", root / "local")


def test_a_slurm_array(root: Path, tmp_path: Path) -> None:
    path = f"{fake_slurm.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    resources = ["partition=gpu", "gpus_per_node=2", "mem_gb=7", "cpus_per_task=3", "timeout_min=55",
                 "array_parallelism=2", "setup=['export FROM_SETUP=1']"]  # fmt: skip
    done = sweep(root, "submitit", *(f"hydra.launcher.{resource}" for resource in resources), PATH=path)
    assert done.code != 0
    assert "no SAE for layer 3" in done.out
    assert_same_sweep(root / "submitit", root / "local")
    (script,) = (root / "submitit" / ".submitit").rglob("*submission.sh")
    lines = script.read_text().splitlines()
    for line in ("--partition=gpu", "--gpus-per-node=2", "--mem=7GB", "--cpus-per-task=3", "--time=55",
                 "--array=0-1%2", "--job-name=sae_match"):  # fmt: skip
        assert f"#SBATCH {line}" in lines, line
    assert "export FROM_SETUP=1" in lines
    assert list((root / "submitit" / ".submitit").rglob("4242_1_0_log.out"))


def test_a_dry_run_is_never_sent_to_a_cluster(root: Path) -> None:
    more = ["dry_run=true", "layers.last=1,2", "hydra.launcher.partition=gpu"]
    done = sweep(root, "submitit", *more, PATH=os.environ["PATH"])
    assert done.code == 0, done.err
    assert done.out.count("Problems: none") == 2


@pytest.mark.parametrize(
    ("launcher", "source"),
    [
        ("joblib", "pip install 'sae-match[joblib]'"),
        ("submitit", "pip install 'sae-match[slurm]'"),
        ("ray", "conf/launcher/ray.yaml"),
    ],
)
def test_a_missing_plugin_is_named_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, source: str, write_module: Callable[..., Path]
) -> None:
    hidden = write_module("import sys\nsys.modules['hydra_plugins'] = None\n")
    monkeypatch.setenv("PYTHONPATH", f"{hidden}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = sweep_in_a_process(tmp_path, *arguments(tmp_path, launcher))
    assert done.returncode == 2
    assert source in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def write_module(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a `sitecustomize` that Python runs first, and returns its folder."""

    def write(code: str) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        return folder

    return write
