"""What a notebook imports is light: neither the commands' libraries nor those of language models and figures."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("datasets", "hydra", "lightning", "matplotlib", "omegaconf", "pandas", "transformers", "wandb")


@pytest.mark.parametrize("line", ["from sae_match import load_sae, match", "import sae_match.metrics"])
def test_heavy_libraries_are_not_loaded(line: str) -> None:
    code = f"import sys\n{line}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
