"""The README's library example runs as it stands, and its commands name things that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sae_match import Permutation
from sae_match.app.build import config_directory


def test_the_library_example_runs(repository: Path, tmp_path: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "relative gap of 0e+00" in done.stdout
    permutation = Permutation.load(tmp_path / "layer_13_to_14.safetensors")
    assert sorted(permutation.indices.tolist()) == list(range(1152))


def test_every_group_choice_in_a_command_exists(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.S))
    groups = {path.name for path in config_directory().iterdir() if path.is_dir()} - {"hydra"}
    chosen = [(g, o) for g, options in re.findall(r"(?<![\w.])(\w+)=([\w,]+)", commands) if g in groups
              for o in options.split(",")]  # fmt: skip
    assert len(chosen) > 10
    for group, option in chosen:
        assert (config_directory() / group / f"{option}.yaml").is_file(), f"{group}={option}"
