"""The package as a user installs it: a wheel, unpacked into an empty folder, far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_match import Permutation
from sae_match.saes import save_native
from tests.builders import random_sae
from tests.cli.test_readme import blocks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with nothing but the package and its commands; its dependencies are those of this environment."""
    built, place = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = {**os.environ, "PIP_NO_INDEX": "1"}
    building = [*pip, "wheel", str(repository), "--no-deps", "--no-build-isolation", "--wheel-dir", str(built)]
    subprocess.run(building, env=offline, check=True)
    (file,) = built.glob("sae_match-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(file)], env=offline, check=True)
    keep_compiled_kernels(repository / "src", place)
    return place


def keep_compiled_kernels(sources: Path, place: Path) -> None:
    """Compiling them anew would take half a minute; Numba knows a source by its time and size."""
    for file in (sources / "sae_match" / "matching").rglob("*.py"):
        copy = place / file.relative_to(sources)
        shutil.copystat(file, copy)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.nb[ci]"):
            shutil.copy2(compiled, copy.parent / "__pycache__" / compiled.name)


def run(wheel: Path, cwd: Path, *command: str) -> str:
    """Standard output of one of the wheel's commands, or of Python, with the wheel's package."""
    program = [sys.executable] if command[0] == "python" else [sys.executable, str(wheel / "bin" / command[0])]
    environment = {**os.environ, "PYTHONPATH": str(wheel), "SAE_MATCH_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [*program, *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_help(wheel: Path, tmp_path: Path) -> None:
    assert "matching: both, correlation, decoder, " in run(wheel, tmp_path, "sae-match", "--help")


def test_a_job_and_its_report(wheel: Path, tmp_path: Path) -> None:
    for layer in (0, 1):
        save_native(random_sae(seed=layer), tmp_path / "saes" / f"layer_{layer:02d}.safetensors")
    small = ["sae=native", "sae.root=saes", "layers.pair=0", "evaluation=weights_only", "tracking=none"]
    run(wheel, tmp_path, "sae-match", *small, "hydra.run.dir=out")
    found = Permutation.load(tmp_path / "out" / "permutations" / "layer_00_to_01.safetensors")
    assert sorted(found.indices.tolist()) == list(range(24))
    run(wheel, tmp_path, "sae-match-report", "out", "--output", "report")
    assert "certified" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_readmes_library_example(wheel: Path, repository: Path, tmp_path: Path) -> None:
    example, _ = blocks(repository / "README.md", "python")
    where = "import sae_match; print(sae_match.__file__)"
    shown = run(wheel, tmp_path, "python", "-c", f"{example}\n{where}")
    assert "relative gap of 0e+00" in shown and shown.splitlines()[-1] == str(wheel / "sae_match" / "__init__.py")
    permutation = Permutation.load(tmp_path / "layer_13_to_14.safetensors")
    assert sorted(permutation.indices.tolist()) == list(range(1152))
